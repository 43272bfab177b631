// The job file: what a user asks for, as plain values.
//
// This struct is the one definition shared by the command line client, the server, the daemon and the trainer. The
// JobSpec message (proto/longspan/v1/job.proto) has the same fields under the same names; a test ties the two, the
// parser and deploy/examples/reference.yaml together.
//
// An absent optional means that the user did not say; what then happens is stated beside the field. Values that only
// the model's config.json can settle (the rope factor, the training dtype of the device) stay absent here and are
// resolved by the trainer, which records what it chose in the run card.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace longspan::jobfile {

enum class JobKind { kExtend, kEvaluate };
enum class ModelInit { kWeights, kRandom };
enum class DataFormat { kText, kInstruction, kChat };
enum class ChatTemplate { kLlama2, kAlpaca, kChatml, kLlama3, kMistral };
enum class PromptTemplate { kNone, kModel, kLlama2, kAlpaca, kChatml, kLlama3, kMistral };
enum class AttentionKind { kS2, kFull, kShort };
enum class AttentionEdge { kSplit, kWrap };
enum class MethodKind { kFull, kLora, kLongLora, kQlora, kQlongLora };
enum class RopeKind { kLinear, kNtk, kDynamic, kYarn, kLlama3, kTheta };
enum class Schedule { kConstant, kCosine, kLinear };
enum class TrainingDtype { kFp32, kBf16 };
enum class EvaluationProtocol { kWindows, kPaper };
enum class MergedBase { kQuantized, kOriginal };
// worker/planner/memory_policy.h
enum class KeepPolicy { kInput, kAttentionOutput, kQueryKeyValue, kResidual, kGateUp };

struct ModelSection {
  std::string path;                      // Hugging Face folder; required
  ModelInit init = ModelInit::kWeights;  // random needs only config.json and the tokenizer
};

struct DataSection {
  std::vector<std::string> sources;           // files or folders; required except for `probe`
  std::optional<DataFormat> format;           // absent: by content
  std::string text_field = "text";            // field of a .jsonl record
  double holdout_fraction = 0.02;             // of the tokens, never trained on; [0, 0.5]
  bool packing = false;                       // true: documents keep their borders; false: plain concatenation
  bool bucketing = false;                     // batches of documents of similar length; only with packing or records
  std::optional<ChatTemplate> chat_template;  // key `template`; absent: the model's own where it is a known one
};

struct AttentionSection {
  AttentionKind kind = AttentionKind::kS2;
  std::optional<int64_t> group_size;           // tokens; excludes group_ratio
  std::optional<double> group_ratio;           // of context_length, (0, 1]; absent and no group_size: 0.25
  AttentionEdge edge = AttentionEdge::kSplit;  // wrap: the last shifted block sees the first half block too
};

struct MethodSection {
  MethodKind kind = MethodKind::kLongLora;
  std::optional<int64_t> rank;       // absent: 8, or the adapter's
  std::optional<double> alpha;       // absent: 16, or the adapter's
  double dropout = 0.0;              // [0, 1), on the input of A
  std::vector<std::string> targets;  // last module names; empty: q_proj k_proj v_proj o_proj, or the adapter's
  std::string adapter;               // PEFT folder to start from; empty: fresh A and B
  std::optional<bool> rslora;        // scale is alpha / sqrt(rank); absent: false, or the adapter's
  // By module, as PEFT's: "q_proj", or the end of a longer name, "layers.0.self_attn.q_proj". What is not listed has
  // rank and alpha.
  std::map<std::string, int64_t> rank_pattern;
  std::map<std::string, double> alpha_pattern;
  // Absent: as the kind says. longlora trains norms and embeddings, full trains everything, lora neither.
  std::optional<bool> train_norms, train_embeddings, train_head;
};

struct RopeSection {
  RopeKind kind = RopeKind::kLinear;
  std::optional<double> factor;            // multiplies what the model already has; absent: context_length / the
                                           // length the model reads already, at least 1
  std::optional<int64_t> original_length;  // tokens; needed only where config.json is ambiguous
  std::optional<double> theta;             // kind theta: the new base, required there
  // yarn; absent: 32, 1, and 0.1 ln(factor) + 1.
  std::optional<double> beta_fast, beta_slow, attention_factor;
  std::optional<double> low_freq_factor, high_freq_factor;  // llama3; absent: 1 and 4
};

struct TrainingSection {
  int64_t steps = 1000;
  int64_t global_batch = 64;           // sequences per optimizer step, over all ranks
  std::optional<int64_t> micro_batch;  // sequences per forward pass and rank; absent: 1
  double learning_rate = 2e-5;
  Schedule schedule = Schedule::kConstant;  // after the warm-up
  int64_t warmup_steps = 20;                // linear from 0
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.0;
  double clip_norm = 1.0;  // global L2 norm; 0: no clipping
  int64_t seed = 0;
  std::optional<TrainingDtype> dtype;  // absent: bf16 on a GPU and with fp8, fp32 on a CPU
  bool fp8 = false;                    // products with frozen weights in 8 bits (e4m3); of lora and longlora
};

// What training keeps in memory, and how much of that there is. What is absent the planner decides: the fastest that
// fits (worker/planner/memory_policy.h).
struct MemorySection {
  std::optional<KeepPolicy> keep;
  std::optional<int64_t> checkpoint_every;  // layers
  std::optional<int64_t> host_layers;       // of those that outlast the forward pass, from the first
  std::optional<int64_t> tile_tokens, loss_tile_tokens;
  std::optional<int64_t> tile_heads;  // key/value heads; 0: all
  // Limits of a rank, bytes; in a file also "12GiB". Absent: the memory of the slot that it runs on; none of the
  // host's.
  std::optional<int64_t> device_bytes, host_bytes;
};

