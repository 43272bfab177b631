#include "worker/trainer/model/training_layers.h"

#include <algorithm>

namespace longspan::trainer {

TrainingLayers::TrainingLayers(const std::vector<LayerWeights>& layers, const LayerPass& pass, const Memory& memory,
                               int64_t rows, at::ScalarType dtype)
    : layers_(layers), pass_(pass), memory_(memory), rows_(rows), dtype_(dtype) {}

at::Tensor TrainingLayers::OpenInput(int64_t entry) {
  return memory_.kept.Open(entry, KeptPart::kInput, {rows_, pass_.shape.hidden_size}, dtype_);
}

at::Tensor TrainingLayers::ReadInput(int64_t entry) {
  return memory_.kept.Read(entry, KeptPart::kInput, {rows_, pass_.shape.hidden_size}, dtype_);
}

at::Tensor TrainingLayers::SegmentInput(int64_t layer) const {
  return memory_.kept.OfSegment(layer - SegmentBegin(layer), KeptPart::kInput, {rows_, pass_.shape.hidden_size},
                                dtype_);
}

KeptLayer TrainingLayers::PartsOf(const planner::KeptBytes& bytes, const PartBuffer& buffer) const {
  const LayerShape& shape = pass_.shape;
  const int64_t query_size = shape.query_heads * shape.head_dim;
  const int64_t key_value_size = shape.key_value_heads * shape.head_dim;
  const auto part = [&](KeptPart which, std::vector<int64_t> sizes, at::ScalarType dtype) {
    return bytes.parts[static_cast<size_t>(which)] > 0 ? buffer(which, sizes, dtype) : at::Tensor();
  };
  KeptLayer kept;
  kept.attention_out = part(KeptPart::kAttentionOutput, {rows_, query_size}, dtype_);
  kept.logsumexp = part(KeptPart::kLogSumExp, {rows_ * shape.query_heads}, at::kFloat);
  kept.query_key_value = part(KeptPart::kQueryKeyValue, {rows_, query_size + 2 * key_value_size}, dtype_);
  kept.residual = part(KeptPart::kResidual, {rows_, shape.hidden_size}, dtype_);
  kept.mlp_inner = part(KeptPart::kGateUp, {rows_, shape.mlp_in_size()}, dtype_);
  return kept;
}

KeptLayer TrainingLayers::SegmentParts(int64_t layer) const {
  return PartsOf(memory_.plan.segment_bytes, [this, index = layer - SegmentBegin(layer)](
                                                 KeptPart part, at::IntArrayRef sizes, at::ScalarType dtype) {
    return memory_.kept.OfSegment(index, part, sizes, dtype);
  });
}

void TrainingLayers::CloseParts(int64_t entry) {
  for (int part = 0; part < planner::kKeptPartCount; ++part) {
    if (static_cast<KeptPart>(part) != KeptPart::kInput) memory_.kept.Close(entry, static_cast<KeptPart>(part));
  }
}

at::Tensor TrainingLayers::Input() { return input_ = OpenInput(0); }

// Where the output of a layer goes on its way forward: the next one's input.
at::Tensor TrainingLayers::OutputOf(int64_t layer) {
  const int64_t next = layer + 1;
  if (next < layer_count() && next % every() == 0) return OpenInput(next / every());
  if (next < layer_count() && InLastSegment(next)) return SegmentInput(next);
  return memory_.arena.Take(Slot::kHidden, {rows_, pass_.shape.hidden_size}, dtype_);  // perhaps this one's input
}

at::Tensor TrainingLayers::Forward() {
  at::Tensor x = input_;
  for (int64_t layer = 0; layer < layer_count(); ++layer) {
    const int64_t entry = layer / every();
    if (layer % every() == 0) memory_.kept.Close(entry, KeptPart::kInput);  // it leaves while this layer computes
    KeptLayer kept;
    if (!has_segments()) {
      kept = PartsOf(memory_.plan.long_lived_bytes, [&](KeptPart part, at::IntArrayRef sizes, at::ScalarType dtype) {
        return memory_.kept.Open(entry, part, sizes, dtype);
      });
    } else if (InLastSegment(layer)) {
      kept = SegmentParts(layer);
    }
    const at::Tensor y = OutputOf(layer);
    LayerForward(Weights(layer), pass_, layer, x, kept, y, memory_.arena);
    if (!has_segments()) CloseParts(entry);
    x = y;
  }
  return x;
}

void TrainingLayers::RunSegmentAgain(int64_t begin) {
  at::Tensor x = ReadInput(begin / every());
  for (int64_t layer = begin; layer < SegmentEnd(begin); ++layer) {
    const bool last = layer + 1 == SegmentEnd(begin);
    if (last && pass_.memory.keep == KeepPolicy::kInput) return;  // nobody reads its output
    const at::Tensor y = last ? at::Tensor() : SegmentInput(layer + 1);
    LayerForward(Weights(layer), pass_, layer, x, SegmentParts(layer), y, memory_.arena);
    x = y;
  }
}

void TrainingLayers::Backward(const at::Tensor& gradient, bool wants_input_gradient,
                              const std::function<void(int64_t layer)>& done) {
  for (int64_t layer = layer_count() - 1; layer >= 0; --layer) {
    const int64_t entry = layer / every();
    const bool first_of_segment = layer % every() == 0;
    if (has_segments() && !InLastSegment(layer) && layer + 1 == SegmentEnd(layer)) RunSegmentAgain(SegmentBegin(layer));
    const at::Tensor x = first_of_segment ? ReadInput(entry) : SegmentInput(layer);
    const KeptLayer kept = has_segments() ? SegmentParts(layer)
                                          : PartsOf(memory_.plan.long_lived_bytes,
                                                    [&](KeptPart part, at::IntArrayRef sizes, at::ScalarType dtype) {
                                                      return memory_.kept.Read(entry, part, sizes, dtype);
                                                    });
    LayerBackward(Weights(layer), pass_, layer, x, kept, gradient, layer > 0 || wants_input_gradient, memory_.arena);
    if (first_of_segment) memory_.kept.Done(entry);
    done(layer);
  }
}

}  // namespace longspan::trainer
