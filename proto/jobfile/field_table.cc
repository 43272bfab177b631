#include "proto/jobfile/field_table.h"

#include <algorithm>

#include "proto/jobfile/field_checks.h"
#include "proto/jobfile/field_row.h"

namespace longspan::jobfile {
namespace {

using nlohmann::json;

constexpr int64_t kCountMax = 1'000'000'000;

// A section that may be absent: made by the first key that is read, its defaults shown while it is not there.
RopeSection& RopeOf(JobSpec& spec) { return spec.rope ? *spec.rope : spec.rope.emplace(); }
const RopeSection& RopeOf(const JobSpec& spec) {
  static const RopeSection defaults;
  return spec.rope ? *spec.rope : defaults;
}

// An optional member of the rope section.
#define IN_ROPE(member) [](auto& spec) -> auto& { return RopeOf(spec).member; }
#define AT(member) [](auto& spec) -> auto& { return spec.member; }

const Range kAtLeast0 = {0, static_cast<double>(kCountMax)};
const Range kAtLeast1 = {1, static_cast<double>(kCountMax)};
const Range kTokens = {1, static_cast<double>(kTokensMax)};

void AddSubjectRows(std::vector<Field>& rows) {
  rows.push_back(
      Row("kind", "What the job does: extend a model, or only measure one.", AT(kind)).IgnoredByProbe().Build());
  rows.push_back(Row("name", "Name for people; need not be unique.", AT(name))
                     .Required(false)
                     .Checked(kNameRule, AT(name), CheckName)
                     .Build());
  rows.push_back(
      Row("queue", "Queue the job waits in.", AT(queue)).Checked("a name as above", AT(queue), CheckName).Build());
  rows.push_back(Row("priority", "Higher runs first.", AT(priority)).In({0, 100}).Build());
  rows.push_back(Row("labels", "Free labels for filters.", AT(labels))
                     .Checked("at most 64, values of at most 255 bytes", AT(labels), CheckLabels)
                     .Build());
  rows.push_back(Row("model.path", "Hugging Face folder of the model to extend.", AT(model.path))
                     .Required(true)
                     .Checked("", AT(model.path), CheckNotEmpty)
                     .Build());
  rows.push_back(
      Row("model.init", "Where the weights come from; random needs only config.json and the tokenizer.", AT(model.init))
          .Build());
  rows.push_back(
      Row("data.sources", "Files or folders to train on; of kind evaluate, all of it is measured.", AT(data.sources))
          .Required(false)
          .OptionalForEvaluation()
          .Checked("at least one", AT(data.sources), CheckSources)
          .Build());
  rows.push_back(Row("data.format", "What a record is.", AT(data.format)).Absent("by content").Build());
  rows.push_back(Row("data.text_field", "Field of a .jsonl record that holds the text.", AT(data.text_field))
                     .Checked("", AT(data.text_field), CheckNotEmpty)
                     .Build());
  rows.push_back(Row("data.holdout_fraction", "Share of the tokens that is kept for evaluation and never trained on.",
                     AT(data.holdout_fraction))
                     .In({0, 0.5})
                     .Build());
  rows.push_back(
      Row("data.packing", "Whether documents keep their borders; false joins them.", AT(data.packing)).Build());
  rows.push_back(Row("data.bucketing", "Whether a batch has sequences of similar length; not with joined documents.",
                     AT(data.bucketing))
                     .Build());
  rows.push_back(Row("data.template", "How instructions and chats are written as text.", AT(data.chat_template))
                     .Absent("the model's own where it is one of these")
                     .Build());
  rows.push_back(Row("context_length",
                     "How long a text the extended model is to read; of kind evaluate the model's own.",
                     AT(context_length))
                     .Unit("tokens")
                     .Required(true)
                     .OptionalForEvaluation()
                     .In({2, static_cast<double>(kTokensMax)})
                     .Build());
}

void AddMethodRows(std::vector<Field>& rows) {
  rows.push_back(
      Row("attention.kind", "Attention during training; evaluation is always full.", AT(attention.kind)).Build());
  rows.push_back(Row("attention.group_size", "Size of an S2 group; excludes group_ratio.", AT(attention.group_size))
                     .Unit("tokens")
                     .Absent("from group_ratio")
                     .In(kTokens)
                     .Build());
  rows.push_back(
      Row("attention.group_ratio", "Size of an S2 group as part of context_length.", AT(attention.group_ratio))
          .Absent("0.25, when group_size is absent too")
          .In({0, 1, true})
          .Build());
  rows.push_back(Row("attention.edge",
                     "Whether the last shifted S2 group also sees the first half group, as in the paper's picture.",
                     AT(attention.edge))
                     .Build());
  rows.push_back(Row("method.kind", "Which weights train.", AT(method.kind)).Build());
  rows.push_back(
      Row("method.rank", "Rank of A and B.", AT(method.rank)).Absent("8, or the adapter's").In({1, 65536}).Build());
  rows.push_back(Row("method.alpha", "The update is scaled by alpha / rank.", AT(method.alpha))
                     .Absent("16, or the adapter's")
                     .In({0, kInfinity, true})
                     .Build());
  rows.push_back(
      Row("method.dropout", "Dropout on the input of A.", AT(method.dropout)).In({0, 1, false, true}).Build());
  rows.push_back(
      Row("method.targets", "Linear layers that get A and B, by the last part of their names.", AT(method.targets))
          .Absent("q_proj k_proj v_proj o_proj, or the adapter's")
          .Checked("", AT(method.targets), CheckTargets)
          .Build());
  rows.push_back(Row("method.adapter", "PEFT folder to start from; not with method full.", AT(method.adapter))
                     .Absent("fresh A and B")
                     .Build());
  rows.push_back(Row("method.rslora", "Scale by alpha / sqrt(rank) instead of alpha / rank.", AT(method.rslora))
                     .Absent("false, or the adapter's")
                     .Build());
  rows.push_back(
      Row("method.rank_pattern", "Ranks of modules that differ, by the end of their names.", AT(method.rank_pattern))
          .Checked("whole numbers above 0", AT(method.rank_pattern), CheckPattern<int64_t>)
          .Build());
  rows.push_back(
      Row("method.alpha_pattern", "Alphas of modules that differ, by the end of their names.", AT(method.alpha_pattern))
          .Checked("numbers above 0", AT(method.alpha_pattern), CheckPattern<double>)
          .Build());
  rows.push_back(Row("method.train_norms", "Train every norm.", AT(method.train_norms))
                     .Absent("true for longlora, qlonglora and full")
                     .Build());
  rows.push_back(Row("method.train_embeddings", "Train the token embedding, and the head with it where they are one.",
                     AT(method.train_embeddings))
                     .Absent("true for longlora, qlonglora and full")
                     .Build());
  rows.push_back(Row("method.train_head", "Train lm_head.", AT(method.train_head))
                     .Absent("true for full, and where the embedding trains and is the same tensor")
                     .Build());
  rows.push_back(Row("rope.kind", "How positions are rescaled.", IN_ROPE(kind)).Build());
  rows.push_back(Row("rope.factor", "Multiplies what the model already has.", IN_ROPE(factor))
                     .Absent("context_length / the length the model reads already, at least 1")
                     .In({1, kInfinity})
                     .Build());
  rows.push_back(Row("rope.original_length",
                     "Context the model was first trained with; only where config.json is ambiguous.",
                     IN_ROPE(original_length))
                     .Unit("tokens")
                     .Absent("from config.json")
                     .In(kTokens)
                     .Build());
  rows.push_back(Row("rope.theta", "The new base; required by kind theta, and only there.", IN_ROPE(theta))
                     .Absent("not changed")
                     .In({0, kInfinity, true})
                     .Build());
  rows.push_back(Row("rope.beta_fast", "yarn: rotations above which a dimension keeps its speed.", IN_ROPE(beta_fast))
                     .Absent("32")
                     .In({0, kInfinity, true})
                     .Build());
  rows.push_back(
      Row("rope.beta_slow", "yarn: rotations below which a dimension is slowed by the factor.", IN_ROPE(beta_slow))
          .Absent("1")
          .In({0, kInfinity, true})
          .Build());
  rows.push_back(Row("rope.attention_factor", "yarn: multiplies cosine and sine.", IN_ROPE(attention_factor))
                     .Absent("0.1 ln(factor) + 1")
                     .In({0, kInfinity, true})
                     .Build());
  rows.push_back(Row("rope.low_freq_factor",
                     "llama3: original_length / this is the longest wavelength that is blended.",
                     IN_ROPE(low_freq_factor))
                     .Absent("1")
                     .In({0, kInfinity, true})
                     .Build());
  rows.push_back(
      Row("rope.high_freq_factor", "llama3: wavelengths below original_length / this stay.", IN_ROPE(high_freq_factor))
          .Absent("4")
          .In({0, kInfinity, true})
          .Build());
}

void AddTrainingRows(std::vector<Field>& rows) {
  rows.push_back(Row("training.steps", "Optimizer steps.", AT(training.steps))
                     .Unit("steps")
                     .In(kAtLeast1)
                     .IgnoredByProbe()
                     .Build());
  rows.push_back(Row("training.global_batch", "Batch of one optimizer step, over all ranks.", AT(training.global_batch))
                     .Unit("sequences")
                     .In({1, 1e6})
                     .IgnoredByProbe()
                     .Build());
  rows.push_back(Row("training.micro_batch", "Batch of one forward pass of a rank.", AT(training.micro_batch))
                     .Unit("sequences")
                     .Absent("1")
                     .In({1, 1e6})
                     .IgnoredByProbe()
                     .Build());
  rows.push_back(
      Row("training.learning_rate", "Learning rate after the warm-up.", AT(training.learning_rate)).In({0, 1}).Build());
  rows.push_back(
      Row("training.schedule", "Learning rate after the warm-up, down to zero unless constant.", AT(training.schedule))
          .Build());
  rows.push_back(
      Row("training.warmup_steps", "Steps in which the learning rate rises from zero.", AT(training.warmup_steps))
          .Unit("steps")
          .In(kAtLeast0)
          .Build());
  rows.push_back(
      Row("training.beta1", "AdamW's decay of the first moment.", AT(training.beta1)).In({0, 1, false, true}).Build());
  rows.push_back(
      Row("training.beta2", "AdamW's decay of the second moment.", AT(training.beta2)).In({0, 1, false, true}).Build());
  rows.push_back(
      Row("training.epsilon", "AdamW's term against division by zero.", AT(training.epsilon)).In({0, 1, true}).Build());
  rows.push_back(
      Row("training.weight_decay", "AdamW's weight decay.", AT(training.weight_decay)).In({0, kInfinity}).Build());
  rows.push_back(
      Row("training.clip_norm", "Largest global L2 norm of the gradient; 0: no clipping.", AT(training.clip_norm))
          .In({0, kInfinity})
          .Build());
  rows.push_back(Row("training.seed", "Seed of everything random.", AT(training.seed)).In({0, kInfinity}).Build());
  rows.push_back(Row("training.dtype", "Type in which forward and backward compute.", AT(training.dtype))
                     .Absent("bf16 on a GPU and with fp8, fp32 on a CPU")
                     .Build());
  rows.push_back(
      Row("training.fp8",
          "Multiply with the frozen linear weights in 8 bits (e4m3), which GPUs of compute capability 8.9 and "
          "above do faster than in bf16; of lora and longlora.",
          AT(training.fp8))
          .Build());
}

// What training keeps in memory.
void AddMemoryRows(std::vector<Field>& rows) {
  constexpr char kPlanner[] = "the fastest that fits";
  rows.push_back(
      Row("memory.keep",
          "What a layer keeps from its forward pass for its backward pass, each what the one before does and "
          "more; the rest is computed again.",
          AT(memory.keep))
          .Absent(kPlanner)
          .Build());
  rows.push_back(
      Row("memory.checkpoint_every",
          "How many layers apart the inputs are that outlast the forward pass; the layers in between run again.",
          AT(memory.checkpoint_every))
          .Unit("layers")
          .Absent(kPlanner)
          .In({1, 65536})
          .Build());
  rows.push_back(Row("memory.host_layers",
                     "Layers, from the first, whose kept values wait in host memory for their backward pass.",
                     AT(memory.host_layers))
                     .Unit("layers")
                     .Absent(kPlanner)
                     .In({0, 65536})
                     .Build());
  rows.push_back(Row("memory.tile_tokens", "Tokens of a tile of norms, linear layers and MLP.", AT(memory.tile_tokens))
                     .Unit("tokens")
                     .Absent(kPlanner)
                     .In(kTokens)
                     .Build());
  rows.push_back(Row("memory.loss_tile_tokens", "Tokens of a tile of logits.", AT(memory.loss_tile_tokens))
                     .Unit("tokens")
                     .Absent(kPlanner)
                     .In(kTokens)
                     .Build());
  rows.push_back(Row("memory.tile_heads",
                     "Key/value heads whose gradients of q, k and v attention makes at once, in place of q, k and v; "
                     "0: all, in memory of their own.",
                     AT(memory.tile_heads))
                     .Unit("heads")
                     .Absent(kPlanner)
                     .In({0, 65536})
                     .Build());
  const Range any_bytes = {1, static_cast<double>(kIntegerMax)};
  rows.push_back(Row("memory.device_bytes", "Memory of its device that a rank may use.", AT(memory.device_bytes))
                     .Absent("that of the slot it runs on")
                     .In(any_bytes)
                     .Bytes(AT(memory.device_bytes))
                     .Build());
  rows.push_back(Row("memory.host_bytes", "Host memory that a rank may use for kept values.", AT(memory.host_bytes))
                     .Absent("none")
                     .In({0, static_cast<double>(kIntegerMax)})
                     .Bytes(AT(memory.host_bytes))
                     .Build());
}

// What an evaluation measures besides perplexity.
void AddTaskRows(std::vector<Field>& rows) {
  rows.push_back(
      Row("evaluation.passkey.lengths", "Lengths of texts with one number to find.", AT(evaluation.passkey.lengths))
          .Unit("tokens")
          .Absent("not run")
          .Checked("2 to 16777216 each", AT(evaluation.passkey.lengths), CheckLengths)
          .Build());
  rows.push_back(
      Row("evaluation.passkey.depths", "Places of the number, evenly from start to end.", AT(evaluation.passkey.depths))
          .In({1, 1000})
          .Build());
  rows.push_back(Row("evaluation.passkey.trials", "Numbers per length and place.", AT(evaluation.passkey.trials))
                     .In({1, 1000})
                     .Build());
  rows.push_back(Row("evaluation.topics.lengths", "Lengths of conversations with several facts to find.",
                     AT(evaluation.topics.lengths))
                     .Unit("tokens")
                     .Absent("not run")
                     .Checked("2 to 16777216 each", AT(evaluation.topics.lengths), CheckLengths)
                     .Build());
  rows.push_back(Row("evaluation.topics.topics", "Facts in one conversation.", AT(evaluation.topics.topics))
                     .In({1, 1000})
                     .Build());
  rows.push_back(
      Row("evaluation.topics.trials", "Conversations per length.", AT(evaluation.topics.trials)).In({1, 1000}).Build());
  rows.push_back(Row("evaluation.longbench.path", "Folder of TASK.jsonl files in LongBench's format.",
                     AT(evaluation.longbench.path))
                     .Absent("not run")
                     .Build());
  rows.push_back(Row("evaluation.longbench.tasks", "Names of the tasks.", AT(evaluation.longbench.tasks))
                     .Absent("every file whose scores are known")
                     .Checked("", AT(evaluation.longbench.tasks), CheckTaskNames)
                     .Build());
  rows.push_back(
      Row("evaluation.longbench.examples", "Examples of each task at most; 0: all.", AT(evaluation.longbench.examples))
          .In(kAtLeast0)
          .Build());
  rows.push_back(Row("evaluation.conversations.path",
                     "File or folder of multi-turn questions; the answers are written for an outside judge.",
                     AT(evaluation.conversations.path))
                     .Absent("not run")
                     .Build());
  rows.push_back(
      Row("evaluation.conversations.max_new_tokens", "Longest answer.", AT(evaluation.conversations.max_new_tokens))
          .Unit("tokens")
          .In({1, 1e6})
          .Build());
  rows.push_back(
      Row("evaluation.generation.batch", "Texts that are generated at once.", AT(evaluation.generation.batch))
          .Unit("sequences")
          .In({1, 4096})
          .Build());
  rows.push_back(Row("evaluation.generation.temperature", "0: the most likely token, always.",
                     AT(evaluation.generation.temperature))
                     .In({0, 100})
                     .Build());
  rows.push_back(Row("evaluation.generation.top_p", "Draw from the most likely tokens that add up to this.",
                     AT(evaluation.generation.top_p))
                     .In({0, 1, true})
                     .Build());
}

void AddRunRows(std::vector<Field>& rows) {
  rows.push_back(
      Row("evaluation.every_steps", "Steps between evaluations; 0: only at the end.", AT(evaluation.every_steps))
          .Unit("steps")
          .In(kAtLeast0)
          .Build());
  rows.push_back(Row("evaluation.lengths", "Lengths at which perplexity is measured.", AT(evaluation.lengths))
                     .Unit("tokens")
                     .Absent("the model's original length and context_length")
                     .Checked("2 to 16777216 each", AT(evaluation.lengths), CheckLengths)
                     .Build());
  rows.push_back(Row("evaluation.protocol",
                     "How the text is cut: windows that do not overlap, or the paper's, one every 256 tokens.",
                     AT(evaluation.protocol))
                     .Build());
  rows.push_back(Row("evaluation.max_tokens", "Held-out text that perplexity is measured on, from its start; 0: all.",
                     AT(evaluation.max_tokens))
                     .Unit("tokens")
                     .In({0, static_cast<double>(kIntegerMax)})
                     .Build());
  rows.push_back(Row("evaluation.template",
                     "How prompts of longbench and conversations are asked: none, plain text; model, in the model's "
                     "own chat template.",
                     AT(evaluation.prompt_template))
                     .Build());
  AddTaskRows(rows);
  rows.push_back(
      Row("checkpoint.every_steps", "Steps between checkpoints; 0: only at the end.", AT(checkpoint.every_steps))
          .Unit("steps")
          .In(kAtLeast0)
          .Build());
  rows.push_back(Row("checkpoint.keep_last", "Newest checkpoints that are kept.", AT(checkpoint.keep_last))
                     .Unit("checkpoints")
                     .In(kAtLeast1)
                     .Build());
  rows.push_back(Row("checkpoint.keep_every", "Also keep steps divisible by this; 0: none.", AT(checkpoint.keep_every))
                     .Unit("steps")
                     .In(kAtLeast0)
                     .Build());
  rows.push_back(Row("resources.slots", "Ranks of the gang, one slot (a GPU, or a CPU slot) each.", AT(resources.slots))
                     .Unit("slots")
                     .In({1, 65536})
                     .IgnoredByProbe()
                     .Build());
  rows.push_back(Row("resources.threads_per_slot", "CPU threads of a rank.", AT(resources.threads_per_slot))
                     .Unit("threads")
                     .In({1, 1024})
                     .Build());
  rows.push_back(Row("resources.sequence_parallel",
                     "Ranks that share a sequence, each with consecutive tokens of it; divides slots.",
                     AT(resources.sequence_parallel))
                     .Unit("ranks")
                     .Absent("1")
                     .In({1, 65536})
                     .IgnoredByProbe()
                     .Build());
  rows.push_back(Row("resources.shard_weights",
                     "Each rank holds a part of the frozen weights and gets the rest layer by layer, for models too "
                     "large for one slot; of lora and longlora.",
                     AT(resources.shard_weights))
                     .IgnoredByProbe()
                     .Build());
  rows.push_back(Row("resources.slots_min",
                     "Fewest ranks that the gang may run with; a multiple of sequence_parallel. It starts with what is "
                     "free and goes on with more or fewer from a checkpoint.",
                     AT(resources.slots_min))
                     .Unit("slots")
                     .Absent("as many as slots")
                     .In({1, 65536})
                     .IgnoredByProbe()
                     .Build());
  rows.push_back(
      Row("resources.require",
          "Labels that the workers must have, such as {zone: a}; gpu: H200 asks for a device by a part of its "
          "name.",
          AT(resources.require))
          .Checked("at most 64, values of 1 to 255 bytes", AT(resources.require), CheckRequire)
          .Build());
  rows.push_back(Row("resources.memory_bytes_min", "Memory that each slot must have.", AT(resources.memory_bytes_min))
                     .Absent("what the planner finds that a rank needs")
                     .In({1, static_cast<double>(kIntegerMax)})
                     .Bytes(AT(resources.memory_bytes_min))
                     .Build());
  rows.push_back(Row("output.adapter", "Write a PEFT adapter; method full has none.", AT(output.adapter)).Build());
  rows.push_back(Row("output.merged", "Write a whole Hugging Face model.", AT(output.merged)).Build());
  rows.push_back(Row("output.merged_base",
                     "What LoRA is merged into for qlora and qlonglora: the 4-bit values it was trained on, or the "
                     "model's own weights.",
                     AT(output.merged_base))
                     .Build());
  rows.push_back(Row("limits.max_attempts", "Attempts of the job, counting those that infrastructure ended.",
                     AT(limits.max_attempts))
                     .Unit("attempts")
                     .In({1, 1000})
                     .Build());
  rows.push_back(
      Row("limits.max_run_time", "Time the job may run, waiting not counted.", AT(limits.max_run_time_seconds))
          .Absent("no limit")
          .Duration(&LimitsSection::max_run_time_seconds)
          .Build());
}

#undef AT
#undef IN_ROPE

}  // namespace

std::string Shown(const json& value) {
  constexpr size_t kShownMax = 80;
  if (value.is_object()) return "a map";
  if (value.is_array()) return "a list";
  if (value.is_null()) return "empty";
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > kShownMax) text = text.substr(0, kShownMax - 4) + "...\"";
  return text;
}

const std::vector<Field>& FieldTable() {
  static const std::vector<Field> table = [] {
    std::vector<Field> rows;
    AddSubjectRows(rows);
    AddMethodRows(rows);
    AddTrainingRows(rows);
    AddMemoryRows(rows);
    AddRunRows(rows);
    return rows;
  }();
  return table;
}

const Field* FindField(std::string_view path) {
  for (const Field& field : FieldTable()) {
    if (field.info.path == path) return &field;
  }
  return nullptr;
}

bool IsSection(std::string_view path) {
  return std::any_of(FieldTable().begin(), FieldTable().end(), [path](const Field& field) {
    return field.info.path.size() > path.size() && field.info.path.starts_with(path) &&
           field.info.path[path.size()] == '.';
  });
}

const std::vector<FieldInfo>& Fields() {
  static const std::vector<FieldInfo> fields = [] {
    std::vector<FieldInfo> all;
    for (const Field& field : FieldTable()) all.push_back(field.info);
    return all;
  }();
  return fields;
}

}  // namespace longspan::jobfile
