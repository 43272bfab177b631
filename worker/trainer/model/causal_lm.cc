// Every family (model_family.h): embedding, decoder layers, final norm, head; one pass forward and one back over a
// batch.
#include "worker/trainer/model/causal_lm.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <optional>

#include "worker/planner/job_shape.h"
#include "worker/planner/kept_values.h"
#include "worker/planner/step_buffers.h"
#include "worker/planner/weight_shards.h"
#include "worker/trainer/attention/segments.h"
#include "worker/trainer/memory/kept_values.h"
#include "worker/trainer/model/decoder_layer.h"
#include "worker/trainer/model/model_weights.h"
#include "worker/trainer/model/packed_documents.h"
#include "worker/trainer/model/quantize_source.h"
#include "worker/trainer/model/rotary_positions.h"
#include "worker/trainer/model/row_sums.h"
#include "worker/trainer/model/sharded_weights.h"
#include "worker/trainer/model/token_loss.h"
#include "worker/trainer/model/training_attention.h"
#include "worker/trainer/model/training_layers.h"

namespace longspan::trainer {
namespace {

// Fewer rows than this go through LoRA's two thin products: folding would read and write every weight for them.
constexpr int64_t kFoldRowsMin = 128;

at::ScalarType ComputeScalarType(const jobfile::JobSpec& spec) {
  return planner::ComputeDtype(spec) == jobfile::TrainingDtype::kBf16 ? at::kBFloat16 : at::kFloat;
}

void CheckIds(const at::Tensor& ids, int64_t vocab_size, int64_t also_allowed, const char* what) {
  TORCH_CHECK(ids.dim() == 2 && ids.scalar_type() == at::kLong && ids.size(0) >= 1 && ids.size(1) >= 1, what,
              " must be (B, T) int64 with at least one token, not ", ids.sizes());
  const at::Tensor contiguous = ids.contiguous();
  const int64_t* id = contiguous.data_ptr<int64_t>();
  for (int64_t i = 0; i < contiguous.numel(); ++i) {
    if ((id[i] < 0 || id[i] >= vocab_size) && id[i] != also_allowed) {
      throw UserError(fmt::format("{}: {} at sequence {}, token {} is outside the model's vocabulary of {}", what,
                                  id[i], i / ids.size(1), i % ids.size(1), vocab_size));
    }
  }
}

class Decoder : public CausalLm {
 public:
  explicit Decoder(const ModelOptions& options)
      : options_(options),
        config_(WithJobWindow(WithJobRope(ReadModelConfig(options.spec.model.path), options.spec), options.spec)),
        plan_(ResolveAdapterPlan(options.spec, AdaptableModelOf(config_))),
        shape_(planner::StepShapeOf(options.spec, config_, plan_, /*rows=*/0)),
        base_(options.spec.model.init == jobfile::ModelInit::kRandom
                  ? RandomBaseTensors(config_, options.spec.training.seed)
                  : OpenBaseTensors(config_, options.spec.model.path)),
        original_positions_(config_.original_rope, config_.head_dim, options.device),
        extended_positions_(config_.rope, config_.head_dim, options.device),
        arena_(options.device),
        kept_(options.device.is_cuda() ? CopyStream::OnGpu() : CopyStream::OnThread(), options.device) {
    if (!options.dropout) shape_.dropout = false;
    shape_.on_gpu = options.device.is_cuda();
    shape_.weight_ranks = 0;
    if (options.ranks != nullptr && options.spec.resources.shard_weights) {
      TORCH_CHECK(!plan_.trains_base && !plan_.quantized && !plan_.fp8,
                  "only frozen weights in the compute dtype are shared");
      shape_.weight_ranks = options.ranks->world_size();
      shards_ = std::make_unique<ShardedWeights>(
          planner::ShardWeights(shape_), at::TensorOptions(options.device).dtype(ComputeScalarType(options.spec)),
          *options.ranks);
    }
    if (plan_.has_lora && plan_.trains_head && !config_.family->head_alias.empty()) {
      throw SpecError(fmt::format("method.train_head: the head of {} does not train beside LoRA; method full trains it",
                                  config_.family->architecture));
    }
    WeightOptions weight_options;
    weight_options.dtype = ComputeScalarType(options.spec);
    weight_options.device = options.device;
    weight_options.adapter_folder = options.spec.method.adapter;
    weight_options.shards = shards_.get();
    weight_options.seed = options.spec.training.seed;
    weight_options.fp8 = plan_.fp8;
    QuantizedBase quantized;
    if (plan_.quantized) {
      quantized =
          LoadQuantizedBase(QuantizeSourceOf(config_, AdaptableModelOf(config_), *base_), options.quantized_cache);
      weight_options.quantized = &quantized;
    }
    weights_ = LoadModelWeights(config_, *base_, plan_, weight_options);
    if (options.trains) trainables_ = AttachGradients(config_, plan_, &weights_);
  }

