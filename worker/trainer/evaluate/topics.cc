#include "worker/trainer/evaluate/topics.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "worker/trainer/evaluate/text_words.h"

namespace longspan::trainer {
namespace {

// Every pair of these is a topic.
constexpr std::string_view kKinds[] = {"history",  "future",  "cost",  "beauty", "science",   "politics", "teaching",
                                       "dangers",  "sound",   "smell", "origin", "geography", "language", "economy",
                                       "craft",    "weather", "music", "myths",  "rules",     "tools",    "heroes",
                                       "medicine", "ethics",  "maths", "food",   "fashion",   "sports",   "poetry",
                                       "crime",    "labour",  "play",  "war"};
constexpr std::string_view kThings[] = {
    "rivers",  "clocks",   "gardens", "bridges",     "islands", "glass",   "bread",    "horses",
    "maps",    "trains",   "bees",    "lighthouses", "deserts", "paper",   "salt",     "violins",
    "castles", "whales",   "tea",     "comets",      "forests", "markets", "balloons", "coins",
    "snow",    "theatres", "silk",    "volcanoes",   "kites",   "wells",   "pearls",   "windmills"};
constexpr std::string_view kFiller[] = {"That is a wide field, and people have thought about it for a long time.",
                                        "There are many books on it, and not all of them agree.",
                                        "One should look at several sides before one makes up one's mind.",
                                        "It depends very much on the place and on the time of the year.",
                                        "Some of it can be learned quickly, and some of it takes years.",
                                        "I can say more about that if you like."};
constexpr int64_t kAnswerTokensSpare = 8;

std::string Ordinal(int64_t number) {
  const int64_t last = number % 100 / 10 == 1 ? 0 : number % 10;
  return fmt::format("{}{}", number, last == 1 ? "st" : last == 2 ? "nd" : last == 3 ? "rd" : "th");
}

int64_t CountTokens(const Tokenizer& tokenizer, const std::string& text) {
  return static_cast<int64_t>(PromptTokens(tokenizer, text).size());
}

class TopicsTask : public GenerationTask {
 public:
  TopicsTask(const jobfile::TopicsSection& section, int64_t length, uint64_t seed, int64_t answer_tokens,
             int64_t filler_sentences)
      : section_(section),
        length_(length),
        seed_(seed),
        answer_tokens_(answer_tokens),
        filler_sentences_(filler_sentences) {}

  std::string name() const override { return "topics"; }
  int64_t length() const override { return length_; }
  int64_t examples() const override { return section_.trials; }
  nlohmann::json settings() const override {
    return {{"topics", section_.topics}, {"trials", section_.trials}, {"seed", seed_}};
  }

  std::optional<std::vector<nlohmann::json>> Run(const TaskModel& model, int64_t begin, int64_t end,
                                                 const TaskHooks& hooks) const override {
    std::vector<Prompt> prompts;
    for (int64_t trial = begin; trial < end; ++trial) {
      prompts.push_back({Fitted(*model.tokenizer, Topics(trial), Asked(trial)), answer_tokens_});
    }
    const auto texts = Answer(model, prompts, {.greedy = true}, begin, hooks);
    if (!texts) return std::nullopt;
    std::vector<nlohmann::json> answers;
    for (int64_t trial = begin; trial < end; ++trial) {
      const size_t index = static_cast<size_t>(trial - begin);
      const std::vector<std::string> topics = Topics(trial);
      const std::string text = model.decode((*texts)[index].tokens);
      answers.push_back({{"asked", Asked(trial) + 1},
                         {"topic", topics[static_cast<size_t>(Asked(trial))]},
                         {"prompt_tokens", prompts[index].tokens.size()},
                         {"answer", text},
                         {"right", NamesOnly(text, topics, Asked(trial))}});
    }
    return answers;
  }

  nlohmann::json Summarise(const std::vector<nlohmann::json>& answers) const override {
    int64_t right = 0, prompt_tokens = 0;
    for (const nlohmann::json& answer : answers) {
      right += answer.at("right").get<bool>() ? 1 : 0;
      prompt_tokens = std::max(prompt_tokens, answer.at("prompt_tokens").get<int64_t>());
    }
    return {{"score", 100.0 * static_cast<double>(right) / static_cast<double>(examples())},
            {"topics", section_.topics},
            {"prompt_tokens", prompt_tokens}};
  }

