#include "worker/trainer/data/documents.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "worker/trainer/data/prepare.h"
#include "worker/trainer/data/tokenizer.h"
#include "worker/trainer/errors.h"

namespace longspan::trainer {
namespace {

constexpr size_t kReadBytes = 1 << 20;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

[[noreturn]] void FailUtf8(const CorpusFile& file, int64_t line, int64_t byte, char value) {
  throw UserError(fmt::format("cannot read {} line {}: byte {} (0x{:02x}) is not UTF-8; convert the file to UTF-8",
                              file.path.string(), line, byte, static_cast<unsigned char>(value)));
}

bool IsAsciiLetter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

// Streams a text file: keeps what it has not handed out, and remembers how much of that it has looked at.
class TextFile {
 public:
  TextFile(const CorpusFile& file, const DocumentOptions& options, DocumentSink& sink)
      : file_(file), options_(options), sink_(sink) {}

  void Read() {
    CorpusReader reader(file_);
    while (reader.AppendTo(buffer_, kReadBytes)) {
      if (dropped_ == 0 && buffer_.starts_with(kByteOrderMark) && checked_ == 0) Drop(kByteOrderMark.size());
      CheckUtf8(false);
      if (options_.may_cut) HandOutWholeLines();
      sink_.Position(reader.position());
    }
    CheckUtf8(true);
    if (!buffer_.empty()) sink_.Text(buffer_);
    sink_.EndDocument();
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
      sink_.Text(std::string_view(buffer_).substr(0, newline));
      Drop(newline);
      break;
    }
    searched_ = checked_;
  }

  void Drop(size_t bytes) {
    dropped_lines_ += std::count(buffer_.begin(), buffer_.begin() + static_cast<ptrdiff_t>(bytes), '\n');
    dropped_ += static_cast<int64_t>(bytes);
    buffer_.erase(0, bytes);
    checked_ -= std::min(checked_, bytes);
  }

  const CorpusFile& file_;
  const DocumentOptions& options_;
  DocumentSink& sink_;
  std::string buffer_;
  size_t checked_ = 0;   // this much of the buffer is UTF-8
  size_t searched_ = 0;  // no place to cut before this
  int64_t dropped_ = 0;  // bytes of the file before the buffer
  int64_t dropped_lines_ = 0;
};

class JsonLinesFile {
 public:
  JsonLinesFile(const CorpusFile& file, const DocumentOptions& options, DocumentSink& sink)
      : file_(file), options_(options), sink_(sink) {}

  void Read() {
    CorpusReader reader(file_);
    std::string buffer;
    size_t searched = 0;  // no '\n' before this
    while (reader.AppendTo(buffer, kReadBytes)) {
      size_t begin = 0;
      for (size_t end; (end = buffer.find('\n', std::max(begin, searched))) != std::string::npos; begin = end + 1) {
        Line(std::string_view(buffer).substr(begin, end - begin));
        offset_ += static_cast<int64_t>(end + 1 - begin);
      }
      buffer.erase(0, begin);
      searched = buffer.size();
      if (static_cast<int64_t>(buffer.size()) > kDocumentLineBytesMax) {
        Fail(fmt::format("the line is longer than {} MiB; cut the document", kDocumentLineBytesMax >> 20), line_ + 1);
      }
      sink_.Position(reader.position());
    }
    if (!buffer.empty()) Line(buffer);
  }

 private:
  [[noreturn]] void Fail(const std::string& why, int64_t line) const {
    throw UserError(fmt::format("cannot read {} line {}: {}", file_.path.string(), line, why));
  }

  void Line(std::string_view line) {
    ++line_;
    if (const auto at = FindInvalidUtf8(line)) FailUtf8(file_, line_, offset_ + static_cast<int64_t>(*at), line[*at]);
    if (line_ == 1 && line.starts_with(kByteOrderMark)) line.remove_prefix(kByteOrderMark.size());
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) return;
    const std::string text = TextOf(line);
    if (!text.empty()) sink_.Text(text);
    sink_.EndDocument();
  }

  std::string TextOf(std::string_view line) const {
    nlohmann::json record;
    try {
      record = nlohmann::json::parse(line);
    } catch (const nlohmann::json::exception& error) {
      Fail(fmt::format("it is not JSON: {}", WithoutPrefix(error.what())), line_);
    }
    if (!record.is_object()) Fail(fmt::format("a JSON {} stands where an object is needed", record.type_name()), line_);
    const auto field = record.find(options_.text_field);
    if (field == record.end()) Fail(fmt::format("\"{}\" is missing{}", options_.text_field, Hint(record)), line_);
    if (!field->is_string()) {
      Fail(fmt::format("\"{}\" is a {}; a string is needed", options_.text_field, field->type_name()), line_);
    }
    return std::move(field->get_ref<std::string&>());
  }

  static std::string Hint(const nlohmann::json& record) {
    if (record.contains("messages")) return "; the record looks like chat data, which is not supported yet";
    if (record.contains("instruction")) return "; the record looks like instruction data, which is not supported yet";
    std::string names;
    for (const auto& [name, value] : record.items()) {
      if (value.is_string() && names.size() < 200) names += (names.empty() ? "" : ", ") + name;
    }
    return names.empty() ? "" : "; data.text_field may name another field: the record has " + names;
  }

  // nlohmann's messages begin with "[json.exception.parse_error.101] ".
  static std::string WithoutPrefix(std::string_view message) {
    const size_t end = message.find("] ");
    return std::string(end == std::string_view::npos ? message : message.substr(end + 2));
  }

  const CorpusFile& file_;
  const DocumentOptions& options_;
  DocumentSink& sink_;
  int64_t line_ = 0;
  int64_t offset_ = 0;  // of the line in the unpacked file
};

}  // namespace

void ReadDocuments(const CorpusFile& file, const DocumentOptions& options, DocumentSink& sink) {
  switch (file.kind) {
    case CorpusFileKind::kText:
      return TextFile(file, options, sink).Read();
    case CorpusFileKind::kJsonLines:
      return JsonLinesFile(file, options, sink).Read();
  }
}

}  // namespace longspan::trainer
