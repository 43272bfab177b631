#include "worker/trainer/data/added_tokens.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>

#include "worker/trainer/data/text_normalization.h"
#include "worker/trainer/data/unicode_classes.h"

namespace longspan::trainer {
namespace {

bool EndsWithWordCharacter(std::string_view text) {
  if (text.empty()) return false;
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return IsWordCharacter(CharacterAt(text, at).code_point);
}

bool StartsWithWordCharacter(std::string_view text) {
  return !text.empty() && IsWordCharacter(CharacterAt(text, 0).code_point);
}

AddedTokens::Entry ReadEntry(const JsonPlace& place) {
  AddedTokens::Entry entry;
  entry.content = place.At("content").String();
  entry.id = static_cast<TokenId>(place.At("id").Unsigned(kTokenIdMax));
  entry.single_word = place.BoolOr("single_word", false);
  entry.strip_left = place.BoolOr("lstrip", false);
  entry.strip_right = place.BoolOr("rstrip", false);
  entry.special = place.BoolOr("special", false);
  entry.normalized = place.BoolOr("normalized", !entry.special);
  return entry;
}

}  // namespace

AddedTokens AddedTokens::Parse(const std::optional<JsonPlace>& list,
                               const std::unordered_map<std::string, TokenId>& vocabulary,
                               const Normalizer& normalizer) {
  if (!list) return {};
  std::vector<Entry> entries;
  std::unordered_map<std::string, TokenId> numbered;
  for (const JsonPlace& place : list->Elements()) {
    Entry entry = ReadEntry(place);
    if (entry.content.empty()) continue;  // The package ignores these too.
    if (const auto known = vocabulary.find(entry.content); known != vocabulary.end()) {
      entry.id = known->second;
    } else {
      const auto next = static_cast<TokenId>(vocabulary.size() + numbered.size());
      const TokenId right = numbered.emplace(entry.content, next).first->second;
      if (entry.id != right) {
        place.Fail(
            fmt::format("{}.id is {}, but the tokenizers package gives the token \"{}\" the id {}: ids of added "
                        "tokens that the vocabulary lacks go on from its size, {}",
                        place.path(), entry.id, entry.content, right, vocabulary.size()));
      }
    }
    entries.push_back(std::move(entry));
  }
  return AddedTokens(entries, normalizer, *list);
}

AddedTokens::AddedTokens(const std::vector<Entry>& entries, const Normalizer& normalizer, const JsonPlace& place) {
  // Of entries with one id the last counts.
  std::unordered_map<TokenId, const Entry*> by_id;
  std::unordered_set<std::string> special;
  for (const Entry& entry : entries) {
    by_id[entry.id] = &entry;
    ids_[entry.content] = entry.id;
    largest_id_ = std::max(largest_id_, entry.id);
    if (entry.special) special.insert(entry.content);
  }
  for (const Entry& entry : entries) {
    if (by_id[entry.id] != &entry) continue;
    std::string buffer;
    const std::string content(entry.normalized ? normalizer.Normalize(entry.content, buffer) : entry.content);
    decoded_[entry.id] = {content, special.contains(content)};
    if (entry.strip_left || entry.strip_right || entry.single_word || content.find('\n') != std::string::npos) {
      stays_within_lines_ = false;
    }
    if (!content.empty() && IsAsciiLetter(content.back())) never_ends_with_letter_ = false;
    (entry.normalized ? normalized_ : raw_).Add({content, entry}, place);
  }
}

void AddedTokens::Pass::Add(Token token, const JsonPlace& place) {
  if (token.content.empty()) {
    place.Fail(fmt::format("nothing is left of the added token \"{}\" ({}) when it is normalised", token.entry.content,
                           place.path()));
  }
  std::vector<Token>& tokens = by_first_byte[static_cast<unsigned char>(token.content[0])];
  const auto shorter = [&token](const Token& other) { return other.content.size() <= token.content.size(); };
  const auto at = std::find_if(tokens.begin(), tokens.end(), shorter);
  for (auto same = at; same != tokens.end() && same->content.size() == token.content.size(); ++same) {
    if (same->content != token.content) continue;
    place.Fail(fmt::format("the added tokens {} and {} ({}) look alike when they are normalised: \"{}\"",
                           same->entry.id, token.entry.id, place.path(), token.content));
  }
  tokens.insert(at, std::move(token));
  empty = false;
}

std::optional<TokenId> AddedTokens::Find(std::string_view content) const {
  const auto found = ids_.find(std::string(content));
  return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

const AddedTokens::Decoded* AddedTokens::FindId(TokenId id) const {
  const auto found = decoded_.find(id);
  return found == decoded_.end() ? nullptr : &found->second;
}

const AddedTokens::Token* AddedTokens::Pass::MatchAt(std::string_view text, size_t at) const {
  for (const Token& token : by_first_byte[static_cast<unsigned char>(text[at])]) {
    if (text.compare(at, token.content.size(), token.content) == 0) return &token;
  }
  return nullptr;
}

// White space that a token takes with it is still searched for further tokens, and a token found there is given too:
// the package does so.
void AddedTokens::Pass::Split(std::string_view text, const Visit& visit) const {
  size_t done = 0;  // everything before was handed out
  for (size_t at = 0; at < text.size() && !empty;) {
    const Token* token = MatchAt(text, at);
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at;
    size_t end = at + token->content.size();
    at = end;
    const Entry& entry = token->entry;
    if (entry.single_word &&
        (EndsWithWordCharacter(text.substr(0, begin)) || StartsWithWordCharacter(text.substr(end)))) {
      continue;
    }
    if (entry.strip_left) begin = done > begin ? done : StartOfSpacesBefore(text, begin, done);
    if (entry.strip_right) end = EndOfSpacesBehind(text, end);
    if (begin > done) visit(text.substr(done, begin - done), std::nullopt);
    visit(text.substr(begin, end - std::min(begin, end)), entry.id);
    done = end;
  }
  if (done < text.size()) visit(text.substr(done), std::nullopt);
}

}  // namespace longspan::trainer
