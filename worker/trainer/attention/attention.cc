#include "worker/trainer/attention/attention.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "worker/trainer/memory/counting_allocator.h"
#include "worker/trainer/model/row_parallel.h"

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
  int64_t prefix_length = 0, prefix_first_row = 0;
};

// `count` blocks of `length` tokens from token `first` of every document, in as few calls as strides allow.
void AppendBlocks(const DocumentRun& run, int64_t first, int64_t count, int64_t length, std::vector<RowBlocks>* rows) {
  if (count == 0 || length == 0) return;
  const int64_t first_row = run.first_row + first;
  if (run.documents == 1 || count * length == run.tokens) {  // one stride reaches across documents too
    rows->push_back({first_row, count * run.documents, length, length});
  } else if (count < run.documents) {
    for (int64_t block = 0; block < count; ++block) {
      rows->push_back({first_row + block * length, run.documents, run.tokens, length});
    }
  } else {
    for (int64_t document = 0; document < run.documents; ++document) {
      rows->push_back({first_row + document * run.tokens, count, length, length});
    }
  }
}

// A first block of `first_length` tokens, then blocks of `group`, then the rest; with kWrap the last of these sees the
// first.
void AppendDocuments(const DocumentRun& run, int64_t first_length, int64_t group, BlockEdge edge,
                     std::vector<RowBlocks>* rows) {
  const int64_t first = std::min(first_length, run.tokens);
  AppendBlocks(run, 0, 1, first, rows);
  int64_t whole = (run.tokens - first) / group;
  if (edge == BlockEdge::kWrap && whole > 0 && first + whole * group == run.tokens) --whole;  // the last is full
  AppendBlocks(run, first, whole, group, rows);
  const int64_t done = first + whole * group;
  if (edge == BlockEdge::kSplit || done == run.tokens) {
    AppendBlocks(run, done, 1, run.tokens - done, rows);
  } else {
    rows->push_back({run.first_row + done, run.documents, run.tokens, run.tokens - done, first, run.first_row});
  }
}

std::vector<RowBlocks> SplitRows(const AttentionShape& shape, int64_t first_length, int64_t group,
                                 BlockEdge edge = BlockEdge::kSplit) {
  std::vector<RowBlocks> rows;
  if (shape.documents.empty()) AppendDocuments({0, shape.sequences, shape.tokens}, first_length, group, edge, &rows);
  for (const DocumentRun& run : shape.documents) AppendDocuments(run, first_length, group, edge, &rows);
  return rows;
}

void AppendCalls(const std::vector<HeadRange>& heads, const std::vector<RowBlocks>& rows, AttentionPlan* plan) {
  for (const HeadRange& range : heads) {
    for (const RowBlocks& row : rows) {
      plan->push_back({range.query_head, range.query_heads, range.key_value_head, range.key_value_heads,
                       range.adds_to_key_value, row.first_row, row.blocks, row.stride_rows, row.length,
                       row.prefix_length, row.prefix_first_row});
    }
  }
}

void CheckShape(const AttentionShape& shape) {
  TORCH_CHECK(shape.sequences >= 1 && shape.tokens >= 1 && shape.key_value_heads >= 1 &&
                  shape.query_heads % shape.key_value_heads == 0,
              "attention of ", shape.sequences, " sequences, ", shape.tokens, " tokens, ", shape.query_heads,
              " query heads and ", shape.key_value_heads, " key/value heads");
  int64_t next_row = 0;
  for (const DocumentRun& run : shape.documents) {
    TORCH_CHECK(run.first_row == next_row && run.documents >= 1 && run.tokens >= 1, "attention of documents at row ",
                run.first_row, " after row ", next_row);
    next_row += run.documents * run.tokens;
  }
  TORCH_CHECK(shape.documents.empty() || next_row == shape.sequences * shape.tokens, "attention of documents of ",
              next_row, " tokens in all for ", shape.sequences, " sequences of ", shape.tokens);
}

