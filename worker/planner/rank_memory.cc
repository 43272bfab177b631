#include "worker/planner/rank_memory.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <string>

#include "worker/model_config/rope_scaling.h"
#include "worker/model_config/tensor_names.h"
#include "worker/planner/attention_temporaries.h"
#include "worker/planner/job_shape.h"
#include "worker/planner/weight_shards.h"

namespace longspan::planner {
namespace {

constexpr int64_t kFp32Bytes = 4, kIdBytes = 8;
constexpr int64_t kBucketBytes = int64_t{4} << 20;       // gradient_reducer.h
constexpr int64_t kAngleTableStep = 2048;                // rotary_positions.cc
constexpr int64_t kNf4Block = 64, kNf4ScaleBlock = 256;  // kernels/nf4

int64_t DividedUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Codes of 4 bits, a byte for the scale of a block, an fp32 number for a block of scales, and their mean.
int64_t Nf4Bytes(int64_t values) {
  const int64_t blocks = DividedUp(values, kNf4Block);
  return DividedUp(values, 2) + blocks + kFp32Bytes * DividedUp(blocks, kNf4ScaleBlock);
}

int64_t ElementsOf(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

enum class TensorRole { kEmbedding, kHead, kNorm, kLinearWeight, kLinearBias };

// Walks the tensors in the order of the model, which is the order in which they train.
class Counter {
 public:
  Counter(const trainer::ModelConfig& config, const trainer::AdapterPlan& adapter, jobfile::TrainingDtype dtype)
      : config_(config), adapter_(adapter), element_bytes_(BytesOf(dtype)) {
    for (std::string& name : trainer::AdaptableModelOf(config).linear_names) linears_.insert(std::move(name));
  }

  ModelMemory Count() {
    const std::vector<trainer::TensorShape> tensors = trainer::BaseTensorShapes(config_);
    for (size_t i = 0; i < tensors.size(); ++i) {
      const std::string module = ModuleOf(tensors[i].name);
      const bool ends_module = i + 1 == tensors.size() || ModuleOf(tensors[i + 1].name) != module;
      AddTensor(tensors[i], module);
      if (linears_.contains(module) && tensors[i].shape.size() == 2) weight_shape_ = tensors[i].shape;
      if (linears_.contains(module) && ends_module && adapter_.Targets(trainer::LastName(module))) AddLora(module);
    }
    for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) AddDerived(static_cast<size_t>(layer));
    if (adapter_.fp8) AddInputScales();
    AddTrained();
    return memory_;
  }

 private:
  static std::string ModuleOf(const std::string& tensor) { return tensor.substr(0, tensor.rfind('.')); }

  TensorRole RoleOf(const trainer::TensorShape& tensor, const std::string& module) const {
    if (tensor.name == trainer::EmbeddingName(config_)) return TensorRole::kEmbedding;
    if (tensor.name == trainer::HeadName(config_)) return TensorRole::kHead;
    if (!linears_.contains(module)) return TensorRole::kNorm;
    return tensor.shape.size() == 2 ? TensorRole::kLinearWeight : TensorRole::kLinearBias;
  }

  bool Trains(TensorRole role) const {
    switch (role) {
      case TensorRole::kEmbedding:
        return adapter_.trains_embedding;
      case TensorRole::kHead:
        return adapter_.trains_head;
      case TensorRole::kNorm:
        return adapter_.trains_norms;
      case TensorRole::kLinearWeight:
      case TensorRole::kLinearBias:
        return adapter_.trains_base;
    }
    return false;
  }

  void AddTensor(const trainer::TensorShape& tensor, const std::string& module) {
    const int64_t elements = ElementsOf(tensor.shape);
    const TensorRole role = RoleOf(tensor, module);
    const bool in_4_bits = adapter_.quantized && role == TensorRole::kLinearWeight;
    const bool in_8_bits = adapter_.fp8 && role == TensorRole::kLinearWeight;
    if (in_8_bits) {  // twice, with a scale of each output; those of inputs belong to the fused layers
      memory_.weights += 2 * elements + kFp32Bytes * tensor.shape[0];
    } else {
      memory_.weights += in_4_bits ? Nf4Bytes(elements) : elements * element_bytes_;
    }
    if (Trains(role)) trained_.push_back(elements);
  }

  void AddLora(const std::string& module) {
    const int64_t rank = adapter_.RankOf(module);
    for (const int64_t size : weight_shape_) trained_.push_back(rank * size);
    std::swap(trained_[trained_.size() - 1], trained_[trained_.size() - 2]);  // A, which has the inputs, first
    memory_.weights += rank * (weight_shape_[0] + weight_shape_[1]) * element_bytes_;
    lora_shapes_[module] = {weight_shape_[0], weight_shape_[1]};
  }

  // What FusedLinear::Refresh makes of A and B: a stack of the A where there are several, and the block-diagonal B.
  void AddDerived(size_t layer) {
    const trainer::ModelFamily& family = *config_.family;
    for (const std::vector<std::string>& modules :
         {family.query_key_value, {family.output}, family.mlp_in, {family.mlp_out}}) {
      int64_t ranks = 0, inputs = 0, parts = 0;
      for (const std::string& module : modules) {
        const std::string name = trainer::NameInLayer(config_, layer, module);
        const auto found = lora_shapes_.find(name);
        if (found == lora_shapes_.end()) continue;
        ranks += adapter_.RankOf(name);
        inputs = found->second[1];
        ++parts;
      }
      if (parts == 0) continue;
      if (parts > 1) memory_.weights += ranks * inputs * element_bytes_;
      memory_.weights += ranks * OutputsOf(layer, modules) * element_bytes_;
    }
  }

  // Of the four fused layers: q k v, output, gate up, down.
  void AddInputScales() {
    const int64_t inputs =
        2 * config_.hidden_size + config_.num_attention_heads * config_.head_dim + config_.intermediate_size;
    memory_.weights += config_.num_hidden_layers * inputs * kFp32Bytes;
  }

  int64_t OutputsOf(size_t layer, const std::vector<std::string>& modules) {
    if (outputs_.empty()) {
      for (const trainer::TensorShape& tensor : trainer::BaseTensorShapes(config_)) {
        if (tensor.shape.size() == 2) outputs_[ModuleOf(tensor.name)] = tensor.shape[0];
      }
    }
    int64_t outputs = 0;
    for (const std::string& module : modules) outputs += outputs_[trainer::NameInLayer(config_, layer, module)];
    return outputs;
  }

  void AddTrained() {
    for (const int64_t elements : trained_) {
      memory_.trained_values += elements;
      memory_.gradients += elements * kFp32Bytes;
      memory_.optimizer += 2 * elements * kFp32Bytes + kFp32Bytes;  // and a count of steps
      memory_.checkpoint += 3 * elements * kFp32Bytes;
      if (element_bytes_ == kFp32Bytes) continue;
      memory_.optimizer += elements * kFp32Bytes;
      memory_.checkpoint += elements * element_bytes_;
    }
    memory_.collectives = BucketBytes();
  }

  // Buckets are filled from the back; one of a single tensor is that tensor.
  int64_t BucketBytes() const {
    int64_t total = 0, bytes = 0, members = 0;
    const auto close = [&] {
      if (members > 1) total += bytes;
      bytes = members = 0;
    };
    for (auto elements = trained_.rbegin(); elements != trained_.rend(); ++elements) {
      if (members > 0 && bytes + *elements * kFp32Bytes > kBucketBytes) close();
      bytes += *elements * kFp32Bytes;
      ++members;
    }
    close();
    return total;
  }

  const trainer::ModelConfig& config_;
  const trainer::AdapterPlan& adapter_;
  const int64_t element_bytes_;
  std::set<std::string> linears_;
  std::vector<int64_t> weight_shape_;  // of the linear layer at hand
  std::map<std::string, std::array<int64_t, 2>> lora_shapes_;
  std::map<std::string, int64_t> outputs_;
  std::vector<int64_t> trained_;  // elements, in the order of the model
  ModelMemory memory_;
};

int64_t Sum(const std::array<int64_t, kKeptPartCount>& parts) {
  return std::accumulate(parts.begin(), parts.end(), int64_t{0});
}

}  // namespace

ModelMemory ModelMemoryOf(const trainer::ModelConfig& config, const trainer::AdapterPlan& adapter,
                          jobfile::TrainingDtype dtype) {
  return Counter(config, adapter, dtype).Count();
}

ModelMemory ModelMemoryOf(const PlannedJob& job) {
  ModelMemory memory = ModelMemoryOf(job.config, job.adapter, *job.spec.training.dtype);
  const StepShape shape = job.Shape();
  if (shape.weight_ranks == 0) return memory;
  const WeightShards shards = ShardWeights(shape);
  memory.weights += shards.held_bytes() + shards.gathered_bytes() - shards.whole_bytes();
  return memory;
}

int64_t RankMemory::activations() const { return Sum(kept); }
int64_t RankMemory::host_activations() const { return Sum(kept_host); }
int64_t RankMemory::device_bytes() const {
  return model.weights + model.gradients + model.optimizer + model.collectives + activations() + workspace + attention +
         batch;
}

RankMemory MemoryWithoutPolicy(const PlannedJob& job, const ModelMemory& model) {
  RankMemory memory;
  memory.model = model;
  const bool packed = job.spec.data.packing;
  const int64_t stored_token = (packed ? 3 : 2) * kIdBytes;  // id, label; document
  const int64_t batch_token = (packed ? 6 : 4) * kIdBytes;   // also target and the index of a scored row; position
  const int64_t context = job.spec.context_length;
  // Ranks that share sequences have the whole ones, and ids and targets of their own tokens beside them.
  const bool shared = jobfile::RanksPerSequence(job.spec) > 1;
  const int64_t table_rows = DividedUp(context, kAngleTableStep) * kAngleTableStep;
  const int64_t angles = trainer::RotaryDims(job.config.rope, job.config.head_dim) / 2;
  memory.batch = job.rows() * (shared ? 3 * kIdBytes : batch_token) + 2 * table_rows * angles * kFp32Bytes;
  if (shared) memory.batch += job.micro_batch() * context * 3 * kIdBytes;
  memory.tokens = job.sequences_of_rank() * context * stored_token;
  return memory;
}

int64_t WorkspaceBytes(const StepShape& shape, const MemoryPolicy& policy) {
  return LayOut(TrainingBuffers(shape, policy)).bytes;
}

int64_t LeastWorkspaceBytes(const StepShape& shape, const MemoryPolicy& policy) {
  return FullestStage(TrainingBuffers(shape, policy));
}

void SetKept(const StepShape& shape, const MemoryPolicy& policy, RankMemory* memory) {
  const KeptPlan plan = PlanKeptValues(shape, policy);
  for (size_t part = 0; part < kKeptPartCount; ++part) {
    const int64_t entry = plan.long_lived_bytes.parts[part];
    memory->kept[part] = (plan.long_lived - plan.host) * entry;
    memory->kept_host[part] = plan.host * entry;
    if (plan.segment == 0) continue;
    // The first layer of a segment reads its checkpoint.
    const int64_t entries = part == static_cast<size_t>(KeptPart::kInput) ? plan.segment - 1 : plan.segment;
    memory->kept[part] += entries * plan.segment_bytes.parts[part];
  }
  memory->host_traffic = 2 * memory->host_activations();
}

RankMemory MemoryOfRank(const PlannedJob& job, const MemoryPolicy& policy) {
  RankMemory memory = MemoryWithoutPolicy(job, ModelMemoryOf(job));
  const StepShape shape = job.Shape();
  memory.workspace = WorkspaceBytes(shape, policy);
  memory.attention = AttentionTemporaries(job, shape, policy);
  SetKept(shape, policy, &memory);
  return memory;
}

std::string_view NameOf(KeptPart part) {
  static constexpr std::string_view kNames[] = {"input",           "attention_output", "logsumexp",
                                                "query_key_value", "residual",         "gate_up"};
  static_assert(sizeof(kNames) / sizeof(kNames[0]) == kKeptPartCount);
  return kNames[static_cast<int>(part)];
}

}  // namespace longspan::planner
