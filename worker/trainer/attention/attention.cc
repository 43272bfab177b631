#include "worker/trainer/attention/attention.h"

#include <algorithm>

namespace longspan::trainer {
namespace {

struct HeadRange {
  int64_t query_head, query_heads, key_value_head, key_value_heads;
  bool adds_to_key_value;
};

// Cuts query heads [first, end) where a key/value head is only partly in the range.
std::vector<HeadRange> SplitHeads(int64_t first, int64_t end, int64_t heads_per_key_value) {
  std::vector<HeadRange> ranges;
  for (int64_t head = first; head < end;) {
    const int64_t key_value_head = head / heads_per_key_value;
    const bool starts_inside = head % heads_per_key_value != 0;
    const int64_t whole = starts_inside ? 0 : (end - head) / heads_per_key_value;
    const int64_t count =
        whole > 0 ? whole * heads_per_key_value : std::min(end, (key_value_head + 1) * heads_per_key_value) - head;
    ranges.push_back({head, count, key_value_head, std::max<int64_t>(whole, 1), starts_inside});
    head += count;
  }
  return ranges;
}

// Rows of equal blocks; adds nothing for empty ones.
struct RowBlocks {
  int64_t first_row, blocks, stride_rows, length;
};

// `count` blocks of `length` tokens from token `first` of every sequence, in as few calls as strides allow.
void AppendBlocks(const AttentionShape& shape, int64_t first, int64_t count, int64_t length,
                  std::vector<RowBlocks>* rows) {
  if (count == 0 || length == 0) return;
  if (shape.sequences == 1 || count * length == shape.tokens) {  // one stride reaches across sequences too
    rows->push_back({first, shape.sequences == 1 ? count : count * shape.sequences, length, length});
  } else if (count < shape.sequences) {
    for (int64_t block = 0; block < count; ++block) {
      rows->push_back({first + block * length, shape.sequences, shape.tokens, length});
    }
  } else {
    for (int64_t sequence = 0; sequence < shape.sequences; ++sequence) {
      rows->push_back({sequence * shape.tokens + first, count, length, length});
    }
  }
}

// A first block of `first_length` tokens, then blocks of `group`, then the rest.
std::vector<RowBlocks> SplitRows(const AttentionShape& shape, int64_t first_length, int64_t group) {
  std::vector<RowBlocks> rows;
  const int64_t first = std::min(first_length, shape.tokens);
  AppendBlocks(shape, 0, 1, first, &rows);
  const int64_t whole = (shape.tokens - first) / group;
  AppendBlocks(shape, first, whole, group, &rows);
  const int64_t done = first + whole * group;
  AppendBlocks(shape, done, 1, shape.tokens - done, &rows);
  return rows;
}

void AppendCalls(const std::vector<HeadRange>& heads, const std::vector<RowBlocks>& rows, AttentionPlan* plan) {
  for (const HeadRange& range : heads) {
    for (const RowBlocks& row : rows) {
      plan->push_back({range.query_head, range.query_heads, range.key_value_head, range.key_value_heads,
                       range.adds_to_key_value, row.first_row, row.blocks, row.stride_rows, row.length});
    }
  }
}

void CheckShape(const AttentionShape& shape) {
  TORCH_CHECK(shape.sequences >= 1 && shape.tokens >= 1 && shape.key_value_heads >= 1 &&
                  shape.query_heads % shape.key_value_heads == 0,
              "attention of ", shape.sequences, " sequences, ", shape.tokens, " tokens, ", shape.query_heads,
              " query heads and ", shape.key_value_heads, " key/value heads");
}

// (blocks, heads, length, D) of a (N, H, D) view.
at::Tensor BlockView(const at::Tensor& rows, const AttentionCall& call, int64_t head, int64_t heads) {
  TORCH_CHECK(rows.dim() == 3 && rows.stride(2) == 1, "attention wants (N, H, D) with last stride 1");
  const int64_t offset = rows.storage_offset() + call.first_row * rows.stride(0) + head * rows.stride(1);
  return rows.as_strided({call.blocks, heads, call.length, rows.size(2)},
                         {call.stride_rows * rows.stride(0), rows.stride(1), rows.stride(0), 1}, offset);
}

at::Tensor QueryView(const at::Tensor& rows, const AttentionCall& call) {
  return BlockView(rows, call, call.query_head, call.query_heads);
}

at::Tensor KeyValueView(const at::Tensor& rows, const AttentionCall& call) {
  return BlockView(rows, call, call.key_value_head, call.key_value_heads);
}

// Takes the first row of every block out of `out_gradient` and returns what it adds to dV there: (blocks, Hkv, D).
at::Tensor TakeFirstRows(const at::Tensor& out_gradient, const AttentionCall& call) {
  const at::Tensor rows = out_gradient.select(2, 0);  // (blocks, heads, D)
  const at::Tensor value_gradient =
      rows.reshape({call.blocks, call.key_value_heads, call.query_heads / call.key_value_heads, rows.size(2)}).sum(2);
  rows.zero_();
  return value_gradient;
}

}  // namespace

AttentionPlan PlanFullAttention(const AttentionShape& shape) {
  CheckShape(shape);
  AttentionPlan plan;
  AppendCalls(SplitHeads(0, shape.query_heads, shape.query_heads / shape.key_value_heads),
              SplitRows(shape, shape.tokens, shape.tokens), &plan);
  return plan;
}

AttentionPlan PlanShiftedSparseAttention(const AttentionShape& shape, int64_t group) {
  CheckShape(shape);
  TORCH_CHECK(group >= 1, "attention groups of ", group, " tokens");
  const int64_t heads_per_key_value = shape.query_heads / shape.key_value_heads;
  const int64_t unshifted_heads = (shape.query_heads + 1) / 2;  // those with 2h < Hq
  AttentionPlan plan;
  AppendCalls(SplitHeads(0, unshifted_heads, heads_per_key_value), SplitRows(shape, 0, group), &plan);
  AppendCalls(SplitHeads(unshifted_heads, shape.query_heads, heads_per_key_value),
              SplitRows(shape, group - group / 2, group), &plan);
  return plan;
}

std::vector<at::Tensor> AttentionForward(const AttentionPlan& plan, const at::Tensor& q, const at::Tensor& k,
                                         const at::Tensor& v, const at::Tensor& out) {
  std::vector<at::Tensor> logsumexp;
  logsumexp.reserve(plan.size());
  for (const AttentionCall& call : plan) {
    auto [values, call_logsumexp] = at::_scaled_dot_product_flash_attention_for_cpu(
        QueryView(q, call), KeyValueView(k, call), KeyValueView(v, call), /*dropout_p=*/0.0, /*is_causal=*/true);
    QueryView(out, call).copy_(values);
    logsumexp.push_back(std::move(call_logsumexp));
  }
  return logsumexp;
}

void AttentionBackward(const AttentionPlan& plan, const AttentionInputs& inputs,
                       const std::vector<at::Tensor>& logsumexp, const at::Tensor& out_gradient,
                       const AttentionGradients& gradients) {
  TORCH_CHECK(logsumexp.size() == plan.size(), "attention backward with another plan than forward");
  for (size_t index = 0; index < plan.size(); ++index) {
    const AttentionCall& call = plan[index];
    const at::Tensor call_gradient = QueryView(out_gradient, call);
    const at::Tensor first_value_gradient = TakeFirstRows(call_gradient, call);
    const auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        call_gradient, QueryView(inputs.q, call), KeyValueView(inputs.k, call), KeyValueView(inputs.v, call),
        QueryView(inputs.out, call), logsumexp[index], /*dropout_p=*/0.0,
        /*is_causal=*/true);
    dv.select(2, 0).add_(first_value_gradient);
    QueryView(gradients.q, call).copy_(dq);
    if (call.adds_to_key_value) {
      KeyValueView(gradients.k, call).add_(dk);
      KeyValueView(gradients.v, call).add_(dv);
    } else {
      KeyValueView(gradients.k, call).copy_(dk);
      KeyValueView(gradients.v, call).copy_(dv);
    }
  }
}

}  // namespace longspan::trainer