  const ModelConfig& config() const override { return config_; }
  std::vector<Trainable>& trainables() override { return trainables_.items; }
  const AdapterPlan& adapter() const override { return plan_; }
  std::vector<Trainable> carried() const override { return CarriedTensors(config_, weights_, trainables_); }

  int64_t parameter_count() const override {
    int64_t count = 0;
    for (const TensorShape& tensor : BaseTensorShapes(config_)) count += c10::multiply_integers(tensor.shape);
    return count;
  }

  void ZeroGradients() override {
    for (Trainable& trainable : trainables_.items) trainable.gradient.zero_();
  }

  bool shares_weights() const override { return shards_ != nullptr; }
  void TakePart(PassKind kind) override {
    if (shards_) shards_->WalkThrough(OrderOf(kind));
  }

  void ValuesChanged() override { values_changed_ = true; }
  void ReleaseBuffers() override {
    arena_.Release();
    kept_.Release();
    if (shards_) shards_->ReleaseRows();
  }
  MemoryUse memory_use() const override {
    return {arena_.bytes(), kept_.device_bytes(), kept_.host_bytes(), kept_.wait_seconds(),
            shards_ ? shards_->wait_seconds() : 0};
  }

  LossSum ForwardBackward(const Batch& batch, const GradientReady& ready) override {
    CheckBatch(batch.input_ids, batch.labels);
    CheckDocuments(batch.input_ids, batch.document_ids);
    const at::Tensor targets = ShiftedTargets(batch.labels, batch.document_ids);
    const bool anything_scored = targets.ne(kIgnoredLabel).any().item<bool>();
    LossSum sum;
    // Of all tokens, so that ranks that share them decide the same.
    if (anything_scored) sum = Run(batch, targets, ready);
    if (!anything_scored) TakePart(PassKind::kTraining);
    if (!anything_scored && ready) {
      for (size_t index = 0; index < trainables_.items.size(); ++index) ready(index);
    }
    return sum;
  }

  at::Tensor TrainingLogits(const at::Tensor& input_ids, const at::Tensor& document_ids) override {
    CheckIds(input_ids, config_.vocab_size, 0, "input_ids");
    CheckDocuments(input_ids, document_ids);
    Refresh();
    const SequenceShare share = ShareOf(input_ids);
    const LayerPass pass = TrainingPass(input_ids, document_ids, share);
    const at::Tensor hidden = FinalNorm(weights_, Hidden(weights_, pass, Own(input_ids, share)));
    return at::mm(hidden, weights_.head.value.t())
        .to(at::kCPU, at::kFloat)
        .view({input_ids.size(0), share.tokens, config_.vocab_size});
  }