void CheckGroup(int64_t group) { TORCH_CHECK(group >= 1, "attention groups of ", group, " tokens"); }

struct HeadsOfBlocks {
  int64_t head, heads;
  int64_t first_row, length;
};

// (blocks, heads, length, D) of a (N, H, D) view.
at::Tensor BlockView(const at::Tensor& rows, const AttentionCall& call, const HeadsOfBlocks& part) {
  TORCH_CHECK(rows.dim() == 3 && rows.stride(2) == 1, "attention wants (N, H, D) with last stride 1");
  const int64_t offset = rows.storage_offset() + part.first_row * rows.stride(0) + part.head * rows.stride(1);
  return rows.as_strided({call.blocks, part.heads, part.length, rows.size(2)},
                         {call.stride_rows * rows.stride(0), rows.stride(1), rows.stride(0), 1}, offset);
}

at::Tensor QueryView(const at::Tensor& rows, const AttentionCall& call) {
  return BlockView(rows, call, {call.query_head, call.query_heads, call.first_row, call.length});
}

at::Tensor KeyValueView(const at::Tensor& rows, const AttentionCall& call) {
  return BlockView(rows, call, {call.key_value_head, call.key_value_heads, call.first_row, call.length});
}

at::Tensor PrefixView(const at::Tensor& rows, const AttentionCall& call) {
  return BlockView(rows, call, {call.key_value_head, call.key_value_heads, call.prefix_first_row, call.prefix_length});
}

// Takes the first row of every block out of `out_gradient` and returns what it adds to dV there: (blocks, Hkv, D).
at::Tensor TakeFirstRows(const at::Tensor& out_gradient, const AttentionCall& call) {
  const at::Tensor rows = out_gradient.select(2, 0);  // (blocks, heads, D)
  const at::Tensor value_gradient =
      rows.reshape({call.blocks, call.key_value_heads, call.query_heads / call.key_value_heads, rows.size(2)}).sum(2);
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

void JoinSoftmax(const at::Tensor& values, const at::Tensor& logsumexp, const at::Tensor& other_values,
                 const at::Tensor& other_logsumexp) {
  if (values.scalar_type() == at::kFloat) {
    JoinSoftmaxOf<float>(values, logsumexp, other_values, other_logsumexp);
  } else {
    TORCH_CHECK(values.scalar_type() == at::kBFloat16, "attention of ", values.scalar_type());
    JoinSoftmaxOf<at::BFloat16>(values, logsumexp, other_values, other_logsumexp);
  }
}

// The block's own rows causally, and its prefix whole.
void AtenForward(const AttentionCall& call, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                 const at::Tensor& out, const at::Tensor& logsumexp) {
  const ListedAllocation outputs;
  const at::Tensor queries = QueryView(q, call);
  const auto [values, call_logsumexp] = at::_scaled_dot_product_flash_attention_for_cpu(
      queries, KeyValueView(k, call), KeyValueView(v, call), /*dropout_p=*/0.0, /*is_causal=*/true);
  if (call.prefix_length > 0) {
    const auto [prefix_values, prefix_logsumexp] = at::_scaled_dot_product_flash_attention_for_cpu(
        queries, PrefixView(k, call), PrefixView(v, call), /*dropout_p=*/0.0, /*is_causal=*/false);
    JoinSoftmax(values, call_logsumexp, prefix_values, prefix_logsumexp);
  }
  QueryView(out, call).copy_(values);
  logsumexp.copy_(call_logsumexp);
}

// What the rows seen through the prefix get, and what it adds to dQ. Against the joined output and logsumexp each set
// of keys has its true weights.
void AtenPrefixBackward(const AttentionCall& call, const AttentionInputs& inputs, const at::Tensor& logsumexp,
                        const at::Tensor& call_gradient, const at::Tensor& query_gradient,
                        const AttentionGradients& gradients) {
  const auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      call_gradient, QueryView(inputs.q, call), PrefixView(inputs.k, call), PrefixView(inputs.v, call),
      QueryView(inputs.out, call), logsumexp, /*dropout_p=*/0.0, /*is_causal=*/false);
  query_gradient.add_(dq);
  PrefixView(gradients.k, call).add_(dk);
  PrefixView(gradients.v, call).add_(dv);
}

