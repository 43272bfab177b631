#include "worker/trainer/model/token_loss.h"

#include <algorithm>
#include <cmath>

#include "worker/trainer/gpu/gpu_kernels.h"
#include "worker/trainer/memory/counting_allocator.h"
#include "worker/trainer/model/matrix_product.h"
#include "worker/trainer/model/row_kernels.h"

namespace longspan::trainer {
namespace {

// -log(softmax), in double where the probability is too small for its logarithm to be exact.
double RowLoss(float probability, const float* logits, int64_t vocab_size, int64_t target) {
  if (probability > 1e-20f) return -std::log(static_cast<double>(probability));
  const float largest = *std::max_element(logits, logits + vocab_size);
  double sum = 0;
  for (int64_t i = 0; i < vocab_size; ++i) sum += std::exp(static_cast<double>(logits[i]) - largest);
  return std::log(sum) + largest - logits[target];
}

double SumOfLosses(const at::Tensor& probabilities, const at::Tensor& logits, const at::Tensor& targets) {
  const int64_t vocab_size = logits.size(1);
  const float* probability = probabilities.data_ptr<float>();
  const float* logit = logits.data_ptr<float>();
  const int64_t* target = targets.data_ptr<int64_t>();
  double sum = 0;
  for (int64_t row = 0; row < logits.size(0); ++row) {
    sum += RowLoss(probability[row * vocab_size + target[row]], logit + row * vocab_size, vocab_size, target[row]);
  }
  return sum;
}

// The scored tokens of one tile. On a CPU the loss comes from probabilities in fp32; on a GPU one kernel takes it from
// the logits and leaves their gradient in their place.
class LossTile {
 public:
  // rows: of the hidden states, on the host.
  LossTile(const LossInputs& inputs, const at::Tensor& rows, Arena& arena)
      : inputs_(inputs), arena_(arena), dtype_(inputs.hidden.scalar_type()) {
    const int64_t count = rows.size(0), size = inputs.hidden.size(1), vocab_size = inputs.head.size(0);
    const int64_t* const row = rows.const_data_ptr<int64_t>();
    first_row_ = row[0];
    consecutive_ = row[count - 1] - first_row_ == count - 1;
    targets_ = inputs.targets.index_select(0, rows).to(inputs.hidden.device());
    if (consecutive_) {
      hidden_ = inputs.hidden.narrow(0, first_row_, count);
    } else {
      rows_ = rows.to(inputs.hidden.device());
      hidden_ = arena.Take(Slot::kLossHidden, {count, size}, dtype_);
      at::index_select_out(hidden_, inputs.hidden, 0, rows_);
    }
    statistics_ = StatisticsOf(count, arena);
    normed_ = arena.Take(Slot::kLossNormed, {count, size}, dtype_);
    Normalise(inputs.final_norm, inputs.norm_epsilon, hidden_, normed_, statistics_);
    logits_ = arena.Take(Slot::kLogits, {count, vocab_size}, dtype_);
    MultiplyInto(normed_, inputs.head.t(), logits_);
  }

  // Adds the loss to `sum`; what Backward needs is there afterwards.
  void AddLoss(bool wants_gradient, double* sum) {
    at::Tensor logits = logits_;
    if (dtype_ != at::kFloat) {
      logits = arena_.Take(Slot::kLogitsFloat, logits_.sizes(), at::kFloat);
      logits.copy_(logits_);
    }
    at::Tensor probabilities = arena_.Take(Slot::kProbabilities, logits_.sizes(), at::kFloat);
    at::_softmax_out(probabilities, logits, 1, /*half_to_float=*/false);
    *sum += SumOfLosses(probabilities, logits, targets_);
    if (!wants_gradient) return;
    SubtractTargets(probabilities, targets_);
    logits_gradient_ = probabilities;
    if (dtype_ != at::kFloat) {
      logits_gradient_ = logits_;
      logits_gradient_.copy_(probabilities);
    }
  }
  void AddLossOnGpu(bool wants_gradient, const at::Tensor& sum) {
    gpu::CrossEntropy(logits_, targets_, wants_gradient, sum);
    logits_gradient_ = logits_;
  }

  void Backward(const LossGradients& gradients) const {
    if (gradients.head.defined()) AddProduct(logits_gradient_, normed_, gradients.head, arena_);
    const at::Tensor normed_gradient = arena_.Take(Slot::kLossGradient, normed_.sizes(), dtype_);
    MultiplyInto(logits_gradient_, inputs_.head, normed_gradient);
    at::Tensor hidden_gradient;
    if (consecutive_) {
      hidden_gradient = gradients.hidden.narrow(0, first_row_, hidden_.size(0));
    } else {
      hidden_gradient = arena_.Take(Slot::kLossHiddenGradient, normed_.sizes(), dtype_).zero_();
    }
    NormaliseBackward(inputs_.final_norm, hidden_, statistics_, normed_gradient, hidden_gradient, arena_);
    if (!consecutive_) at::Tensor(gradients.hidden).index_copy_(0, rows_, hidden_gradient);
  }

 private:
  const LossInputs& inputs_;
  Arena& arena_;
  const at::ScalarType dtype_;
  int64_t first_row_ = 0;
  bool consecutive_ = false;
  at::Tensor rows_;  // where they are not consecutive
  at::Tensor hidden_, targets_, statistics_, normed_;
  at::Tensor logits_, logits_gradient_;
};

}  // namespace

at::Tensor ShiftedTargets(const at::Tensor& labels, const at::Tensor& document_ids) {
  at::Tensor targets = at::full(labels.sizes(), kIgnoredLabel, labels.options());
  const int64_t tokens = labels.size(1);
  if (tokens > 1) {
    const at::Tensor scored = targets.narrow(1, 0, tokens - 1);
    scored.copy_(labels.narrow(1, 1, tokens - 1));
    if (document_ids.defined()) {
      const at::Tensor borders = document_ids.narrow(1, 1, tokens - 1).ne(document_ids.narrow(1, 0, tokens - 1));
      scored.masked_fill_(borders, kIgnoredLabel);
    }
  }
  return targets.view({-1});
}

LossSum TiledTokenLoss(const LossInputs& inputs, int64_t tile_rows, const LossGradients& gradients, Arena& arena) {
  const bool on_gpu = inputs.hidden.is_cuda(), wants_gradient = gradients.hidden.defined();
  at::Tensor scored, gpu_sum;
  {
    const ListedAllocation indices;
    scored = at::nonzero(inputs.targets.ne(kIgnoredLabel)).view({-1});
  }
  if (on_gpu) gpu_sum = at::zeros({1}, inputs.hidden.options().dtype(at::kDouble));
  if (wants_gradient) at::Tensor(gradients.hidden).zero_();
  LossSum sum;
  sum.tokens = scored.size(0);
  for (int64_t begin = 0; begin < sum.tokens; begin += tile_rows) {
    LossTile tile(inputs, scored.narrow(0, begin, std::min(tile_rows, sum.tokens - begin)), arena);
    if (on_gpu) {
      tile.AddLossOnGpu(wants_gradient, gpu_sum);
    } else {
      tile.AddLoss(wants_gradient, &sum.loss);
    }
    if (wants_gradient) tile.Backward(gradients);
  }
  if (on_gpu) sum.loss = gpu_sum.item<double>();
  return sum;
}

}  // namespace longspan::trainer
