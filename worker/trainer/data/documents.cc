#include "worker/trainer/data/documents.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "worker/trainer/data/json_values.h"
#include "worker/trainer/data/tokenizer.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

using Sink = std::function<void(Chunk chunk)>;

constexpr size_t kReadBytes = 1 << 20;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

bool IsAsciiLetter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool IsBlank(std::string_view line) { return line.find_first_not_of(" \t\r") == std::string_view::npos; }

// Streams a text file: keeps what it has not handed out, and remembers how much of that it has looked at.
class TextFile {
 public:
  TextFile(const CorpusFile& file, size_t number, const ChunkOptions& options, const Sink& sink)
      : file_(file), number_(number), options_(options), sink_(sink) {}

  void Read() {
    CorpusReader reader(file_);
    while (reader.AppendTo(buffer_, kReadBytes)) {
      position_ = reader.position();
      if (dropped_ == 0 && buffer_.starts_with(kByteOrderMark) && checked_ == 0) Drop(kByteOrderMark.size());
      CheckUtf8(false);
      if (options_.may_cut) HandOutWholeLines();
    }
    position_ = reader.position();
    CheckUtf8(true);
    HandOut(buffer_.size(), /*ends=*/true);
  }

 private:
  void CheckUtf8(bool at_end) {
    const std::string_view unchecked = std::string_view(buffer_).substr(checked_);
    if (const auto at = FindInvalidUtf8(unchecked, !at_end)) {
      const size_t bad = checked_ + *at;
      const auto lines = std::count(buffer_.begin(), buffer_.begin() + static_cast<ptrdiff_t>(bad), '\n');
      FailUtf8(file_, 1 + dropped_lines_ + lines, dropped_ + static_cast<int64_t>(bad), buffer_[bad]);
    }
    // A character may have been cut by the end of the buffer: its lead stands among the last three bytes.
    size_t end = buffer_.size();
    for (size_t back = 1; !at_end && back <= 3 && back <= buffer_.size() - checked_; ++back) {
      const auto byte = static_cast<unsigned char>(buffer_[buffer_.size() - back]);
      if (byte >= 0xC0) {
        end = buffer_.size() - back;
        break;
      }
      if (byte < 0x80) break;
    }
    checked_ = end;
  }

  void HandOutWholeLines() {
    for (size_t at = checked_; at > std::max<size_t>(searched_, 1); --at) {
      const size_t newline = at - 1;
      if (buffer_[newline] != '\n' || !IsAsciiLetter(buffer_[newline - 1])) continue;
      HandOut(newline, /*ends=*/false);
      break;
    }
    searched_ = checked_;
  }

  void HandOut(size_t bytes, bool ends) {
    Chunk chunk;
    chunk.file = number_;
    chunk.bytes = buffer_.substr(0, bytes);
    chunk.is_text = true;
    chunk.begins_document = !begun_;
    chunk.ends_document = ends;
    chunk.empty_document = ends && !begun_ && bytes == 0;
    chunk.position = position_;
    begun_ = true;
    Drop(bytes);
    sink_(std::move(chunk));
  }

  void Drop(size_t bytes) {
    dropped_lines_ += std::count(buffer_.begin(), buffer_.begin() + static_cast<ptrdiff_t>(bytes), '\n');
    dropped_ += static_cast<int64_t>(bytes);
    buffer_.erase(0, bytes);
    checked_ -= std::min(checked_, bytes);
  }

  const CorpusFile& file_;
  size_t number_;
  const ChunkOptions& options_;
  const Sink& sink_;
  std::string buffer_;
  size_t checked_ = 0;   // this much of the buffer is UTF-8
  size_t searched_ = 0;  // no place to cut before this
  int64_t dropped_ = 0;  // bytes of the file before the buffer
  int64_t dropped_lines_ = 0;
  int64_t position_ = 0;
  bool begun_ = false;
};

// Collects records until they fill a chunk.
class Batch {
 public:
  Batch(size_t number, const Sink& sink) : number_(number), sink_(sink) { Clear(); }