void AtenBackward(const AttentionCall& call, const AttentionInputs& inputs, const at::Tensor& logsumexp,
                  const at::Tensor& out_gradient, const AttentionGradients& gradients) {
  const ListedAllocation outputs;
  const at::Tensor call_gradient = QueryView(out_gradient, call);
  const bool first_rows_are_alone = call.prefix_length == 0;
  at::Tensor first_value_gradient;
  if (first_rows_are_alone) first_value_gradient = TakeFirstRows(call_gradient, call);
  const auto [dq, dk, dv] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
      call_gradient, QueryView(inputs.q, call), KeyValueView(inputs.k, call), KeyValueView(inputs.v, call),
      QueryView(inputs.out, call), logsumexp, /*dropout_p=*/0.0,
      /*is_causal=*/true);
  if (first_rows_are_alone) {
    dv.select(2, 0).add_(first_value_gradient);
  } else {
    AtenPrefixBackward(call, inputs, logsumexp, call_gradient, dq, gradients);
  }
  QueryView(gradients.q, call).copy_(dq);
  if (call.adds_to_key_value) {
    KeyValueView(gradients.k, call).add_(dk);
    KeyValueView(gradients.v, call).add_(dv);
  } else {
    KeyValueView(gradients.k, call).copy_(dk);
    KeyValueView(gradients.v, call).copy_(dv);
  }
}

std::vector<FlashKeys> FlashKeysOf(const AttentionCall& call, const at::Tensor& k, const at::Tensor& v) {
  std::vector<FlashKeys> keys;
  if (call.prefix_length > 0) keys.push_back({PrefixView(k, call), PrefixView(v, call), /*causal=*/false});
  keys.push_back({KeyValueView(k, call), KeyValueView(v, call), /*causal=*/true});
  return keys;
}

void FlashCallBackward(const AttentionCall& call, const AttentionInputs& inputs, const at::Tensor& logsumexp,
                       const at::Tensor& out_gradient, const AttentionGradients& gradients,
                       const FlashSetting& setting) {
  std::vector<FlashKeyGradients> key_gradients;
  if (call.prefix_length > 0) {
    key_gradients.push_back({PrefixView(gradients.k, call), PrefixView(gradients.v, call), /*adds=*/true});
  }
  key_gradients.push_back({KeyValueView(gradients.k, call), KeyValueView(gradients.v, call), call.adds_to_key_value});
  FlashBackward({QueryView(inputs.q, call), QueryView(inputs.out, call), logsumexp},
                FlashKeysOf(call, inputs.k, inputs.v), {QueryView(out_gradient, call), QueryView(gradients.q, call)},
                key_gradients, setting);
}

int64_t LogsumexpSizeOf(const AttentionCall& call) { return call.blocks * call.query_heads * call.length; }

FlashSetting WithWorkspace(const FlashSetting& setting, const at::Tensor& q) {
  if (setting.workspace.defined()) return setting;
  return {at::empty({FlashWorkspaceSize(q.size(-1), at::get_num_threads())}, q.options()), setting.instructions};
}

}  // namespace

AttentionPlan PlanFullAttention(const AttentionShape& shape) {
  CheckShape(shape);
  const int64_t whole = shape.sequences * shape.tokens;  // no document is longer
  AttentionPlan plan;
  AppendCalls(SplitHeads(0, shape.query_heads, shape.query_heads / shape.key_value_heads),
              SplitRows(shape, whole, whole), &plan);
  return plan;
}

AttentionPlan PlanShortAttention(const AttentionShape& shape, int64_t group) {
  CheckShape(shape);
  CheckGroup(group);
  AttentionPlan plan;
  AppendCalls(SplitHeads(0, shape.query_heads, shape.query_heads / shape.key_value_heads), SplitRows(shape, 0, group),
              &plan);
  return plan;
}

