#include "worker/trainer/evaluate/generation_task.h"

#include <utility>

namespace longspan::trainer {

std::vector<int64_t> PromptTokens(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<TokenId> ids = tokenizer.prefix();
  MergeCache cache;
  tokenizer.EncodeTo(text, cache, ids);
  return {ids.begin(), ids.end()};
}

std::vector<int64_t> ChatTokens(const RecordEncoder& chat, const SftRecord& record) {
  MergeCache cache;
  const std::vector<TokenId> ids = chat.EncodePrompt(record, cache);
  return {ids.begin(), ids.end()};
}

std::optional<std::vector<GeneratedText>> Answer(const TaskModel& model, const std::vector<Prompt>& prompts,
                                                 const AnswerOptions& options, int64_t first_example,
                                                 const TaskHooks& hooks) {
  GenerationOptions generation;
  generation.model = model.options;
  if (!options.greedy) generation.sampling = {model.generation.temperature, model.generation.top_p, model.seed};
  generation.batch = model.generation.batch;
  generation.end_ids = model.end_ids;
  generation.end_ids.insert(generation.end_ids.end(), options.end_ids.begin(), options.end_ids.end());
  generation.min_new_tokens = options.min_new_tokens;
  generation.stops = options.stops;
  generation.decode = model.decode;
  GenerationHooks generation_hooks;
  generation_hooks.stop_requested = hooks.stop_requested;
  generation_hooks.done = [&hooks](size_t, const GeneratedText&) {
    if (hooks.example_done) hooks.example_done();
  };
  GenerationResult result =
      Generate(*model.model, prompts, generation, generation_hooks, static_cast<uint64_t>(first_example));
  if (result.stopped) return std::nullopt;
  return std::move(result.texts);
}

}  // namespace longspan::trainer
