#include "worker/trainer/attention/block_attention.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "worker/trainer/attention/dense_attention.h"
#include "worker/trainer/memory/counting_allocator.h"
#include "worker/trainer/model/row_parallel.h"

namespace longspan::trainer {
namespace {

constexpr int64_t kJoinElementsMax = int64_t{1} << 20;  // that a tile of JoinSoftmaxByTiles has

// Takes the first row of every block out of `out_gradient` (blocks, Hq, length, D) and returns what it adds to dV
// there: (blocks, Hkv, D).
at::Tensor TakeFirstRows(const at::Tensor& out_gradient, int64_t key_value_heads) {
  const at::Tensor rows = out_gradient.select(2, 0);  // (blocks, Hq, D)
  const at::Tensor value_gradient =
      rows.reshape({rows.size(0), key_value_heads, rows.size(1) / key_value_heads, rows.size(2)}).sum(2);
  rows.zero_();
  return value_gradient;
}

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

// By rows so many at a time that the fp32 temporaries stay small beside the tensors.
void JoinSoftmaxByTiles(const at::Tensor& values, const at::Tensor& logsumexp, const at::Tensor& other_values,
                        const at::Tensor& other_logsumexp) {
  const int64_t elements_of_row = values.size(0) * values.size(1) * values.size(3);
  const int64_t tile = std::max<int64_t>(1, kJoinElementsMax / std::max<int64_t>(1, elements_of_row));
  for (int64_t begin = 0; begin < values.size(2); begin += tile) {
    const int64_t rows = std::min(tile, values.size(2) - begin);
    const auto part = [&](const at::Tensor& all) { return all.narrow(2, begin, rows); };
    at::Tensor sums = part(logsumexp), to = part(values);
    const at::Tensor joined = at::logaddexp(sums, part(other_logsumexp));
    const at::Tensor sum = to.to(at::kFloat).mul(at::exp(sums - joined).unsqueeze(-1));
    sum.addcmul_(part(other_values).to(at::kFloat), at::exp(part(other_logsumexp) - joined).unsqueeze(-1));
    to.copy_(sum);
    sums.copy_(joined);
  }
}

void AddOrCopy(const at::Tensor& to, const at::Tensor& from, bool adds) {
  if (adds) {
    to.add_(from);
  } else {
    to.copy_(from);
  }
}

void AtenForward(const FlashQueries& queries, const std::vector<FlashKeys>& keys) {
  const ListedAllocation outputs;
  at::Tensor out, logsumexp;
  for (auto run = keys.rbegin(); run != keys.rend(); ++run) {
    const auto [values, sums] = DenseForward(queries.q, run->k, run->v, run->causal);
    if (!out.defined()) {
      out = values;
      logsumexp = sums;
    } else {
      JoinSoftmax(out, logsumexp, values, sums);
    }
  }
  queries.out.copy_(out);
  queries.logsumexp.copy_(logsumexp);
}

void AtenBackward(const FlashQueries& queries, const std::vector<FlashKeys>& keys, const FlashQueryGradients& gradients,
                  const std::vector<FlashKeyGradients>& key_gradients) {
  const ListedAllocation outputs;
  const bool first_rows_are_alone = keys.size() == 1 && keys[0].causal && !queries.joined;
  at::Tensor first_value_gradient, query_gradient;
  if (first_rows_are_alone) first_value_gradient = TakeFirstRows(gradients.out, keys[0].k.size(1));
  for (size_t index = keys.size(); index-- > 0;) {
    const auto [dq, dk, dv] = DenseBackward(
        {queries.q, keys[index].k, keys[index].v, queries.out, queries.logsumexp, keys[index].causal}, gradients.out);
    if (first_rows_are_alone) dv.select(2, 0).add_(first_value_gradient);
    if (query_gradient.defined()) query_gradient.add_(dq);
    if (!query_gradient.defined()) query_gradient = dq;
    AddOrCopy(key_gradients[index].k, dk, key_gradients[index].adds);
    AddOrCopy(key_gradients[index].v, dv, key_gradients[index].adds);
  }
  AddOrCopy(gradients.q, query_gradient, gradients.adds);
}

}  // namespace

void JoinSoftmax(const at::Tensor& values, const at::Tensor& logsumexp, const at::Tensor& other_values,
                 const at::Tensor& other_logsumexp) {
  if (values.is_cuda()) {
    JoinSoftmaxByTiles(values, logsumexp, other_values, other_logsumexp);
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
    AtenForward(queries, keys);
  }
}

void BlockBackward(const FlashQueries& queries, const std::vector<FlashKeys>& keys,
                   const FlashQueryGradients& gradients, const std::vector<FlashKeyGradients>& key_gradients,
                   const FlashSetting& setting) {
  if (FlashTakes(queries.q, setting)) {
    FlashBackward(queries, keys, gradients, key_gradients, setting);
  } else {
    AtenBackward(queries, keys, gradients, key_gradients);
  }
}

}  // namespace longspan::trainer