// Retrieval of one number out of filler text, as LongLoRA (arXiv 2309.12307) does it.
struct PasskeySection {
  std::vector<int64_t> lengths;  // tokens; empty: not run
  int64_t depths = 10;           // places of the key, evenly from the start to the end
  int64_t trials = 10;           // keys per length and depth
};

// Retrieval of several facts out of a long conversation, as LongChat's topic retrieval.
struct TopicsSection {
  std::vector<int64_t> lengths;  // tokens; empty: not run
  int64_t topics = 10;           // facts in one text
  int64_t trials = 10;           // texts per length
};

// Tasks in LongBench's format: a folder of TASK.jsonl.
struct LongBenchSection {
  std::string path;                // folder; empty: not run
  std::vector<std::string> tasks;  // names without .jsonl; empty: every file whose scorer is known
  int64_t examples = 0;            // of each task at most; 0: all
};

// Multi-turn questions, generated turn by turn and written for an outside judge.
struct ConversationsSection {
  std::string path;               // .jsonl file or folder of them; empty: not run
  int64_t max_new_tokens = 1024;  // of one answer
};

struct GenerationSection {
  int64_t batch = 4;         // sequences at once
  double temperature = 0.0;  // 0: greedy
  double top_p = 1.0;        // (0, 1]
};

struct EvaluationSection {
  int64_t every_steps = 0;       // 0: only at the end
  std::vector<int64_t> lengths;  // tokens; empty: the model's original length and context_length
  EvaluationProtocol protocol = EvaluationProtocol::kWindows;
  int64_t max_tokens = 0;                                  // of the held-out text, from its start; 0: all of it
  PromptTemplate prompt_template = PromptTemplate::kNone;  // key `template`; of longbench and conversations
  PasskeySection passkey;
  TopicsSection topics;
  LongBenchSection longbench;
  ConversationsSection conversations;
  GenerationSection generation;
};

struct CheckpointSection {
  int64_t every_steps = 100;  // 0: only at the end
  int64_t keep_last = 2;      // at least 1
  int64_t keep_every = 0;     // also keep steps divisible by this; 0: none
};

struct ResourcesSection {
  int64_t slots = 1;             // ranks of the gang, one slot each
  int64_t threads_per_slot = 1;  // CPU threads of a rank
  // Ranks that share a sequence, consecutive tokens each; divides slots. Absent: 1.
  std::optional<int64_t> sequence_parallel;
  bool shard_weights = false;  // each rank holds a part of the frozen linear weights
  // The fewest ranks that the gang may run with, a multiple of sequence_parallel. Absent: slots.
  std::optional<int64_t> slots_min;
  std::map<std::string, std::string> require;  // labels of the workers; "gpu" is a part of the slot's device name
  std::optional<int64_t> memory_bytes_min;     // of each slot; in a file also "40GiB". Absent: what the planner finds
};

struct OutputSection {
  bool adapter = true;  // write adapter/ (not for method full, which has none)
  bool merged = true;   // write merged/
  // What LoRA is merged into for qlora and qlonglora: the dequantised weights it was trained on, or the folder's own.
  MergedBase merged_base = MergedBase::kQuantized;
};

struct LimitsSection {
  int64_t max_attempts = 20;                    // attempts that may fail for reasons of infrastructure
  std::optional<int64_t> max_run_time_seconds;  // key max_run_time, "2h30m"; absent: no limit
};

struct JobSpec {
  JobKind kind = JobKind::kExtend;  // evaluate: measures a model, trains nothing
  std::string name;                 // required; [a-z0-9]([-a-z0-9._]*[a-z0-9])?, at most 63 characters
  std::string queue = "default";
  int64_t priority = 50;  // 0 to 100, higher first
  std::map<std::string, std::string> labels;
  ModelSection model;
  DataSection data;
  int64_t context_length = 0;  // tokens; required, at least 2; for kind evaluate 0: the model's own
  AttentionSection attention;
  MethodSection method;
  std::optional<RopeSection> rope;  // absent: linear with its default factor; of kind evaluate, as the model is
  TrainingSection training;
  MemorySection memory;
  EvaluationSection evaluation;
  CheckpointSection checkpoint;
  ResourcesSection resources;
  OutputSection output;
  LimitsSection limits;
};

// Tokens an S2-Attn group has: group_size, else max(1, floor(context_length * group_ratio)). Resolved once per job,
// never from the length of a batch or document.
int64_t ResolvedGroupSize(const JobSpec& spec);

// Numbers of ranks that the gang may run with, ascending, of a spec that Validate finds right: every multiple of
// RanksPerSequence from slots_min to slots. At most kGangSizesMax.
std::vector<int64_t> GangSizes(const JobSpec& spec);
inline constexpr int64_t kGangSizesMax = 256;

// Ranks that share a sequence, and the sets of such ranks, each with its own slice of the global batch.
int64_t RanksPerSequence(const JobSpec& spec);
int64_t DataGroups(const JobSpec& spec);
// Tokens of a sequence that a rank has: the most, where the context does not divide.
int64_t TokensPerRank(const JobSpec& spec);
// Whether the ranks of a sequence get equally many tokens of the context, in whole groups where attention has any.
bool ContextDivides(const JobSpec& spec);

}  // namespace longspan::jobfile
