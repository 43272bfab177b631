#include "proto/jobfile/text_lines.h"

#include <algorithm>

namespace longspan::jobfile {
namespace {

// Deeper keys are no keys of ours; their lines would only cost memory.
constexpr size_t kDepthMax = 4;

// One open object or array.
struct Level {
  bool is_object = false;
  bool expects_key = false;
  std::string path;  // of the object itself
  std::string key;   // last one seen
};

class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  TextLines Scan() {
    while (position_ < text_.size()) Take(text_[position_]);
    return std::move(result_);
  }

 private:
  void Take(char c) {
    if (c == '"') return TakeString();
    ++position_;
    if (c == '\n') ++line_;
    if (c == '{') Open(true);
    if (c == '[') Open(false);
    if ((c == '}' || c == ']') && !levels_.empty()) levels_.pop_back();
    if (c == ',' && !levels_.empty()) levels_.back().expects_key = levels_.back().is_object;
  }

  void Open(bool is_object) {
    Level level{is_object, is_object, "", ""};
    if (!levels_.empty() && levels_.size() <= kDepthMax && levels_.back().is_object)
      level.path = PathOf(levels_.back().key);
    levels_.push_back(std::move(level));
  }

  std::string PathOf(const std::string& key) const {
    const std::string& outer = levels_.back().path;
    return outer.empty() ? key : outer + "." + key;
  }

  void TakeString() {
    const size_t begin = ++position_;
    while (position_ < text_.size() && text_[position_] != '"') position_ += text_[position_] == '\\' ? 2 : 1;
    const size_t end = std::min(position_, text_.size());
    position_ = end + 1;
    if (levels_.empty() || !levels_.back().expects_key) return;
    levels_.back().expects_key = false;
    levels_.back().key = std::string(text_.substr(begin, end - begin));
    if (levels_.size() > kDepthMax) return;
    const std::string path = PathOf(levels_.back().key);
    if (!result_.line_of.emplace(path, line_).second && IsInObjects()) result_.repeated_keys.emplace_back(path, line_);
  }

  // Objects within arrays share a path, so the same key in two of them is no repetition.
  bool IsInObjects() const {
    return std::all_of(levels_.begin(), levels_.end(), [](const Level& level) { return level.is_object; });
  }

  std::string_view text_;
  size_t position_ = 0;
  int line_ = 1;
  std::vector<Level> levels_;
  TextLines result_;
};

}  // namespace

TextLines ScanLines(std::string_view json_text) { return Scanner(json_text).Scan(); }

}  // namespace longspan::jobfile
