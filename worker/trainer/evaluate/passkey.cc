#include "worker/trainer/evaluate/passkey.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace longspan::trainer {
namespace {

constexpr std::string_view kTask =
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz you "
    "about "
    "the important information there.";
constexpr std::string_view kFiller =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ";
constexpr std::string_view kQuestion = "What is the pass key? The pass key is";
constexpr int64_t kAnswerTokensSpare = 3;  // a blank before the number, and what follows it
constexpr int64_t kLettersPerTokenMax = 64;

std::string Filler(int64_t letters) {
  std::string text;
  text.reserve(static_cast<size_t>(letters));
  while (static_cast<int64_t>(text.size()) < letters)
    text += kFiller.substr(0, static_cast<size_t>(letters) - text.size());
  return text;
}

int64_t TokensOf(const Tokenizer& tokenizer, const std::string& text) {
  return static_cast<int64_t>(PromptTokens(tokenizer, text).size());
}

class PasskeyTask : public GenerationTask {
 public:
  PasskeyTask(const jobfile::PasskeySection& section, int64_t length, uint64_t seed, int64_t answer_tokens,
              int64_t filler_letters)
      : section_(section),
        length_(length),
        seed_(seed),
        answer_tokens_(answer_tokens),
        filler_letters_(filler_letters) {}

  std::string name() const override { return "passkey"; }
  int64_t length() const override { return length_; }
  int64_t examples() const override { return section_.depths * section_.trials; }
  nlohmann::json settings() const override {
    return {{"depths", section_.depths}, {"trials", section_.trials}, {"seed", seed_}};
  }

  std::optional<std::vector<nlohmann::json>> Run(const TaskModel& model, int64_t begin, int64_t end,
                                                 const TaskHooks& hooks) const override {
    std::vector<Prompt> prompts;
    for (int64_t example = begin; example < end; ++example) {
      prompts.push_back({Fitted(*model.tokenizer, DepthOfExample(example), KeyOf(example)), answer_tokens_});
    }
    const auto texts = Answer(model, prompts, {.greedy = true}, begin, hooks);
    if (!texts) return std::nullopt;
    std::vector<nlohmann::json> answers;
    for (int64_t example = begin; example < end; ++example) {
      const size_t index = static_cast<size_t>(example - begin);
      const std::string text = model.decode((*texts)[index].tokens);
      answers.push_back({{"depth", DepthOfExample(example)},
                         {"key", KeyOf(example)},
                         {"prompt_tokens", prompts[index].tokens.size()},
                         {"answer", text},
                         {"right", FirstNumber(text) == KeyOf(example)}});
    }
    return answers;
  }

  nlohmann::json Summarise(const std::vector<nlohmann::json>& answers) const override {
    nlohmann::json depths = nlohmann::json::array();
    int64_t right = 0, prompt_tokens = 0;
    for (int64_t place = 0; place < section_.depths; ++place) {
      int64_t here = 0;
      for (int64_t trial = 0; trial < section_.trials; ++trial) {
        const nlohmann::json& answer = answers.at(static_cast<size_t>(place * section_.trials + trial));
        here += answer.at("right").get<bool>() ? 1 : 0;
        prompt_tokens = std::max(prompt_tokens, answer.at("prompt_tokens").get<int64_t>());
      }
      right += here;
      depths.push_back({{"depth", DepthOf(place, section_.depths)}, {"right", here}, {"trials", section_.trials}});
    }
    return {{"score", 100.0 * static_cast<double>(right) / static_cast<double>(examples())},
            {"depths", depths},
            {"prompt_tokens", prompt_tokens}};
  }

 private:
  double DepthOfExample(int64_t example) const { return DepthOf(example / section_.trials, section_.depths); }
  int64_t KeyOf(int64_t example) const {
    const double uniform = UniformAt(seed_, {static_cast<uint64_t>(length_), static_cast<uint64_t>(example)});
    return 1 + static_cast<int64_t>(uniform * kPasskeyMax);
  }

  // Where the number stands changes the cut of the filler into tokens by one or two.
  std::vector<int64_t> Fitted(const Tokenizer& tokenizer, double depth, int64_t key) const {
    std::vector<int64_t> tokens;
    for (int64_t letters = filler_letters_;; letters = std::max<int64_t>(0, letters - 8)) {
      tokens = PromptTokens(tokenizer, PasskeyText(letters, depth, key));
      if (static_cast<int64_t>(tokens.size()) + answer_tokens_ <= length_ || letters == 0) return tokens;
    }
  }

  const jobfile::PasskeySection section_;
  const int64_t length_;
  const uint64_t seed_;
  const int64_t answer_tokens_;
  const int64_t filler_letters_;
};

}  // namespace

std::string PasskeyText(int64_t filler_letters, double depth, int64_t key) {
  const auto before = static_cast<int64_t>(std::llround(depth * static_cast<double>(filler_letters)));
  return fmt::format("{}\n{}\nThe pass key is {}. Remember it. {} is the pass key.\n{}\n{}", kTask, Filler(before), key,
                     key, Filler(filler_letters - before), kQuestion);
}

double DepthOf(int64_t index, int64_t places) {
  return places <= 1 ? 0.5 : static_cast<double>(index) / static_cast<double>(places - 1);
}

int64_t FirstNumber(std::string_view text) {
  constexpr int64_t kLargest = int64_t{1} << 40;  // longer runs of digits are no number that was asked for
  const size_t begin = text.find_first_of("0123456789");
  if (begin == std::string_view::npos) return -1;
  int64_t number = 0;
  for (const char c : text.substr(begin)) {
    if (c < '0' || c > '9') break;
    number = std::min(kLargest, number * 10 + (c - '0'));
  }
  return number;
}

std::unique_ptr<GenerationTask> MakePasskeyTask(const jobfile::PasskeySection& section, int64_t length, uint64_t seed,
                                                const Tokenizer& tokenizer) {
  const int64_t bare = static_cast<int64_t>(tokenizer.prefix().size());
  const int64_t answer_tokens = TokensOf(tokenizer, std::to_string(kPasskeyMax)) - bare + kAnswerTokensSpare;
  const auto fits = [&](int64_t letters) {
    return TokensOf(tokenizer, PasskeyText(letters, 0.5, kPasskeyMax)) + answer_tokens <= length;
  };
  if (!fits(0)) return nullptr;
  int64_t low = 0, high = 1;
  while (high < length * kLettersPerTokenMax && fits(high)) high *= 2;
  while (low + 1 < high) {
    const int64_t middle = low + (high - low) / 2;
    (fits(middle) ? low : high) = middle;
  }
  return std::make_unique<PasskeyTask>(section, length, seed, answer_tokens, low);
}

}  // namespace longspan::trainer