  void Add(std::string_view record, int64_t line, int64_t offset) {
    const size_t begin = chunk_.bytes.size();
    chunk_.bytes.append(record);
    chunk_.records.push_back({begin, chunk_.bytes.size(), line, offset});
    if (chunk_.bytes.size() >= kChunkBytes) HandOut();
  }
  void HandOut() {
    if (chunk_.records.empty()) return;
    chunk_.position = position_;
    sink_(std::exchange(chunk_, Chunk()));
    Clear();
  }
  void set_position(int64_t position) { position_ = position; }

 private:
  void Clear() { chunk_.file = number_; }

  size_t number_;
  const Sink& sink_;
  Chunk chunk_;
  int64_t position_ = 0;
};

class JsonLinesFile {
 public:
  JsonLinesFile(const CorpusFile& file, size_t number, const Sink& sink) : file_(file), batch_(number, sink) {}

  void Read() {
    CorpusReader reader(file_);
    std::string buffer;
    size_t searched = 0;  // no '\n' before this
    while (reader.AppendTo(buffer, kReadBytes)) {
      batch_.set_position(reader.position());
      size_t begin = 0;
      for (size_t end; (end = buffer.find('\n', std::max(begin, searched))) != std::string::npos; begin = end + 1) {
        Line(std::string_view(buffer).substr(begin, end - begin));
        offset_ += static_cast<int64_t>(end + 1 - begin);
      }
      buffer.erase(0, begin);
      searched = buffer.size();
      if (static_cast<int64_t>(buffer.size()) > kRecordBytesMax) {
        FailLine(file_, line_ + 1,
                 fmt::format("the line is longer than {} MiB; cut the document", kRecordBytesMax >> 20));
      }
    }
    if (!buffer.empty()) Line(buffer);
    batch_.HandOut();
  }

 private:
  void Line(std::string_view line) {
    int64_t offset = offset_;
    if (++line_ == 1 && line.starts_with(kByteOrderMark)) {
      line.remove_prefix(kByteOrderMark.size());
      offset += static_cast<int64_t>(kByteOrderMark.size());
    }
    if (!IsBlank(line)) batch_.Add(line, line_, offset);
  }

  const CorpusFile& file_;
  Batch batch_;
  int64_t line_ = 0;
  int64_t offset_ = 0;  // of the line in the unpacked file
};

class JsonFile {
 public:
  JsonFile(const CorpusFile& file, size_t number, const Sink& sink) : file_(file), batch_(number, sink) {}

  void Read() {
    CorpusReader reader(file_);
    JsonValues values([this](std::string_view value, int64_t line, int64_t offset) { batch_.Add(value, line, offset); },
                      [this](const std::string& why, int64_t line) { FailLine(file_, line, why); });
    std::string buffer;
    while (reader.AppendTo(buffer, kReadBytes)) {
      batch_.set_position(reader.position());
      values.Append(buffer);
      buffer.clear();
    }
    values.Finish();
    batch_.HandOut();
  }

 private:
  const CorpusFile& file_;
  Batch batch_;
};

}  // namespace

void FailUtf8(const CorpusFile& file, int64_t line, int64_t byte, char value) {
  throw UserError(fmt::format("cannot read {} line {}: byte {} (0x{:02x}) is not UTF-8; convert the file to UTF-8",
                              file.path.string(), line, byte, static_cast<unsigned char>(value)));
}

void FailLine(const CorpusFile& file, int64_t line, const std::string& why) {
  throw UserError(fmt::format("cannot read {} line {}: {}", file.path.string(), line, why));
}

void ReadChunks(const CorpusFile& file, size_t number, const ChunkOptions& options, const Sink& sink) {
  switch (file.kind) {
    case CorpusFileKind::kText:
      return TextFile(file, number, options, sink).Read();
    case CorpusFileKind::kJsonLines:
      return JsonLinesFile(file, number, sink).Read();
    case CorpusFileKind::kJson:
      return JsonFile(file, number, sink).Read();
  }
}

}  // namespace longspan::trainer
