#include "worker/trainer/model/token_loss.h"

#include <algorithm>
#include <cmath>

#include "worker/trainer/memory/counting_allocator.h"
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

// The scored tokens of one tile.
class LossTile {
 public:
  LossTile(const LossInputs& inputs, const at::Tensor& rows, Arena& arena)
      : inputs_(inputs), rows_(rows), arena_(arena), dtype_(inputs.hidden.scalar_type()) {
    const int64_t count = rows.size(0), size = inputs.hidden.size(1), vocab_size = inputs.head.size(0);
    const int64_t* const row = rows.const_data_ptr<int64_t>();
    first_row_ = row[0];
    consecutive_ = row[count - 1] - first_row_ == count - 1;
    if (consecutive_) {
      hidden_ = inputs.hidden.narrow(0, first_row_, count);
    } else {
      hidden_ = arena.Take(Slot::kLossHidden, {count, size}, dtype_);
      at::index_select_out(hidden_, inputs.hidden, 0, rows);
    }
    targets_ = inputs.targets.index_select(0, rows);
    statistics_ = StatisticsOf(count, arena);
    normed_ = arena.Take(Slot::kLossNormed, {count, size}, dtype_);
    Normalise(inputs.final_norm, inputs.norm_epsilon, hidden_, normed_, statistics_);
    computed_logits_ = arena.Take(Slot::kLogits, {count, vocab_size}, dtype_);
    at::mm_out(computed_logits_, normed_, inputs.head.t());
    logits_ = computed_logits_;
    if (dtype_ != at::kFloat) {
      logits_ = arena.Take(Slot::kLogitsFloat, {count, vocab_size}, at::kFloat);
      logits_.copy_(computed_logits_);
    }
    probabilities_ = arena.Take(Slot::kProbabilities, {count, vocab_size}, at::kFloat);
    at::_softmax_out(probabilities_, logits_, 1, /*half_to_float=*/false);
  }

  double Loss() const { return SumOfLosses(probabilities_, logits_, targets_); }

  void Backward(const LossGradients& gradients) const {
    SubtractTargets(probabilities_, targets_);
    at::Tensor logits_gradient = probabilities_;
    if (dtype_ != at::kFloat) {
      logits_gradient = computed_logits_;
      logits_gradient.copy_(probabilities_);
    }
    if (gradients.head.defined()) AddProduct(logits_gradient, normed_, gradients.head, arena_);
    at::Tensor normed_gradient = arena_.Take(Slot::kLossGradient, normed_.sizes(), dtype_);
    at::mm_out(normed_gradient, logits_gradient, inputs_.head);
    at::Tensor hidden_gradient;
    if (consecutive_) {
      hidden_gradient = gradients.hidden.narrow(0, first_row_, rows_.size(0));
    } else {
      hidden_gradient = arena_.Take(Slot::kLossHiddenGradient, normed_.sizes(), dtype_).zero_();
    }
    NormaliseBackward(inputs_.final_norm, hidden_, statistics_, normed_gradient, hidden_gradient, arena_);
    if (!consecutive_) at::Tensor(gradients.hidden).index_copy_(0, rows_, hidden_gradient);
  }

 private:
  const LossInputs& inputs_;
  const at::Tensor rows_;
  Arena& arena_;
  const at::ScalarType dtype_;
  int64_t first_row_ = 0;
  bool consecutive_ = false;
  at::Tensor hidden_, targets_, statistics_, normed_;
  at::Tensor computed_logits_, logits_;  // in the compute dtype, and fp32
  at::Tensor probabilities_;
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
  at::Tensor scored;
  {
    const ListedAllocation indices;
    scored = at::nonzero(inputs.targets.ne(kIgnoredLabel)).view({-1});
  }
  if (gradients.hidden.defined()) at::Tensor(gradients.hidden).zero_();
  LossSum sum;
  sum.tokens = scored.size(0);
  for (int64_t begin = 0; begin < sum.tokens; begin += tile_rows) {
    const LossTile tile(inputs, scored.narrow(0, begin, std::min(tile_rows, sum.tokens - begin)), arena);
    sum.loss += tile.Loss();
    if (gradients.hidden.defined()) tile.Backward(gradients);
  }
  return sum;
}

}  // namespace longspan::trainer
