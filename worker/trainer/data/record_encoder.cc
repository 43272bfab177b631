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
  for (const std::string& token : template_.SpecialTokens()) special_ids_.push_back(SpecialId(token));
}

TokenId RecordEncoder::SpecialId(const std::string& token) {
  const auto name = jobfile::NameOf(template_.options().kind);
  const auto id = tokenizer_.IdOf(token);
  if (!id) {
    throw UserError(
        fmt::format("cannot use template {}: the model's tokenizer has no token {}, and no vocabulary is "
                    "ever grown; choose a template that the model knows",
                    name, token));
  }
  if (tokenizer_.Encode(token, false) != std::vector<TokenId>{*id}) {
    special_apart_ = true;
    return *id;
  }
  const std::string before = "a.\n ";
  const std::string behind = token + "\n b";
  if (tokenizer_.Encode(before + behind, false) !=
      Joined(tokenizer_.Encode(before, false), tokenizer_.Encode(behind, false))) {
    throw UserError(
        fmt::format("cannot use template {}: the tokenizer's token {} changes the text around it", name, token));
  }
  return *id;
}

std::vector<TokenId> RecordEncoder::EncodeParts(const RenderedPart* begin, const RenderedPart* end,
                                                MergeCache& cache) const {
  std::vector<TokenId> ids;
  if (special_apart_ && begin != end && begin->special) {
    ids.push_back(*tokenizer_.IdOf(begin->text));
    ++begin;
  }
  std::string text;
  for (const RenderedPart* part = begin; part != end; ++part) text += part->text;
  tokenizer_.EncodeTo(text, cache, ids);
  return ids;
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

std::vector<TokenId> RecordEncoder::EncodePrompt(const SftRecord& record, MergeCache& cache) const {
  const Rendering rendering = template_.RenderPrompt(record);
  std::vector<TokenId> ids;
  if (rendering.tokenizer_prefix) ids = tokenizer_.prefix();
  const RenderedPart* part = rendering.parts.data();
  const RenderedPart* const end = part + rendering.parts.size();
  while (part != end) {
    const RenderedPart* next = std::find_if(part + 1, end, [](const RenderedPart& p) { return p.special; });
    ids = Joined(std::move(ids), EncodeParts(part, next, cache));
    part = next;
  }
  return ids;
}

// A section is a special token (or the start) with the text up to the next one.
void RecordEncoder::EncodeSection(const RenderedPart* begin, const RenderedPart* end, MergeCache& cache,
                                  EncodedRecord& out) const {
  const std::vector<TokenId> ids = EncodeParts(begin, end, cache);
  const auto is_special = [&](TokenId id) {
    return std::find(special_ids_.begin(), special_ids_.end(), id) != special_ids_.end();
  };
  out.special_in_text |= std::any_of(ids.begin() + (begin->special ? 1 : 0), ids.end(), is_special);

  // Where the flag changes: the tokens that the text up to there has by itself.
  std::vector<uint8_t> scored(ids.size(), begin->scored ? 1 : 0);
  for (const RenderedPart* part = begin; part + 1 != end; ++part) {
    if (part[1].scored == part->scored) continue;
    const size_t border = CommonPrefix(EncodeParts(begin, part + 1, cache), ids);
    std::fill(scored.begin() + static_cast<ptrdiff_t>(border), scored.end(), part[1].scored ? 1 : 0);
  }
  out.ids.insert(out.ids.end(), ids.begin(), ids.end());
  out.scored.insert(out.scored.end(), scored.begin(), scored.end());
}

}  // namespace longspan::trainer