 private:
  std::vector<std::string> Topics(int64_t trial) const {
    return DrawTopics(section_.topics, seed_, static_cast<uint64_t>(trial));
  }
  int64_t Asked(int64_t trial) const { return trial * section_.topics / section_.trials; }

  // Other names have other lengths.
  std::vector<int64_t> Fitted(const Tokenizer& tokenizer, const std::vector<std::string>& topics, int64_t asked) const {
    for (int64_t sentences = filler_sentences_;; --sentences) {
      std::vector<int64_t> tokens = PromptTokens(tokenizer, TopicsText(topics, asked, sentences));
      if (static_cast<int64_t>(tokens.size()) + answer_tokens_ <= length_ || sentences == 0) return tokens;
    }
  }

  const jobfile::TopicsSection section_;
  const int64_t length_;
  const uint64_t seed_;
  const int64_t answer_tokens_;
  const int64_t filler_sentences_;
};

}  // namespace

std::vector<std::string> DrawTopics(int64_t count, uint64_t seed, uint64_t trial) {
  constexpr uint64_t kKindCount = std::size(kKinds), kThingCount = std::size(kThings);
  std::vector<std::string> topics;
  // There are more pairs than a job may ask for, so this ends.
  for (uint64_t draw = 0; static_cast<int64_t>(topics.size()) < count; ++draw) {
    const double uniform = UniformAt(seed ^ 0x746F70696373u, {trial, draw});
    const auto pair = static_cast<uint64_t>(uniform * static_cast<double>(kKindCount * kThingCount));
    std::string topic = fmt::format("the {} of {}", kKinds[pair % kKindCount], kThings[pair / kKindCount]);
    if (std::find(topics.begin(), topics.end(), topic) == topics.end()) topics.push_back(std::move(topic));
  }
  return topics;
}

std::string TopicsText(const std::vector<std::string>& topics, int64_t asked, int64_t filler_sentences) {
  std::string text =
      fmt::format("A user and an assistant talk about {} topics, one after the other. Remember them in their order.\n",
                  topics.size());
  const auto count = static_cast<int64_t>(topics.size());
  int64_t sentence = 0;
  for (int64_t index = 0; index < count; ++index) {
    text += fmt::format("USER: I would like to talk about {}.\nASSISTANT: Gladly, let us talk about {}.",
                        topics[static_cast<size_t>(index)], topics[static_cast<size_t>(index)]);
    for (; sentence < filler_sentences * (index + 1) / count; ++sentence) {
      text += ' ';
      text += kFiller[static_cast<size_t>(sentence) % std::size(kFiller)];
    }
    text += '\n';
  }
  return text + fmt::format(
                    "USER: What was the {} topic that we talked about? Give only its name.\nASSISTANT: The {} "
                    "topic was",
                    Ordinal(asked + 1), Ordinal(asked + 1));
}

bool NamesOnly(std::string_view answer, const std::vector<std::string>& topics, int64_t asked) {
  answer.remove_prefix(std::min(answer.find_first_not_of(" \n"), answer.size()));
  const std::string line = LowerCase(answer.substr(0, answer.find('\n')));
  for (size_t index = 0; index < topics.size(); ++index) {
    const bool named = line.find(topics[index].substr(4)) != std::string::npos;  // without "the "
    if (named != (static_cast<int64_t>(index) == asked)) return false;
  }
  return true;
}

std::unique_ptr<GenerationTask> MakeTopicsTask(const jobfile::TopicsSection& section, int64_t length, uint64_t seed,
                                               const Tokenizer& tokenizer) {
  const std::vector<std::string> topics = DrawTopics(section.topics, seed, 0);
  int64_t answer_tokens = 0;
  for (const std::string& topic : topics) answer_tokens = std::max(answer_tokens, CountTokens(tokenizer, topic));
  answer_tokens += kAnswerTokensSpare;
  const auto fits = [&](int64_t sentences) {
    return CountTokens(tokenizer, TopicsText(topics, section.topics - 1, sentences)) + answer_tokens <= length;
  };
  if (!fits(0)) return nullptr;
  int64_t low = 0, high = 1;
  while (high < length && fits(high)) high *= 2;
  while (low + 1 < high) {
    const int64_t middle = low + (high - low) / 2;
    (fits(middle) ? low : high) = middle;
  }
  return std::make_unique<TopicsTask>(section, length, seed, answer_tokens, low);
}

}  // namespace longspan::trainer
