#include "worker/trainer/data/normalizer.h"

#include <fmt/format.h>

#include <algorithm>

#include "worker/trainer/data/pattern.h"
#include "worker/trainer/data/text_normalization.h"
#include "worker/trainer/data/unicode_classes.h"

namespace longspan::trainer {
namespace {

class FormStep : public NormalizeStep {
 public:
  explicit FormStep(NormalizationForm form) : form_(form) {}
  void Append(std::string_view text, std::string& out) const override { AppendNormalized(form_, text, out); }

 private:
  NormalizationForm form_;
};

class LowerCaseStep : public NormalizeStep {
 public:
  void Append(std::string_view text, std::string& out) const override { AppendLowerCase(text, out); }
};

class StripAccentsStep : public NormalizeStep {
 public:
  void Append(std::string_view text, std::string& out) const override { AppendWithoutMarks(text, out); }
};

class StripStep : public NormalizeStep {
 public:
  StripStep(bool left, bool right) : left_(left), right_(right) {}
  void Append(std::string_view text, std::string& out) const override {
    size_t begin = 0;
    size_t end = text.size();
    if (left_) begin = EndOfSpacesBehind(text, 0);
    if (right_) end = StartOfSpacesBefore(text, end, begin);
    out.append(text.substr(begin, end - begin));
  }
  bool KeepsLetterNewline() const override { return false; }

 private:
  bool left_;
  bool right_;
};

class PrependStep : public NormalizeStep {
 public:
  explicit PrependStep(std::string front) : front_(std::move(front)) {}
  void Append(std::string_view text, std::string& out) const override {
    if (!text.empty()) out.append(front_).append(text);
  }
  bool prepends() const override { return true; }

 private:
  std::string front_;
};

class ReplaceStep : public NormalizeStep {
 public:
  ReplaceStep(std::string literal, std::string content) : literal_(std::move(literal)), content_(std::move(content)) {}
  void Append(std::string_view text, std::string& out) const override {
    for (size_t at = 0;;) {
      const size_t found = text.find(literal_, at);
      out.append(text.substr(at, found - at));
      if (found == std::string_view::npos) return;
      out.append(content_);
      at = found + literal_.size();
    }
  }
  bool KeepsLetterNewline() const override {
    return std::none_of(literal_.begin(), literal_.end(), [](char c) { return c == '\n' || IsAsciiLetter(c); });
  }

 private:
  std::string literal_;
  std::string content_;
};

class ReplacePatternStep : public NormalizeStep {
 public:
  ReplacePatternStep(const JsonPlace& pattern, std::string content) : pattern_(pattern), content_(std::move(content)) {}
  void Append(std::string_view text, std::string& out) const override {
    Pattern::Search search(pattern_, text);
    size_t done = 0;
    while (const auto match = search.Next()) {
      out.append(text.substr(done, match->begin - done)).append(content_);
      done = match->end;
    }
    out.append(text.substr(done));
  }
  bool KeepsLetterNewline() const override { return false; }

 private:
  Pattern pattern_;
  std::string content_;
};

std::unique_ptr<NormalizeStep> ParseReplace(const JsonPlace& replace) {
  const JsonPlace pattern = replace.At("pattern");
  std::string content = replace.At("content").String();
  if (const auto literal = pattern.Find("String")) {
    if (literal->String().empty()) literal->Fail(literal->path() + " is empty; Replace needs something to look for");
    return std::make_unique<ReplaceStep>(literal->String(), std::move(content));
  }
  return std::make_unique<ReplacePatternStep>(pattern.At("Regex"), std::move(content));
}

void ParseInto(const JsonPlace& place, std::vector<std::unique_ptr<NormalizeStep>>& steps) {
  const std::string type = place.Type();
  if (type == "Sequence") {
    for (const JsonPlace& member : place.At("normalizers").Elements()) ParseInto(member, steps);
  } else if (type == "NFC") {
    steps.push_back(std::make_unique<FormStep>(NormalizationForm::kNfc));
  } else if (type == "NFD") {
    steps.push_back(std::make_unique<FormStep>(NormalizationForm::kNfd));
  } else if (type == "NFKC") {
    steps.push_back(std::make_unique<FormStep>(NormalizationForm::kNfkc));
  } else if (type == "NFKD") {
    steps.push_back(std::make_unique<FormStep>(NormalizationForm::kNfkd));
  } else if (type == "Lowercase") {
    steps.push_back(std::make_unique<LowerCaseStep>());
  } else if (type == "StripAccents") {
    steps.push_back(std::make_unique<StripAccentsStep>());
  } else if (type == "Strip") {
    steps.push_back(std::make_unique<StripStep>(place.At("strip_left").Bool(), place.At("strip_right").Bool()));
  } else if (type == "Prepend") {
    steps.push_back(std::make_unique<PrependStep>(place.At("prepend").String()));
  } else if (type == "Replace") {
    steps.push_back(ParseReplace(place));
  } else {
    place.Fail(
        fmt::format("the normalizer {} ({}) is not supported; NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Strip, "
                    "Prepend, Replace and Sequence are",
                    type, place.path()));
  }
}

}  // namespace

Normalizer Normalizer::Parse(const std::optional<JsonPlace>& description) {
  Normalizer result;
  if (description) ParseInto(*description, result.steps_);
  return result;
}

std::string_view Normalizer::Normalize(std::string_view text, std::string& buffer) const {
  std::string previous;
  for (size_t i = 0; i < steps_.size(); ++i) {
    if (i > 0) {
      previous.swap(buffer);
      text = previous;
    }
    buffer.clear();
    steps_[i]->Append(text, buffer);
  }
  return steps_.empty() ? text : std::string_view(buffer);
}

bool Normalizer::KeepsLetterNewline() const {
  return std::all_of(steps_.begin(), steps_.end(), [](const auto& step) { return step->KeepsLetterNewline(); });
}

bool Normalizer::prepends() const {
  return std::any_of(steps_.begin(), steps_.end(), [](const auto& step) { return step->prepends(); });
}

}  // namespace longspan::trainer