  LossSum Evaluate(const at::Tensor& input_ids, const at::Tensor& labels, const EvaluationOptions& options) override {
    CheckBatch(input_ids, labels);
    const ModelWeights& weights = WeightsFor(options);
    LayerPass pass = NewPass();
    pass.adapted = options.adapted;
    CheckDocuments(input_ids, options.document_ids);
    const PackedDocuments documents = DocumentsOf(input_ids, options.document_ids);
    const SequenceShare share = options.alone ? SequenceShare{0, input_ids.size(1)} : ShareOf(input_ids);
    pass.attention_shape = ShapeOf(input_ids, documents);
    if (!options.alone && IsShared()) {
      CheckShared(options.document_ids);
      SetSequence(PlanFullSequence(ShapeOf(input_ids, {}), Place()), &pass);
    } else {
      pass.attention = Joined(PlanFullAttention(pass.attention_shape), options.document_ids);
    }
    pass.windowed = Windowed(options);
    pass.rotation =
        Own((options.rope == RopeScaling::kOriginal ? original_positions_ : extended_positions_).Within(documents),
            documents, share);
    const at::Tensor hidden = Hidden(weights, pass, Own(input_ids, share));
    const at::Tensor targets = Own(ShiftedTargets(labels, options.document_ids).view_as(labels), share).view({-1});
    return TiledTokenLoss(LossInputsOf(weights, hidden, targets), options_.memory.loss_tile_tokens, {}, arena_);
  }

  at::Tensor Continue(const std::vector<Continuation>& sequences, const EvaluationOptions& options) override {
    TORCH_CHECK(!shards_, "a text is written by one rank, which needs whole weights");
    const ModelWeights& weights = WeightsFor(options);
    const at::Tensor logits = at::empty({static_cast<int64_t>(sequences.size()), config_.vocab_size}, at::kFloat);
    for (const ContinuationPass& plan : PlanContinuation(sequences, options_.memory.tile_tokens)) {
      const at::Tensor ids = IdsOf(sequences, plan).unsqueeze(0);
      CheckIds(ids, config_.vocab_size, 0, "tokens");
      LayerPass pass = NewPass();
      pass.adapted = options.adapted;
      pass.folds = plan.rows >= kFoldRowsMin;
      CachedAttention cached;
      std::vector<int64_t> ending_rows, ending_sequences;
      for (const ContinuationPass::Rows& part : plan.parts) {
        cached.sequences.push_back({sequences[part.sequence].cache, part.first_row, part.rows});
        if (!part.last) continue;
        ending_rows.push_back(part.first_row + part.rows - 1);
        ending_sequences.push_back(static_cast<int64_t>(part.sequence));
      }
      pass.cached = &cached;
      pass.windowed = Windowed(options);
      pass.rotation = RotationOf(sequences, plan, options);
      const at::Tensor hidden = Hidden(weights, pass, ids);
      for (const CachedRows& part : cached.sequences) part.cache->Advance(part.rows);
      if (ending_rows.empty()) continue;
      const at::Tensor ending = FinalNorm(weights, hidden.index_select(0, at::tensor(ending_rows).to(options_.device)));
      at::Tensor(logits).index_copy_(0, at::tensor(ending_sequences),
                                     at::mm(ending, weights.head.value.t()).to(at::kCPU, at::kFloat));
    }
    return logits;
  }

  void ForEachMergedTensor(
      const std::function<void(const std::string& name, const at::Tensor& value)>& visit) override {
    VisitMergedTensors(config_, *base_, plan_, weights_, options_.spec.output.merged_base, visit);
  }

 private:
  const ModelWeights& WeightsFor(const EvaluationOptions& options) {
    Refresh();
    if (!options.adapted && !base_weights_) base_weights_ = BaseOf(config_, *base_, plan_, weights_);
    if (!options.adapted) return *base_weights_;
    if (!options.original_weights) return weights_;
    return over_originals_.emplace(OverOriginalLinears(*base_, weights_));
  }

  // What the model's own config.json says; the extended one has no window where the job's context outgrew it.
  bool Windowed(const EvaluationOptions& options) const {
    return options.rope == RopeScaling::kOriginal || !config_.window_outgrown;
  }

