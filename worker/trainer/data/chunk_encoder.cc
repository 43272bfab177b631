#include "worker/trainer/data/chunk_encoder.h"

#include <fmt/format.h>

#include "proto/jobfile/enum_names.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {

void CorpusCounts::Add(const CorpusCounts& later) {
  text_bytes += later.text_bytes;
  empty_documents += later.empty_documents;
  records += later.records;
  dropped += later.dropped;
  cut += later.cut;
  scored_tokens += later.scored_tokens;
  special_in_text += later.special_in_text;
  if (!first_dropped) first_dropped = later.first_dropped;
}

ChunkEncoder::ChunkEncoder(const std::vector<CorpusFile>& files, jobfile::DataFormat format, std::string text_field,
                           const Tokenizer& tokenizer, const RecordEncoder* records)
    : files_(files), format_(format), text_field_(std::move(text_field)), tokenizer_(tokenizer), records_(records) {
  for (const CorpusFile& file : files) {
    if (records == nullptr || file.kind != CorpusFileKind::kText) continue;
    throw UserError(fmt::format("cannot read {} as {} data: records lie in .jsonl or .json files; leave it out",
                                file.path.string(), jobfile::NameOf(format)));
  }
}

EncodedChunk ChunkEncoder::Encode(const Chunk& chunk, MergeCache& cache) const {
  EncodedChunk out;
  out.file = chunk.file;
  out.position = chunk.position;
  if (chunk.is_text) {
    EncodeTextFile(chunk, cache, out);
  } else {
    for (const RawRecord& raw : chunk.records) EncodeLine(chunk, raw, cache, out);
  }
  return out;
}

void ChunkEncoder::EncodeTextFile(const Chunk& chunk, MergeCache& cache, EncodedChunk& out) const {
  if (chunk.empty_document) {
    ++out.counts.empty_documents;
    return;
  }
  if (chunk.begins_document) {
    out.ids = tokenizer_.prefix();
    tokenizer_.EncodeTo(chunk.bytes, cache, out.ids);
  } else {
    tokenizer_.ContinueTo(chunk.bytes, cache, out.ids);
  }
  out.counts.text_bytes += static_cast<int64_t>(chunk.bytes.size());
  if (chunk.ends_document) EndTextDocument(out);
}

void ChunkEncoder::EncodeLine(const Chunk& chunk, const RawRecord& raw, MergeCache& cache, EncodedChunk& out) const {
  const CorpusFile& file = files_[chunk.file];
  const std::string_view bytes = std::string_view(chunk.bytes).substr(raw.begin, raw.end - raw.begin);
  if (const auto at = FindInvalidUtf8(bytes)) {
    FailUtf8(file, raw.line, raw.offset + static_cast<int64_t>(*at), bytes[*at]);
  }
  try {
    nlohmann::json record = ParseRecord(bytes);
    if (records_ == nullptr) return EncodeText(TakeText(record, text_field_), cache, out);
    EncodeRecord(TakeSftRecord(record, format_), {chunk.file, raw.line}, cache, out);
  } catch (const RecordError& error) {
    FailLine(file, raw.line, error.what());
  }
}

void ChunkEncoder::EncodeText(const std::string& text, MergeCache& cache, EncodedChunk& out) const {
  if (text.empty()) {
    ++out.counts.empty_documents;
    return;
  }
  out.ids.insert(out.ids.end(), tokenizer_.prefix().begin(), tokenizer_.prefix().end());
  tokenizer_.EncodeTo(text, cache, out.ids);
  out.counts.text_bytes += static_cast<int64_t>(text.size());
  EndTextDocument(out);
}

void ChunkEncoder::EndTextDocument(EncodedChunk& out) const {
  const std::vector<TokenId>& suffix = tokenizer_.suffix();
  out.ids.insert(out.ids.end(), suffix.begin(), suffix.end());
  const auto eos = tokenizer_.eos();
  if (eos && (suffix.empty() || suffix.back() != *eos)) out.ids.push_back(*eos);
  out.document_ends.push_back(out.ids.size());
}

void ChunkEncoder::EncodeRecord(SftRecord record, RecordPlace place, MergeCache& cache, EncodedChunk& out) const {
  const EncodedRecord encoded = records_->Encode(record, cache);
  ++out.counts.records;
  if (encoded.scored_tokens == 0) {
    ++out.counts.dropped;
    if (!out.counts.first_dropped) out.counts.first_dropped = place;
    return;
  }
  out.counts.cut += encoded.cut ? 1 : 0;
  out.counts.special_in_text += encoded.special_in_text ? 1 : 0;
  out.counts.scored_tokens += encoded.scored_tokens;
  out.ids.insert(out.ids.end(), encoded.ids.begin(), encoded.ids.end());
  out.scored.insert(out.scored.end(), encoded.scored.begin(), encoded.scored.end());
  out.document_ends.push_back(out.ids.size());
  if (!out.first_kept) out.first_kept = std::move(record);
}

}  // namespace longspan::trainer
