#include "worker/trainer/evaluate/scores.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <set>

#include "worker/trainer/evaluate/text_words.h"

namespace longspan::trainer {
namespace {

std::vector<std::string> AnswerWords(std::string_view text) {
  return SplitAtWhiteSpace(WithoutWords(WithoutPunctuation(LowerCase(text)), {"a", "an", "the"}));
}

using Words = std::vector<std::string>;

// The sentences of a text as `rouge` sees them: what lies between full stops, unless it is nothing. White space alone
// is a sentence of one empty word.
std::vector<Words> Sentences(std::string_view text) {
  std::vector<Words> sentences;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('.', begin), text.size());
    if (end > begin) {
      Words words = SplitAtWhiteSpace(text.substr(begin, end - begin));
      if (words.empty()) words.emplace_back();
      sentences.push_back(std::move(words));
    }
    begin = end + 1;
  }
  return sentences;
}

// table[i][j]: length of the longest common subsequence of the first i of `a` and the first j of `b`.
template <typename Sequence>
std::vector<std::vector<int32_t>> CommonLengths(const Sequence& a, const Sequence& b) {
  std::vector<std::vector<int32_t>> table(a.size() + 1, std::vector<int32_t>(b.size() + 1, 0));
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      table[i][j] = a[i - 1] == b[j - 1] ? table[i - 1][j - 1] + 1 : std::max(table[i - 1][j], table[i][j - 1]);
    }
  }
  return table;
}

// Adds the words of one longest common subsequence; of several, the one that the package finds.
void AddCommonWords(const Words& reference, const Words& candidate, std::set<std::string>* found) {
  const auto table = CommonLengths(reference, candidate);
  for (size_t i = reference.size(), j = candidate.size(); i > 0 && j > 0;) {
    if (reference[i - 1] == candidate[j - 1]) {
      found->insert(reference[i - 1]);
      --i;
      --j;
    } else if (table[i - 1][j] > table[i][j - 1]) {
      --i;
    } else {
      --j;
    }
  }
}

double DistinctWords(const std::vector<Words>& sentences) {
  std::set<std::string> words;
  for (const Words& sentence : sentences) words.insert(sentence.begin(), sentence.end());
  return static_cast<double>(words.size());
}

double ShareOf(const std::string& number, const std::vector<std::string>& numbers) {
  if (numbers.empty()) return 0;
  return static_cast<double>(std::count(numbers.begin(), numbers.end(), number)) / static_cast<double>(numbers.size());
}

// The first line without '`', '#' or "//"; empty when there is none.
std::string_view FirstCodeLine(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    if (line.find_first_of("`#") == std::string_view::npos && line.find("//") == std::string_view::npos) return line;
    begin = end + 1;
  }
  return {};
}

// The characters that two texts share in the sense of Python's difflib: the longest stretch that both have, and the
// same again to the left and to the right of it. Of a second text of 200 characters or more, those that make up more
// than about a hundredth of it begin no stretch.
class SharedStretches {
 public:
  SharedStretches(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) : a_(a), b_(b) {
    for (size_t j = 0; j < b.size(); ++j) places_[b[j]].push_back(j);
    if (b.size() < 200) return;
    const size_t places_max = b.size() / 100 + 1;
    std::erase_if(places_, [places_max](const auto& item) { return item.second.size() > places_max; });
  }

  int64_t Characters() const {
    int64_t characters = 0;
    std::vector<Range> open = {{0, a_.size(), 0, b_.size()}};
    while (!open.empty()) {
      const Range range = open.back();
      open.pop_back();
      const Stretch found = Longest(range);
      if (found.size == 0) continue;
      characters += static_cast<int64_t>(found.size);
      open.push_back({range.a_begin, found.a, range.b_begin, found.b});
      open.push_back({found.a + found.size, range.a_end, found.b + found.size, range.b_end});
    }
    return characters;
  }

 private:
  struct Range {
    size_t a_begin, a_end, b_begin, b_end;
  };
  struct Stretch {
    size_t a, b, size;
  };