  // One row of angles a row of the pass, each at its own position in a text as long as it is after this call.
  Rotation RotationOf(const std::vector<Continuation>& sequences, const ContinuationPass& plan,
                      const EvaluationOptions& options) {
    RotaryPositions& positions = options.rope == RopeScaling::kOriginal ? original_positions_ : extended_positions_;
    std::vector<at::Tensor> cosine, sine;
    for (const ContinuationPass::Rows& part : plan.parts) {
      const auto tokens = static_cast<int64_t>(sequences[part.sequence].tokens.size());
      const Rotation all = positions.For(part.first_position - part.first_token + tokens);
      cosine.push_back(all.cosine.narrow(0, part.first_position, part.rows));
      sine.push_back(all.sine.narrow(0, part.first_position, part.rows));
    }
    return {at::cat(cosine), at::cat(sine), plan.rows};
  }

  void CheckBatch(const at::Tensor& input_ids, const at::Tensor& labels) const {
    CheckIds(input_ids, config_.vocab_size, 0, "input_ids");
    TORCH_CHECK(labels.sizes() == input_ids.sizes(), "labels ", labels.sizes(), " for input_ids ", input_ids.sizes());
    CheckIds(labels, config_.vocab_size, kIgnoredLabel, "labels");
  }

  static void CheckDocuments(const at::Tensor& input_ids, const at::Tensor& document_ids) {
    TORCH_CHECK(!document_ids.defined() || document_ids.sizes() == input_ids.sizes(), "document_ids ",
                document_ids.sizes(), " for input_ids ", input_ids.sizes());
  }

  // ---- sequences whose tokens lie on several ranks ----

  bool IsShared() const { return options_.sequence != nullptr && options_.sequence->size() > 1; }
  SequencePlace Place() const { return {options_.sequence->rank(), options_.sequence->size()}; }
  // What this rank computes of each sequence of (B, T) ids.
  SequenceShare ShareOf(const at::Tensor& ids) const {
    if (!IsShared()) return {0, ids.size(1)};
    return SharesOf(ids.size(1), Place().ranks)[static_cast<size_t>(Place().rank)];
  }
  static at::Tensor Own(const at::Tensor& all, const SequenceShare& share) {
    return all.narrow(1, share.first, share.tokens).contiguous();
  }
  // Packed documents are never shared; under dynamic positions their table has a row for every row of the batch.
  static Rotation Own(const Rotation& all, const PackedDocuments& documents, const SequenceShare& share) {
    if (documents.positions.defined() || share.tokens == all.tokens) return all;
    return {all.cosine.narrow(0, share.first, share.tokens), all.sine.narrow(0, share.first, share.tokens),
            share.tokens};
  }
  static void CheckShared(const at::Tensor& document_ids) {
    TORCH_CHECK(!document_ids.defined(), "packed documents on several ranks");
  }
  void SetSequence(SequencePlan plan, LayerPass* pass) const {
    pass->attention = plan.calls;
    pass->sequence.emplace(LayerPass::Sequence{std::move(plan), options_.sequence});
  }

  AttentionShape ShapeOf(const at::Tensor& input_ids, const PackedDocuments& documents) const {
    return {input_ids.size(0), input_ids.size(1), config_.num_attention_heads, config_.num_key_value_heads,
            documents.runs};
  }

  // Packed documents are many short calls, which a GPU takes together where its kernels can.
  AttentionPlan Joined(AttentionPlan plan, const at::Tensor& document_ids) const {
    const bool joins =
        document_ids.defined() && options_.device.is_cuda() && ComputeScalarType(options_.spec) == at::kBFloat16;
    return joins ? JoinSegments(plan, options_.device) : std::move(plan);
  }

