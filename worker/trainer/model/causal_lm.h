// A decoder-only language model with a hand-written forward and backward pass: what the training step, the probe, the
// evaluation and the export share. No autograd anywhere; the tests use autograd as the oracle.
//
// Not thread-safe: one thread drives a model. Owns its weights. Throws c10::Error on a shape mismatch of its arguments
// and UserError on a model folder that is wrong (see model_config.h, weights.h).
//
// Legend: B sequences, T tokens, V vocabulary, d hidden size, Hq query heads, Hkv key/value heads, D head size.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "proto/jobfile/job_spec.h"
#include "worker/model_config/adapter_plan.h"
#include "worker/model_config/model_config.h"
#include "worker/planner/memory_policy.h"
#include "worker/trainer/model/continuation.h"
#include "worker/trainer/parallel/sequence_ranks.h"

namespace longspan::trainer {

class Communicator;

using planner::KeepPolicy;
using planner::MemoryPolicy;

// One tensor that trains. `value` is what the forward pass reads (the compute dtype); the optimizer keeps the fp32
// master and writes back. `gradient` is fp32, allocated once, accumulated over micro-batches, zeroed by ZeroGradients.
struct Trainable {
  std::string name;  // key in PEFT's saved file; the plain Hugging Face name for method full
  at::Tensor value;
  at::Tensor gradient;   // same shape, fp32; gradient of the *sum* of the token losses
  bool is_lora = false;  // A or B of an adapter
};

struct Batch {
  at::Tensor input_ids;  // (B, T) int64
  at::Tensor labels;     // (B, T) int64; shifted inside: position t is scored on labels[t + 1]; -100 is never scored
  // (B, T) int64: a new document starts where the value changes, and at each row. Attention does not cross a border,
  // groups and positions are counted in each document, and its first token is never scored. Undefined: a row is one.
  at::Tensor document_ids;
  int64_t step = 0;                  // for the dropout mask
  int64_t first_sequence_index = 0;  // of row 0 in the global batch of this step, for the dropout mask
};

struct LossSum {
  double loss = 0;     // sum of the token losses, nats
  int64_t tokens = 0;  // scored tokens
};

enum class RopeScaling { kOriginal, kExtended };  // the model folder's own positions, or the job's

struct ModelOptions {
  at::Device device = at::kCPU;  // where weights, buffers and gradients lie, and what computes
  // Adds LoRA to the base when the method has it. The parts of the spec that are read: model, context_length,
  // attention, method, rope, training.{dtype, seed}.
  jobfile::JobSpec spec;
  bool dropout = true;        // off in the probe
  bool trains = true;         // false: nothing is trained, so no gradient has memory and trainables() is empty
  MemoryPolicy memory;        // what layers keep, and the sizes of tiles; changes nothing beyond rounding
  bool plans_buffers = true;  // false: every buffer has memory of its own, which the tests compare with
  // Whose ranks share the linear layers' weights where the spec says so (resources.shard_weights); outlives the model.
  // Null: they are whole.
  Communicator* ranks = nullptr;
  // Ranks that share their sequences: all of them call ForwardBackward, TrainingLogits and Evaluate with the same whole
  // sequences, in the same order, and each computes and returns its share. Outlives the model. Null: not shared.
  SequenceRanks* sequence = nullptr;
  std::string quantized_cache;  // folder where qlora and qlonglora keep the 4-bit base; empty: it is made in memory
};

class CausalLm {
 public:
  // Called during the last micro-batch's backward pass as soon as the gradient of trainables()[index] is complete.
  using GradientReady = std::function<void(size_t index)>;

  // Loads the folder spec.model.path (or random weights from its config.json and the seed), with LoRA, embeddings and
  // norms set up as the method says; starts from spec.method.adapter when given.
  static std::unique_ptr<CausalLm> Load(const ModelOptions& options);
  virtual ~CausalLm() = default;

  virtual const ModelConfig& config() const = 0;     // with the job's rope applied
  virtual std::vector<Trainable>& trainables() = 0;  // in a fixed order, the same on every rank
  virtual int64_t parameter_count() const = 0;       // of the base model
  virtual const AdapterPlan& adapter() const = 0;    // ranks, alphas and targets as resolved; what trains
  // What spec.method.adapter put in the place of base tensors and this job does not train: an adapter made from this
  // model is wrong without it. Named like trainables(); without gradients.
  virtual std::vector<Trainable> carried() const { return {}; }

  virtual void ZeroGradients() = 0;
  // Training attention (S2 or full, as the spec says), extended positions. Adds to every gradient.
  virtual LossSum ForwardBackward(const Batch& batch, const GradientReady& ready = {}) = 0;
  // (B, T, V) fp32 logits with the training attention, of a share of T where it is shared; for the probe. document_ids
  // as in Batch, or undefined.
  virtual at::Tensor TrainingLogits(const at::Tensor& input_ids, const at::Tensor& document_ids) = 0;
  at::Tensor TrainingLogits(const at::Tensor& input_ids) { return TrainingLogits(input_ids, {}); }

  // Full attention, no gradients, logits in tiles. `adapted` false: the base weights as loaded, LoRA and trained
  // embeddings and norms not applied (for the base and rescaled rows of the evaluation table).
  struct EvaluationOptions {
    RopeScaling rope = RopeScaling::kExtended;
    bool adapted = true;
    // Of a base in 4 or 8 bits: the folder's own weights in the place of what was made of them, read layer by layer.
    bool original_weights = false;
    at::Tensor document_ids{};  // as in Batch; full attention within each document
    bool alone = false;         // where ranks share sequences: these are this rank's own, which it computes whole
  };
  virtual LossSum Evaluate(const at::Tensor& input_ids, const at::Tensor& labels, const EvaluationOptions& options) = 0;

  // Reads the tokens that follow what each cache holds, adds them to the caches, and returns the logits (S, V) fp32
  // behind the last token of each of the S sequences. Full attention. A cache goes on with the options it began with.
  // After an exception the caches are of no use.
  virtual at::Tensor Continue(const std::vector<Continuation>& sequences, const EvaluationOptions& options) = 0;

  // Every tensor of the merged model under its Hugging Face name, one at a time, LoRA merged in fp32 and rounded to the
  // base file's dtype; frozen tensors bit-equal to the base's. Of a 4-bit base the linear layers are the dequantized
  // ones, unless spec.output.merged_base says otherwise.
  virtual void ForEachMergedTensor(
      const std::function<void(const std::string& name, const at::Tensor& value)>& visit) = 0;

  // What passes hold between calls, and what they waited for.
  struct MemoryUse {
    int64_t arena_bytes = 0, kept_bytes = 0;  // on the device
    int64_t host_bytes = 0;
    double host_wait_seconds = 0;    // that passes waited for copies to and from host memory, so far
    double gather_wait_seconds = 0;  // for weights of other ranks, so far
  };
  virtual MemoryUse memory_use() const { return {}; }
  // Gives the buffers of passes back; the next pass takes its own. For the end of a phase.
  virtual void ReleaseBuffers() {}

  // Where ranks share weights every rank must make as many passes as the others, in the same order: one that has
  // nothing to compute takes part in theirs. TakePart does nothing else.
  virtual bool shares_weights() const { return false; }
  enum class PassKind { kTraining, kForward };
  virtual void TakePart(PassKind) {}

  // Tells the model that values of trainables changed (after an optimizer step or a load).
  virtual void ValuesChanged() = 0;
};

}  // namespace longspan::trainer
