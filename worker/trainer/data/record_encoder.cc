#include "worker/trainer/data/record_encoder.h"

#include <fmt/format.h>

#include <algorithm>

#include "proto/jobfile/enum_names.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

size_t CommonPrefix(const std::vector<TokenId>& a, const std::vector<TokenId>& b) {
  const auto [in_a, in_b] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  return static_cast<size_t>(in_a - a.begin());
}

std::vector<TokenId> Joined(std::vector<TokenId> a, const std::vector<TokenId>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace

RecordEncoder::RecordEncoder(const Tokenizer& tokenizer, RecordTemplate record_template, int64_t context_length)
    : tokenizer_(tokenizer), template_(std::move(record_template)), context_length_(context_length) {
  for (const std::string& token : template_.SpecialTokens()) {
    CheckSpecialToken(token);
    special_ids_.push_back(tokenizer_.Encode(token, false).front());
  }
}

void RecordEncoder::CheckSpecialToken(const std::string& token) const {
  const auto name = jobfile::NameOf(template_.options().kind);
  if (tokenizer_.Encode(token, false).size() != 1) {
    throw UserError(
        fmt::format("cannot use template {}: the model's tokenizer has no token {}, and no vocabulary is "
                    "ever grown; set data.template to one that the model knows",
                    name, token));
  }
  const std::string before = "a.\n ";
  const std::string behind = token + "\n b";
  if (tokenizer_.Encode(before + behind, false) !=
      Joined(tokenizer_.Encode(before, false), tokenizer_.Encode(behind, false))) {
    throw UserError(
        fmt::format("cannot use template {}: the tokenizer's token {} changes the text around it", name, token));
  }
}

EncodedRecord RecordEncoder::Encode(const SftRecord& record, MergeCache& cache) const {
  const Rendering rendering = template_.Render(record);
  EncodedRecord out;
  if (rendering.tokenizer_prefix) out.ids = tokenizer_.prefix();
  out.scored.assign(out.ids.size(), 0);
  const RenderedPart* part = rendering.parts.data();
  const RenderedPart* const end = part + rendering.parts.size();
  while (part != end && static_cast<int64_t>(out.ids.size()) <= context_length_) {
    const RenderedPart* next = std::find_if(part + 1, end, [](const RenderedPart& p) { return p.special; });
    EncodeSection(part, next, cache, out);
    part = next;
  }
  if (static_cast<int64_t>(out.ids.size()) > context_length_) {
    out.cut = true;
    out.ids.resize(static_cast<size_t>(context_length_));
    out.scored.resize(static_cast<size_t>(context_length_));
  }
  if (!out.scored.empty()) out.scored.front() = 0;
  out.scored_tokens = std::count(out.scored.begin(), out.scored.end(), 1);
  return out;
}

// A section is a special token (or the start) with the text up to the next one.
void RecordEncoder::EncodeSection(const RenderedPart* begin, const RenderedPart* end, MergeCache& cache,
                                  EncodedRecord& out) const {
  std::string text;
  for (const RenderedPart* part = begin; part != end; ++part) text += part->text;
  std::vector<TokenId> ids;
  tokenizer_.EncodeTo(text, cache, ids);

  const bool led = begin->special;
  const auto is_special = [&](TokenId id) {
    return std::find(special_ids_.begin(), special_ids_.end(), id) != special_ids_.end();
  };
  out.special_in_text |= std::any_of(ids.begin() + (led ? 1 : 0), ids.end(), is_special);

  // Where the flag changes: the tokens that the text up to there has by itself.
  std::vector<uint8_t> scored(ids.size(), begin->scored ? 1 : 0);
  std::string before;
  for (const RenderedPart* part = begin; part + 1 != end; ++part) {
    before += part->text;
    if (part[1].scored == part->scored) continue;
    std::vector<TokenId> prompt;
    tokenizer_.EncodeTo(before, cache, prompt);
    std::fill(scored.begin() + static_cast<ptrdiff_t>(CommonPrefix(prompt, ids)), scored.end(), part[1].scored ? 1 : 0);
  }
  out.ids.insert(out.ids.end(), ids.begin(), ids.end());
  out.scored.insert(out.scored.end(), scored.begin(), scored.end());
}

}  // namespace longspan::trainer