  LayerPass NewPass() const {
    LayerPass pass;
    pass.shape.hidden_size = config_.hidden_size;
    pass.shape.intermediate_size = config_.intermediate_size;
    pass.shape.query_heads = config_.num_attention_heads;
    pass.shape.key_value_heads = config_.num_key_value_heads;
    pass.shape.head_dim = config_.head_dim;
    pass.shape.norm_epsilon = config_.norm_epsilon;
    pass.shape.fuses_query_key_value = config_.family->fuses_query_key_value();
    pass.shape.activation = config_.activation;
    pass.shape.parallel_residual = config_.parallel_residual;
    pass.memory = options_.memory;
    return pass;
  }

  // Without dropout.
  LayerPass TrainingPass(const at::Tensor& input_ids, const at::Tensor& document_ids, const SequenceShare& share) {
    LayerPass pass = NewPass();
    const PackedDocuments documents = DocumentsOf(input_ids, document_ids);
    if (IsShared()) {
      CheckShared(document_ids);
      SetSequence(PlanTrainingSequence(options_.spec, ShapeOf(input_ids, {}), Place()), &pass);
    } else {
      pass.attention = Joined(PlanTrainingAttention(options_.spec, ShapeOf(input_ids, documents)), document_ids);
    }
    pass.rotation = Own(extended_positions_.Within(documents), documents, share);
    return pass;
  }

  void Refresh() {
    if (!values_changed_) return;
    for (LayerWeights& layer : weights_.layers) {
      for (FusedLinear* linear : layer.linears()) linear->Refresh();
    }
    values_changed_ = false;
  }

  planner::StepShape StepShapeOf(const LayerPass& pass, int64_t rows) const {
    planner::StepShape shape = shape_;
    shape.rows = rows;
    if (pass.sequence) {
      const SequencePlan& plan = pass.sequence->plan;
      if (plan.traffic == SequenceTraffic::kHalo) shape.halo_rows = plan.sequences * plan.halo_tokens;
      if (plan.traffic == SequenceTraffic::kRing) shape.ring_rows = plan.sequences * plan.shares[0].tokens;
    }
    if (!shape.on_gpu) {
      shape.attention_scratch_bytes = 4 * FlashWorkspaceSize(config_.head_dim, at::get_num_threads());
    }
    return shape;
  }

  // Of a pass that reads the folder's own weights where the model has 8 bits of them.
  static planner::StepShape OverOriginals(planner::StepShape shape) {
    shape.fp8 = false;
    for (planner::LinearShape* linear : {&shape.query_key_value, &shape.output, &shape.mlp_in, &shape.mlp_out}) {
      linear->unpacked = true;
    }
    return shape;
  }

  std::vector<int64_t> OrderOf(PassKind kind) const {
    return kind == PassKind::kTraining ? planner::TrainingOrder(shape_, options_.memory)
                                       : planner::ForwardOrder(shape_);
  }

  // ---- forward only ----

  // The last layer's output (N, d), in the arena.
  at::Tensor Hidden(const ModelWeights& weights, const LayerPass& pass, const at::Tensor& input_ids) {
    const int64_t rows = input_ids.numel();
    if (shards_) shards_->Begin(OrderOf(PassKind::kForward));
    planner::StepShape shape = StepShapeOf(pass, rows);
    if (plan_.fp8 && !weights.layers.front().output.fp8) shape = OverOriginals(shape);
    arena_.Use(planner::LayOut(planner::ForwardBuffers(shape, options_.memory)));
    const at::Tensor hidden =
        arena_.Take(Slot::kHidden, {rows, config_.hidden_size}, weights.embedding.value.scalar_type());
    Embed(weights, input_ids, hidden);
    for (size_t layer = 0; layer < weights.layers.size(); ++layer) {
      if (shards_) shards_->Use(static_cast<int64_t>(layer));
      LayerForward(weights.layers[layer], pass, static_cast<int64_t>(layer), hidden, {}, hidden, arena_);
    }
    return hidden;
  }

  at::Tensor FinalNorm(const ModelWeights& weights, const at::Tensor& hidden) const {
    at::Tensor out = at::empty_like(hidden);
    Normalise(weights.final_norm, config_.norm_epsilon, hidden, out, {});
    return out;
  }

