#include "worker/trainer/generate/generator.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <span>
#include <utility>

namespace longspan::trainer {
namespace {

// A text under way: its cache lacks only the token that comes next.
struct LiveText {
  size_t index = 0;
  std::unique_ptr<KeyValueCache> cache;
  std::vector<int64_t> next;  // what the next pass reads: the prompt, then one token at a time
};

class Generation {
 public:
  Generation(CausalLm& model, const std::vector<Prompt>& prompts, const GenerationOptions& options,
             const GenerationHooks& hooks, uint64_t first_text)
      : model_(model), prompts_(prompts), options_(options), hooks_(hooks), first_text_(first_text) {
    TORCH_CHECK(options.batch >= 1, "a batch of ", options.batch, " texts");
    TORCH_CHECK(options.stops.empty() || options.decode, "texts to stop at need a decoder");
    result_.texts.resize(prompts.size());
  }

  GenerationResult Run() {
    while (Admit(), !live_.empty()) {
      if (hooks_.stop_requested && hooks_.stop_requested()) {
        result_.stopped = true;
        break;
      }
      Step();
    }
    return std::move(result_);
  }

 private:
  void Admit() {
    while (static_cast<int64_t>(live_.size()) < options_.batch && entered_ < prompts_.size()) {
      const Prompt& prompt = prompts_[entered_];
      TORCH_CHECK(!prompt.tokens.empty() && prompt.max_new_tokens >= 1, "prompt ", entered_,
                  " is empty or wants no new token");
      LiveText text;
      text.index = entered_++;
      // The last new token is never read.
      text.cache =
          std::make_unique<KeyValueCache>(static_cast<int64_t>(prompt.tokens.size()) + prompt.max_new_tokens - 1);
      text.next = prompt.tokens;
      live_.push_back(std::move(text));
    }
  }

  void Step() {
    std::vector<Continuation> sequences;
    sequences.reserve(live_.size());
    for (LiveText& text : live_) sequences.push_back({text.cache.get(), std::move(text.next)});
    at::Tensor logits = model_.Continue(sequences, options_.model);  // (texts, V)
    std::vector<LiveText> going_on;
    for (size_t row = 0; row < live_.size(); ++row) {
      const std::span<float> own(logits.mutable_data_ptr<float>() + static_cast<int64_t>(row) * logits.size(1),
                                 static_cast<size_t>(logits.size(1)));
      if (Take(live_[row], own)) going_on.push_back(std::move(live_[row]));
    }
    live_ = std::move(going_on);
  }

  // Adds the next token; false when the text has ended.
  bool Take(LiveText& text, std::span<float> logits) {
    GeneratedText& generated = result_.texts[text.index];
    const Prompt& prompt = prompts_[text.index];
    const auto count = static_cast<int64_t>(generated.tokens.size());
    if (count < options_.min_new_tokens) {
      for (const int64_t id : options_.end_ids) {
        if (id >= 0 && id < static_cast<int64_t>(logits.size()))
          logits[static_cast<size_t>(id)] = -std::numeric_limits<float>::infinity();
      }
    }
    const int64_t token = ChooseToken(logits, options_.sampling,
                                      {first_text_ + text.index, prompt.tokens.size() + static_cast<uint64_t>(count)});
    if (std::find(options_.end_ids.begin(), options_.end_ids.end(), token) != options_.end_ids.end()) {
      return Finish(text, GeneratedText::End::kEndToken);
    }
    generated.tokens.push_back(token);
    if (HasStop(generated.tokens)) return Finish(text, GeneratedText::End::kStop);
    if (count + 1 >= prompt.max_new_tokens) return Finish(text, GeneratedText::End::kLength);
    text.next = {token};
    return true;
  }

  bool HasStop(const std::vector<int64_t>& tokens) const {
    if (options_.stops.empty()) return false;
    const std::string text = options_.decode(tokens);
    return std::any_of(options_.stops.begin(), options_.stops.end(),
                       [&text](const std::string& stop) { return text.find(stop) != std::string::npos; });
  }

  bool Finish(const LiveText& text, GeneratedText::End end) {
    GeneratedText& generated = result_.texts[text.index];
    generated.end = end;
    if (hooks_.done) hooks_.done(text.index, generated);
    return false;
  }

  CausalLm& model_;
  const std::vector<Prompt>& prompts_;
  const GenerationOptions& options_;
  const GenerationHooks& hooks_;
  const uint64_t first_text_;
  size_t entered_ = 0;
  std::vector<LiveText> live_;
  GenerationResult result_;
};

}  // namespace

GenerationResult Generate(CausalLm& model, const std::vector<Prompt>& prompts, const GenerationOptions& options,
                          const GenerationHooks& hooks, uint64_t first_text) {
  return Generation(model, prompts, options, hooks, first_text).Run();
}

}  // namespace longspan::trainer
