#include "worker/trainer/attention/attention.h"

#include <ATen/Parallel.h>

#include <algorithm>

#include "worker/trainer/attention/block_attention.h"
#include "worker/trainer/attention/segment_attention.h"

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

at::Tensor PrefixView(const at::Tensor& rows, const AttentionCall& call) {
  return BlockView(rows, call, {call.key_value_head, call.key_value_heads, call.prefix_first_row, call.prefix_length});
}

std::vector<FlashKeys> FlashKeysOf(const AttentionCall& call, const at::Tensor& k, const at::Tensor& v) {
  std::vector<FlashKeys> keys;
  if (call.prefix_length > 0) keys.push_back({PrefixView(k, call), PrefixView(v, call), /*causal=*/false});
  keys.push_back({KeyValueView(k, call), KeyValueView(v, call), /*causal=*/true});
  return keys;
}

// An earlier call has written what the rows of a prefix get.
std::vector<FlashKeyGradients> KeyGradientsOf(const AttentionCall& call, const AttentionGradients& gradients) {
  std::vector<FlashKeyGradients> parts;
  if (call.prefix_length > 0) parts.push_back({PrefixView(gradients.k, call), PrefixView(gradients.v, call), true});
  parts.push_back({KeyValueView(gradients.k, call), KeyValueView(gradients.v, call), call.adds_to_key_value});
  return parts;
}

int64_t LogsumexpSizeOf(const AttentionCall& call) { return call.blocks * call.query_heads * call.length; }

FlashSetting WithWorkspace(const FlashSetting& setting, const at::Tensor& q) {
  if (setting.workspace.defined() || !FlashTakes(q, setting)) return setting;
  return {at::empty({FlashWorkspaceSize(q.size(-1), at::get_num_threads())}, q.options()), setting.instructions};
}

}  // namespace

at::Tensor QueryView(const at::Tensor& rows, const AttentionCall& call) {
  return BlockView(rows, call, {call.query_head, call.query_heads, call.first_row, call.length});
}

at::Tensor KeyValueView(const at::Tensor& rows, const AttentionCall& call) {
  return BlockView(rows, call, {call.key_value_head, call.key_value_heads, call.first_row, call.length});
}

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

HeadTile TileOfHeads(const AttentionPlan& plan, const std::vector<at::Tensor>& logsumexp, int64_t first, int64_t count,
                     int64_t heads_per_key_value) {
  HeadTile tile;
  for (size_t index = 0; index < plan.size(); ++index) {
    AttentionCall call = plan[index];
    const int64_t begin = std::max(first, call.key_value_head);
    const int64_t end = std::min(first + count, call.key_value_head + call.key_value_heads);
    if (begin >= end) continue;
    const int64_t shared_by =
        call.query_heads / call.key_value_heads;  // fewer than all where a call has part of a group
    const int64_t skipped = (begin - call.key_value_head) * shared_by;
    tile.logsumexp.push_back(logsumexp.at(index).narrow(1, skipped, (end - begin) * shared_by));
    call.query_head += skipped - first * heads_per_key_value;
    call.query_heads = (end - begin) * shared_by;
    call.key_value_head = begin - first;
    call.key_value_heads = end - begin;
    tile.plan.push_back(call);
  }
  return tile;
}

void AttentionForward(const AttentionPlan& plan, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const at::Tensor& out, const std::vector<at::Tensor>& logsumexp, const FlashSetting& setting) {
  TORCH_CHECK(logsumexp.size() == plan.size(), "attention forward with ", logsumexp.size(), " logsumexps for ",
              plan.size(), " calls");
  const FlashSetting with_workspace = WithWorkspace(setting, q);
  for (size_t index = 0; index < plan.size(); ++index) {
    const AttentionCall& call = plan[index];
    const FlashQueries queries{QueryView(q, call), QueryView(out, call), logsumexp[index]};
    if (call.segments.empty()) {
      BlockForward(queries, FlashKeysOf(call, k, v), with_workspace);
    } else {
      SegmentsForward(call.segments, queries, FlashKeysOf(call, k, v)[0], with_workspace);
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
  const FlashSetting with_workspace = WithWorkspace(setting, inputs.q);
  for (size_t index = 0; index < plan.size(); ++index) {
    const AttentionCall& call = plan[index];
    const FlashQueries queries{QueryView(inputs.q, call), QueryView(inputs.out, call), logsumexp[index]};
    const FlashQueryGradients to{QueryView(out_gradient, call), QueryView(gradients.q, call)};
    const std::vector<FlashKeys> keys = FlashKeysOf(call, inputs.k, inputs.v);
    const std::vector<FlashKeyGradients> to_keys = KeyGradientsOf(call, gradients);
    if (call.segments.empty()) {
      BlockBackward(queries, keys, to, to_keys, with_workspace);
    } else {
      SegmentsBackward(call.segments, queries, keys[0], to, to_keys[0], with_workspace);
    }
  }
}

}  // namespace longspan::trainer