  LossInputs LossInputsOf(const ModelWeights& weights, const at::Tensor& hidden, const at::Tensor& targets) const {
    return {hidden, weights.final_norm, config_.norm_epsilon, weights.head.value, targets};
  }

  void Embed(const ModelWeights& weights, const at::Tensor& input_ids, at::Tensor hidden) const {
    at::index_select_out(hidden, weights.embedding.value, 0, input_ids.reshape({-1}).to(options_.device));
  }

  // ---- forward and backward ----

  LossSum Run(const Batch& batch, const at::Tensor& targets, const GradientReady& ready) {
    base_weights_.reset();  // its memory is needed here
    Refresh();
    const SequenceShare share = ShareOf(batch.input_ids);
    LayerPass pass = TrainingPass(batch.input_ids, batch.document_ids, share);
    pass.dropout = {options_.dropout ? plan_.dropout : 0.0,
                    options_.spec.training.seed,
                    batch.step,
                    batch.first_sequence_index,
                    share.tokens,
                    share.first};
    const at::Tensor input_ids = Own(batch.input_ids, share);
    const at::Tensor own_targets = Own(targets.view_as(batch.labels), share).view({-1});
    if (shards_) shards_->Begin(OrderOf(PassKind::kTraining));
    const int64_t rows = input_ids.numel();
    const planner::StepShape shape = StepShapeOf(pass, rows);
    if (options_.plans_buffers) {
      arena_.Use(planner::LayOut(planner::TrainingBuffers(shape, options_.memory)));
    } else {
      arena_.UseOwnMemory();
    }
    const planner::KeptPlan kept_plan = planner::PlanKeptValues(shape, options_.memory);
    kept_.Begin(kept_plan);
    TrainingLayers layers(weights_.layers, pass, {kept_plan, kept_, arena_, shards_.get()}, rows,
                          weights_.embedding.value.scalar_type());
    Embed(weights_, input_ids, layers.Input());
    const at::Tensor hidden = layers.Forward();
    const at::Tensor gradient = arena_.Take(Slot::kGradient, hidden.sizes(), hidden.scalar_type());
    const LossSum sum = TiledTokenLoss(LossInputsOf(weights_, hidden, own_targets), options_.memory.loss_tile_tokens,
                                       {gradient, weights_.head.gradient}, arena_);
    Announce(ready, trainables_.head);
    Announce(ready, trainables_.final_norm);
    layers.Backward(gradient, weights_.embedding.gradient.defined(),
                    [&](int64_t layer) { Announce(ready, trainables_.layers[static_cast<size_t>(layer)]); });
    if (weights_.embedding.gradient.defined()) {
      AddRows(input_ids.reshape({-1}).to(options_.device), gradient, weights_.embedding.gradient);
    }
    Announce(ready, trainables_.embedding);
    return sum;
  }

  static void Announce(const GradientReady& ready, const TrainableRange& range) {
    if (!ready) return;
    for (size_t index = range.begin; index < range.end; ++index) ready(index);
  }

  ModelOptions options_;
  ModelConfig config_;
  AdapterPlan plan_;
  planner::StepShape shape_;  // of a pass over no rows yet
  std::unique_ptr<BaseTensors> base_;
  std::unique_ptr<ShardedWeights> shards_;  // null: the linear layers are whole
  ModelWeights weights_;
  TrainableList trainables_;
  std::optional<ModelWeights> base_weights_;    // for evaluation without what was trained; dropped by training
  std::optional<ModelWeights> over_originals_;  // views, made for each call
  RotaryPositions original_positions_, extended_positions_;
  Arena arena_;
  KeptValues kept_;
  bool values_changed_ = false;
};

}  // namespace

std::unique_ptr<CausalLm> CausalLm::Load(const ModelOptions& options) { return std::make_unique<Decoder>(options); }

}  // namespace longspan::trainer