  // Of equally long ones the first in `a`, then the first in `b`.
  Stretch Longest(const Range& range) const {
    Stretch best = {range.a_begin, range.b_begin, 0};
    std::map<size_t, size_t> sizes;  // of the stretches that end at a character of b and the last one of a
    for (size_t i = range.a_begin; i < range.a_end; ++i) {
      std::map<size_t, size_t> next;
      const auto places = places_.find(a_[i]);
      for (size_t p = 0; places != places_.end() && p < places->second.size(); ++p) {
        const size_t j = places->second[p];
        if (j < range.b_begin) continue;
        if (j >= range.b_end) break;
        const auto before = j > 0 ? sizes.find(j - 1) : sizes.end();
        const size_t size = (before == sizes.end() ? 0 : before->second) + 1;
        next[j] = size;
        if (size > best.size) best = {i + 1 - size, j + 1 - size, size};
      }
      sizes = std::move(next);
    }
    while (best.a > range.a_begin && best.b > range.b_begin && a_[best.a - 1] == b_[best.b - 1]) {
      --best.a;
      --best.b;
      ++best.size;
    }
    while (best.a + best.size < range.a_end && best.b + best.size < range.b_end &&
           a_[best.a + best.size] == b_[best.b + best.size]) {
      ++best.size;
    }
    return best;
  }

  const std::vector<uint32_t>& a_;
  const std::vector<uint32_t>& b_;
  std::map<uint32_t, std::vector<size_t>> places_;  // in b, rising
};

}  // namespace

double QuestionAnswerF1(std::string_view prediction, std::string_view truth) {
  const Words predicted = AnswerWords(prediction), right = AnswerWords(truth);
  std::map<std::string, int64_t> left;
  for (const std::string& word : right) ++left[word];
  int64_t same = 0;
  for (const std::string& word : predicted) {
    const auto found = left.find(word);
    if (found == left.end() || found->second == 0) continue;
    --found->second;
    ++same;
  }
  if (same == 0) return 0;
  const double precision = static_cast<double>(same) / static_cast<double>(predicted.size());
  const double recall = static_cast<double>(same) / static_cast<double>(right.size());
  return 2 * precision * recall / (precision + recall);
}

double RougeL(std::string_view prediction, std::string_view truth) {
  const std::vector<Words> candidate = Sentences(prediction), reference = Sentences(truth);
  if (candidate.empty() || reference.empty()) return 0;
  std::set<std::string> common;
  for (const Words& right : reference) {
    for (const Words& said : candidate) AddCommonWords(right, said, &common);
  }
  const double precision = static_cast<double>(common.size()) / DistinctWords(candidate);
  const double recall = static_cast<double>(common.size()) / DistinctWords(reference);
  return 2.0 * ((precision * recall) / (precision + recall + 1e-8));
}

double ClassificationScore(std::string_view prediction, std::string_view truth,
                           const std::vector<std::string>& classes) {
  std::vector<std::string> found;
  for (const std::string& name : classes) {
    if (prediction.find(name) != std::string_view::npos) found.push_back(name);
  }
  // Names that are only a part of the right one go. The original takes them out of the list it walks over, so the name
  // behind one that went is never looked at; the published numbers are made that way.
  for (size_t i = 0; i < found.size(); ++i) {
    if (truth.find(found[i]) == std::string_view::npos || found[i] == truth) continue;
    found.erase(std::find(found.begin(), found.end(), std::string(found[i])));
  }
  const bool right = std::find(found.begin(), found.end(), truth) != found.end();
  return right ? 1.0 / static_cast<double>(found.size()) : 0.0;
}

double CountScore(std::string_view prediction, std::string_view truth) {
  return ShareOf(std::string(truth), NumbersIn(prediction));
}

double RetrievalScore(std::string_view prediction, std::string_view truth, std::string_view prefix) {
  for (size_t at = truth.find(prefix); at != std::string_view::npos; at = truth.find(prefix, at + 1)) {
    const std::string_view rest = truth.substr(at + prefix.size());
    const std::vector<std::string> numbers = NumbersIn(rest);
    if (!numbers.empty() && rest.starts_with(numbers.front())) return ShareOf(numbers.front(), NumbersIn(prediction));
  }
  return 0;
}

double CodeSimilarity(std::string_view prediction, std::string_view truth) {
  const std::vector<uint32_t> said = CodePoints(FirstCodeLine(prediction)), right = CodePoints(truth);
  if (said == right) return 1;  // both empty too
  const double ratio = 2.0 * static_cast<double>(SharedStretches(said, right).Characters()) /
                       static_cast<double>(said.size() + right.size());
  return std::nearbyint(100 * ratio) / 100;  // Python rounds halves to even, as nearbyint does
}

}  // namespace longspan::trainer
