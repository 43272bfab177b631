#include "worker/trainer/attention/block_attention.h"

#include <algorithm>
#include <cmath>

#include "worker/trainer/attention/dense_blocks.h"
#include "worker/trainer/model/row_parallel.h"

namespace longspan::trainer {
namespace {

// Softmax over two sets of keys from the softmax over each, for one query of one head; into the first.
template <typename T>
void JoinRow(float* logsumexp, float other_logsumexp, T* __restrict values, const T* __restrict other_values,
             int64_t size) {
  const float larger = std::max(*logsumexp, other_logsumexp);
  const float joined = larger + std::log(std::exp(*logsumexp - larger) + std::exp(other_logsumexp - larger));
  const float weight = std::exp(*logsumexp - joined);
  const float other_weight = std::exp(other_logsumexp - joined);
  for (int64_t i = 0; i < size; ++i) {
    values[i] =
        static_cast<T>(weight * static_cast<float>(values[i]) + other_weight * static_cast<float>(other_values[i]));
  }
  *logsumexp = joined;
}

// values (blocks, heads, length, D) and logsumexp (blocks, heads, length), from a kernel each. By hand, because ATen's
// vectorised loops round the last elements of a tensor differently, so a sequence would depend on its place in a batch.
template <typename T>
void JoinSoftmaxOf(const at::Tensor& values, const at::Tensor& logsumexp, const at::Tensor& other_values,
                   const at::Tensor& other_logsumexp) {
  at::TensorAccessor<float, 3> sums = logsumexp.accessor<float, 3>();
  at::TensorAccessor<float, 3> other_sums = other_logsumexp.accessor<float, 3>();
  at::TensorAccessor<T, 4> to = values.accessor<T, 4>();
  at::TensorAccessor<T, 4> from = other_values.accessor<T, 4>();
  TORCH_CHECK(values.stride(3) == 1 && other_values.stride(3) == 1, "attention wants values with last stride 1");
  const int64_t length = values.size(2);
  ForRowRanges(values.size(0) * length, /*grain=*/16, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t block = row / length, token = row % length;
      for (int64_t head = 0; head < values.size(1); ++head) {
        JoinRow(&sums[block][head][token], other_sums[block][head][token], to[block][head][token].data(),
                from[block][head][token].data(), values.size(3));
      }
    }
  });
}

void JoinHeadsOnGpu(const at::Tensor& values, at::Tensor logsumexp, const at::Tensor& other_values,
                    const at::Tensor& other_logsumexp) {
  const at::Tensor joined = at::logaddexp(logsumexp, other_logsumexp);
  const at::Tensor sum = values.to(at::kFloat).mul_(at::exp(logsumexp - joined).unsqueeze(-1));
  sum.addcmul_(other_values.to(at::kFloat), at::exp(other_logsumexp - joined).unsqueeze(-1));
  at::Tensor(values).copy_(sum);
  logsumexp.copy_(joined);
}

// As many heads at a time as keep what is made of them in fp32 small (dense_attention_memory.h).
void JoinSoftmaxOnGpu(const at::Tensor& values, const at::Tensor& logsumexp, const at::Tensor& other_values,
                      const at::Tensor& other_logsumexp) {
  const int64_t heads = values.size(1);
  const int64_t bytes_of_head = 2 * values.numel() / std::max<int64_t>(1, heads) * int64_t{sizeof(float)};
  const int64_t most = std::max<int64_t>(1, planner::kDensePartBytes / std::max<int64_t>(1, bytes_of_head));
  for (int64_t head = 0; head < heads; head += most) {
    const auto part = [&](const at::Tensor& all) { return all.narrow(1, head, std::min(most, heads - head)); };
    JoinHeadsOnGpu(part(values), part(logsumexp), part(other_values), part(other_logsumexp));
  }
}

}  // namespace

void JoinSoftmax(const at::Tensor& values, const at::Tensor& logsumexp, const at::Tensor& other_values,
                 const at::Tensor& other_logsumexp) {
  if (values.is_cuda()) {
    JoinSoftmaxOnGpu(values, logsumexp, other_values, other_logsumexp);
  } else if (values.scalar_type() == at::kFloat) {
    JoinSoftmaxOf<float>(values, logsumexp, other_values, other_logsumexp);
  } else {
    TORCH_CHECK(values.scalar_type() == at::kBFloat16, "attention of ", values.scalar_type());
    JoinSoftmaxOf<at::BFloat16>(values, logsumexp, other_values, other_logsumexp);
  }
}

void BlockForward(const FlashQueries& queries, const std::vector<FlashKeys>& keys, const FlashSetting& setting) {
  if (FlashTakes(queries.q, setting)) {
    FlashForward(queries, keys, setting);
  } else {
    DenseBlocksForward(queries, keys, DensePartFor(queries, keys));
  }
}

void BlockBackward(const FlashQueries& queries, const std::vector<FlashKeys>& keys,
                   const FlashQueryGradients& gradients, const std::vector<FlashKeyGradients>& key_gradients,
                   const FlashSetting& setting) {
  if (FlashTakes(queries.q, setting)) {
    FlashBackward(queries, keys, gradients, key_gradients, setting);
  } else {
    DenseBlocksBackward(queries, keys, gradients, key_gradients, DensePartFor(queries, keys));
  }
}

}  // namespace longspan::trainer
