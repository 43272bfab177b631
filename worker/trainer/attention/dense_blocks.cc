#include "worker/trainer/attention/dense_blocks.h"

#include <algorithm>

#include "worker/trainer/attention/block_attention.h"
#include "worker/trainer/attention/dense_attention.h"
#include "worker/trainer/memory/counting_allocator.h"

namespace longspan::trainer {
namespace {

void AddOrCopy(const at::Tensor& to, const at::Tensor& from, bool adds) {
  if (adds) {
    to.add_(from);
  } else {
    to.copy_(from);
  }
}

// Blocks and key/value heads of a part.
struct Range {
  int64_t block, blocks, head, heads;
};

// Of (blocks, heads, ...), where `shared_by` heads belong to a key/value head.
at::Tensor Narrow(const at::Tensor& tensor, const Range& range, int64_t shared_by) {
  return tensor.narrow(0, range.block, range.blocks).narrow(1, range.head * shared_by, range.heads * shared_by);
}

template <class Run>
void ForParts(int64_t blocks, int64_t heads, const planner::DensePart& part, const Run& run) {
  for (int64_t block = 0; block < blocks; block += part.blocks) {
    for (int64_t head = 0; head < heads; head += part.key_value_heads) {
      run(Range{block, std::min(part.blocks, blocks - block), head, std::min(part.key_value_heads, heads - head)});
    }
  }
}

int64_t Reach(const at::Tensor& tensor) {
  int64_t reach = 1;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) reach += (tensor.size(dim) - 1) * tensor.stride(dim);
  return reach;
}

FlashQueries Narrow(const FlashQueries& queries, const Range& range, int64_t group) {
  return {Narrow(queries.q, range, group), Narrow(queries.out, range, group), Narrow(queries.logsumexp, range, group),
          queries.joined};
}

std::vector<FlashKeys> Narrow(const std::vector<FlashKeys>& keys, const Range& range) {
  std::vector<FlashKeys> narrowed;
  for (const FlashKeys& run : keys) narrowed.push_back({Narrow(run.k, range, 1), Narrow(run.v, range, 1), run.causal});
  return narrowed;
}

void ForwardPart(const FlashQueries& queries, const std::vector<FlashKeys>& keys) {
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

void BackwardPart(const FlashQueries& queries, const std::vector<FlashKeys>& keys, const FlashQueryGradients& gradients,
                  const std::vector<FlashKeyGradients>& key_gradients) {
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

planner::DenseCall DenseCallOf(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  planner::DenseCall call;
  call.blocks = q.size(0);
  call.query_heads = q.size(1);
  call.key_value_heads = k.size(1);
  call.length = std::max(q.size(2), k.size(2));
  call.head_dim = q.size(3);
  call.element_bytes = q.element_size();
  call.block_rows = call.blocks > 1 ? std::max(call.length, q.stride(0) / std::max<int64_t>(1, q.stride(2))) : 0;
  const int64_t rows = (call.blocks - 1) * call.block_rows + call.length;
  const int64_t reach = std::max({Reach(q), Reach(k), Reach(v)});
  call.row_stride = (reach + rows - 1) / rows;
  return call;
}

planner::DensePart DensePartFor(const FlashQueries& queries, const std::vector<FlashKeys>& keys) {
  if (!queries.q.is_cuda()) return {queries.q.size(0), keys[0].k.size(1)};
  planner::DenseCall call = DenseCallOf(queries.q, keys.back().k, keys.back().v);
  if (keys.size() > 1) call.other_keys = keys[0].k.size(2);
  return PartOf(call);
}

void DenseBlocksForward(const FlashQueries& queries, const std::vector<FlashKeys>& keys,
                        const planner::DensePart& part) {
  const ListedAllocation outputs;
  const int64_t heads = keys[0].k.size(1), group = queries.q.size(1) / heads;
  ForParts(queries.q.size(0), heads, part,
           [&](const Range& range) { ForwardPart(Narrow(queries, range, group), Narrow(keys, range)); });
}

void DenseBlocksBackward(const FlashQueries& queries, const std::vector<FlashKeys>& keys,
                         const FlashQueryGradients& gradients, const std::vector<FlashKeyGradients>& key_gradients,
                         const planner::DensePart& part) {
  const ListedAllocation outputs;
  const int64_t heads = keys[0].k.size(1), group = queries.q.size(1) / heads;
  ForParts(queries.q.size(0), heads, part, [&](const Range& range) {
    std::vector<FlashKeyGradients> of_part;
    for (const FlashKeyGradients& to : key_gradients) {
      of_part.push_back({Narrow(to.k, range, 1), Narrow(to.v, range, 1), to.adds});
    }
    BackwardPart(Narrow(queries, range, group), Narrow(keys, range),
                 {Narrow(gradients.out, range, group), Narrow(gradients.q, range, group), gradients.adds}, of_part);
  });
}

at::Tensor TakeFirstRows(const at::Tensor& out_gradient, int64_t key_value_heads) {
  const at::Tensor rows = out_gradient.select(2, 0);  // (blocks, Hq, D)
  const at::Tensor value_gradient =
      rows.reshape({rows.size(0), key_value_heads, rows.size(1) / key_value_heads, rows.size(2)}).sum(2);
  rows.zero_();
  return value_gradient;
}

}  // namespace longspan::trainer
