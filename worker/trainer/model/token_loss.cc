#include "worker/trainer/model/token_loss.h"

#include <algorithm>
#include <cmath>

#include "worker/trainer/model/row_kernels.h"

namespace longspan::trainer {
namespace {

int64_t TileRows(int64_t requested, int64_t vocab_size) {
  if (requested > 0) return requested;
  return std::clamp<int64_t>((int64_t{4} << 20) / vocab_size, 32, 1024);
}

// Consecutive rows are a view, others a copy.
at::Tensor SelectRows(const at::Tensor& matrix, const at::Tensor& rows) {
  const int64_t count = rows.size(0);
  const int64_t first = rows.data_ptr<int64_t>()[0];
  if (rows.data_ptr<int64_t>()[count - 1] - first == count - 1) return matrix.narrow(0, first, count);
  return matrix.index_select(0, rows);
}

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

LossSum TiledTokenLoss(const at::Tensor& hidden, const at::Tensor& head, const at::Tensor& targets, int64_t tile_rows,
                       const LossGradients& gradients) {
  const at::Tensor scored = at::nonzero(targets.ne(kIgnoredLabel)).view({-1});
  LossSum sum;
  sum.tokens = scored.size(0);
  const int64_t rows_max = TileRows(tile_rows, head.size(0));
  for (int64_t begin = 0; begin < sum.tokens; begin += rows_max) {
    const at::Tensor rows = scored.narrow(0, begin, std::min(rows_max, sum.tokens - begin));
    const at::Tensor tile_hidden = SelectRows(hidden, rows);
    const at::Tensor tile_targets = targets.index_select(0, rows);
    const at::Tensor logits = at::mm(tile_hidden, head.t()).to(at::kFloat);
    at::Tensor probabilities = at::_softmax(logits, 1, /*half_to_float=*/false);
    sum.loss += SumOfLosses(probabilities, logits, tile_targets);
    if (!gradients.hidden.defined()) continue;
    SubtractTargets(probabilities, tile_targets);
    const at::Tensor logits_gradient = probabilities.to(hidden.scalar_type());
    gradients.hidden.index_copy_(0, rows, at::mm(logits_gradient, head));
    if (gradients.head.defined()) AddProduct(logits_gradient, tile_hidden, gradients.head);
  }
  return sum;
}

}  // namespace longspan::trainer
