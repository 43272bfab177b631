#include "worker/trainer/data/added_tokens.h"

#include <fmt/format.h>

#include <algorithm>

#include "worker/trainer/data/unicode_classes.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

// Start of the white space that ends at `end`, not before `floor`.
size_t StartOfSpacesBefore(std::string_view text, size_t end, size_t floor) {
  while (end > floor) {
    size_t at = end - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    if ((CharacterAt(text, at).classes & kSpace) == 0) break;
    end = at;
  }
  return std::max(end, floor);
}

size_t EndOfSpacesBehind(std::string_view text, size_t at) {
  for (;;) {
    const Character c = CharacterAt(text, at);
    if (c.bytes == 0 || (c.classes & kSpace) == 0) return at;
    at += c.bytes;
  }
}

}  // namespace

AddedTokens AddedTokens::Parse(const nlohmann::json& list, const std::unordered_map<std::string, TokenId>& vocabulary,
                               const std::string& file) {
  AddedTokens result;
  result.passes_.resize(2);
  for (const nlohmann::json& entry : list) {
    Token token{entry.at("content").get<std::string>(), entry.at("id").get<TokenId>(), entry.value("lstrip", false),
                entry.value("rstrip", false)};
    if (token.content.empty()) continue;  // The package ignores these too.
    if (entry.value("single_word", false)) {
      throw UserError(
          fmt::format("cannot use {}: the added token {} is single_word, which is not supported", file, token.content));
    }
    const auto known = vocabulary.find(token.content);
    if (known != vocabulary.end()) token.id = known->second;
    result.ids_[token.content] = token.id;
    result.largest_id_ = std::max(result.largest_id_, token.id);
    if (token.strip_left || token.strip_right || token.content.find('\n') != std::string::npos) {
      result.stays_within_lines_ = false;
    }
    Pass& pass = result.passes_[entry.value("normalized", !entry.value("special", false)) ? 1 : 0];
    pass.by_first_byte[static_cast<unsigned char>(token.content[0])].push_back(std::move(token));
    pass.empty = false;
  }
  for (Pass& pass : result.passes_) {
    for (std::vector<Token>& tokens : pass.by_first_byte) {
      std::stable_sort(tokens.begin(), tokens.end(),
                       [](const Token& a, const Token& b) { return a.content.size() > b.content.size(); });
    }
  }
  return result;
}

std::optional<TokenId> AddedTokens::Find(std::string_view content) const {
  const auto found = ids_.find(std::string(content));
  return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

const AddedTokens::Token* AddedTokens::Pass::MatchAt(std::string_view text, size_t at) const {
  for (const Token& token : by_first_byte[static_cast<unsigned char>(text[at])]) {
    if (text.compare(at, token.content.size(), token.content) == 0) return &token;
  }
  return nullptr;
}

void AddedTokens::Pass::Split(std::string_view text, const Visit& visit) const {
  size_t done = 0;  // everything before was handed out
  for (size_t at = 0; at < text.size() && !empty;) {
    const Token* token = MatchAt(text, at);
    if (token == nullptr) {
      ++at;
      continue;
    }
    const size_t begin = token->strip_left ? StartOfSpacesBefore(text, at, done) : at;
    at += token->content.size();
    if (begin > done) visit(text.substr(done, begin - done), std::nullopt);
    visit(text.substr(begin, at - begin), token->id);
    done = token->strip_right ? EndOfSpacesBehind(text, at) : at;
    at = std::max(at, done);
  }
  if (done < text.size()) visit(text.substr(done), std::nullopt);
}

void AddedTokens::Split(std::string_view text, const Visit& visit) const {
  passes_[0].Split(text, [&](std::string_view part, std::optional<TokenId> token) {
    if (token) {
      visit(part, token);
    } else {
      passes_[1].Split(part, visit);
    }
  });
}

}  // namespace longspan::trainer