AttentionPlan PlanShiftedSparseAttention(const AttentionShape& shape, int64_t group, BlockEdge edge) {
  CheckShape(shape);
  CheckGroup(group);
  const int64_t heads_per_key_value = shape.query_heads / shape.key_value_heads;
  const int64_t unshifted_heads = (shape.query_heads + 1) / 2;  // those with 2h < Hq
  AttentionPlan plan;
  AppendCalls(SplitHeads(0, unshifted_heads, heads_per_key_value), SplitRows(shape, 0, group), &plan);
  AppendCalls(SplitHeads(unshifted_heads, shape.query_heads, heads_per_key_value),
              SplitRows(shape, group - group / 2, group, edge), &plan);
  return plan;
}

int64_t LogsumexpSize(const AttentionPlan& plan) {
  int64_t size = 0;
  for (const AttentionCall& call : plan) size += LogsumexpSizeOf(call);
  return size;
}

std::vector<at::Tensor> SplitLogsumexp(const AttentionPlan& plan, const at::Tensor& all) {
  TORCH_CHECK(all.is_contiguous() && all.numel() == LogsumexpSize(plan), "a logsumexp of ", all.sizes(),
              " for a plan that wants ", LogsumexpSize(plan), " values");
  const at::Tensor flat = all.view({-1});
  std::vector<at::Tensor> logsumexp;
  logsumexp.reserve(plan.size());
  int64_t first = 0;
  for (const AttentionCall& call : plan) {
    logsumexp.push_back(
        flat.narrow(0, first, LogsumexpSizeOf(call)).view({call.blocks, call.query_heads, call.length}));
    first += LogsumexpSizeOf(call);
  }
  return logsumexp;
}

void AttentionForward(const AttentionPlan& plan, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const at::Tensor& out, const std::vector<at::Tensor>& logsumexp, const FlashSetting& setting) {
  TORCH_CHECK(logsumexp.size() == plan.size(), "attention forward with ", logsumexp.size(), " logsumexps for ",
              plan.size(), " calls");
  const bool flash = FlashTakes(q, setting);
  const FlashSetting with_workspace = flash ? WithWorkspace(setting, q) : setting;
  for (size_t index = 0; index < plan.size(); ++index) {
    const AttentionCall& call = plan[index];
    if (flash) {
      FlashForward({QueryView(q, call), QueryView(out, call), logsumexp[index]}, FlashKeysOf(call, k, v),
                   with_workspace);
    } else {
      AtenForward(call, q, k, v, out, logsumexp[index]);
    }
  }
}

std::vector<at::Tensor> AttentionForward(const AttentionPlan& plan, const at::Tensor& q, const at::Tensor& k,
                                         const at::Tensor& v, const at::Tensor& out, const FlashSetting& setting) {
  std::vector<at::Tensor> logsumexp =
      SplitLogsumexp(plan, at::empty({LogsumexpSize(plan)}, q.options().dtype(at::kFloat)));
  AttentionForward(plan, q, k, v, out, logsumexp, setting);
  return logsumexp;
}

void AttentionBackward(const AttentionPlan& plan, const AttentionInputs& inputs,
                       const std::vector<at::Tensor>& logsumexp, const at::Tensor& out_gradient,
                       const AttentionGradients& gradients, const FlashSetting& setting) {
  TORCH_CHECK(logsumexp.size() == plan.size(), "attention backward with another plan than forward");
  const bool flash = FlashTakes(inputs.q, setting);
  const FlashSetting with_workspace = flash ? WithWorkspace(setting, inputs.q) : setting;
  for (size_t index = 0; index < plan.size(); ++index) {
    if (flash) {
      FlashCallBackward(plan[index], inputs, logsumexp[index], out_gradient, gradients, with_workspace);
    } else {
      AtenBackward(plan[index], inputs, logsumexp[index], out_gradient, gradients);
    }
  }
}

}  // namespace longspan::trainer
