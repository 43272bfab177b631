#include "worker/trainer/attention/segment_attention.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <mutex>
#include <tuple>

#include "worker/trainer/attention/block_attention.h"
#include "worker/trainer/attention/dense_blocks.h"
#include "worker/trainer/memory/counting_allocator.h"

namespace longspan::trainer {
namespace {

bool TakesLists(const at::Tensor& q) {
  static std::once_flag told;
  const bool takes = q.is_cuda() && q.scalar_type() == at::kBFloat16;
  std::call_once(told, [&] {
    spdlog::info("attention within packed documents by {}",
                 takes ? "flash attention over lists of lengths" : "a dense call for each segment");
  });
  return takes;
}

// (N, heads, D) of (1, heads, N, D).
at::Tensor Rows(const at::Tensor& heads) { return heads.select(0, 0).transpose(0, 1); }

// Rows of one segment.
at::Tensor Narrow(const at::Tensor& heads, const SegmentList& segments, size_t index) {
  return heads.narrow(2, segments.starts[index], segments.starts[index + 1] - segments.starts[index]);
}

FlashQueries Narrow(const FlashQueries& queries, const SegmentList& segments, size_t index) {
  return {Narrow(queries.q, segments, index), Narrow(queries.out, segments, index),
          Narrow(queries.logsumexp, segments, index)};
}

FlashKeys Narrow(const FlashKeys& keys, const SegmentList& segments, size_t index) {
  return {Narrow(keys.k, segments, index), Narrow(keys.v, segments, index), /*causal=*/true};
}

// Key/value heads of a part.
int64_t HeadsAtOnce(const SegmentList& segments, const FlashQueries& queries, const FlashKeys& keys) {
  planner::DenseCall call = DenseCallOf(queries.q, keys.k, keys.v);
  call.segments = segments.count();
  TORCH_CHECK(planner::ChooseGpuAttention(call), "attention within documents of bf16 heads of ", call.head_dim,
              "; it knows multiples of 8 up to 256");
  return planner::PartOf(call).key_value_heads;
}

template <class Run>
void ForHeads(int64_t heads, int64_t at_once, const Run& run) {
  for (int64_t head = 0; head < heads; head += at_once) run(head, std::min(at_once, heads - head));
}

void ListForward(const SegmentList& segments, const FlashQueries& queries, const FlashKeys& keys) {
  const int64_t heads = keys.k.size(1), group = queries.q.size(1) / heads;
  ForHeads(heads, HeadsAtOnce(segments, queries, keys), [&](int64_t head, int64_t count) {
    const auto of_queries = [&](const at::Tensor& all) { return all.narrow(1, head * group, count * group); };
    const auto of_keys = [&](const at::Tensor& all) { return Rows(all.narrow(1, head, count)); };
    const auto all = at::_flash_attention_forward(
        Rows(of_queries(queries.q)), of_keys(keys.k), of_keys(keys.v), segments.starts_on_device,
        segments.starts_on_device, segments.longest, segments.longest, /*dropout_p=*/0.0, /*is_causal=*/true,
        /*return_debug_mask=*/false);
    Rows(of_queries(queries.out)).copy_(std::get<0>(all));
    of_queries(queries.logsumexp).select(0, 0).copy_(std::get<1>(all));  // (Hq, N)
  });
}

void AddOrCopy(const at::Tensor& to, const at::Tensor& from, bool adds) {
  if (adds) {
    to.add_(from);
  } else {
    to.copy_(from);
  }
}

void ListBackward(const SegmentList& segments, const FlashQueries& queries, const FlashKeys& keys,
                  const FlashQueryGradients& gradients, const FlashKeyGradients& key_gradients) {
  const int64_t heads = keys.k.size(1), group = queries.q.size(1) / heads;
  const at::Tensor state = at::zeros({2}, queries.q.options().dtype(at::kLong));  // of random numbers: not read
  ForHeads(heads, HeadsAtOnce(segments, queries, keys), [&](int64_t head, int64_t count) {
    const auto of_queries = [&](const at::Tensor& all) { return Rows(all.narrow(1, head * group, count * group)); };
    const auto of_keys = [&](const at::Tensor& all) { return Rows(all.narrow(1, head, count)); };
    const at::Tensor out_gradient = of_queries(gradients.out);
    const at::Tensor first_value_gradient = TakeFirstRowsOfSegments(segments, out_gradient, count);
    const auto [dq, dk, dv] = at::_flash_attention_backward(
        out_gradient, of_queries(queries.q), of_keys(keys.k), of_keys(keys.v), of_queries(queries.out),
        queries.logsumexp.narrow(1, head * group, count * group).select(0, 0).contiguous(), segments.starts_on_device,
        segments.starts_on_device, segments.longest, segments.longest, /*dropout_p=*/0.0, /*is_causal=*/true, state,
        at::empty({}, state.options()));
    at::Tensor(dv).index_add_(0, segments.first_rows_on_device, first_value_gradient);
    AddOrCopy(of_queries(gradients.q), dq, gradients.adds);
    AddOrCopy(of_keys(key_gradients.k), dk, key_gradients.adds);
    AddOrCopy(of_keys(key_gradients.v), dv, key_gradients.adds);
  });
}

}  // namespace

at::Tensor TakeFirstRowsOfSegments(const SegmentList& segments, const at::Tensor& out_gradient,
                                   int64_t key_value_heads) {
  const at::Tensor rows = out_gradient.index_select(0, segments.first_rows_on_device);  // (segments, Hq, D)
  at::Tensor(out_gradient).index_fill_(0, segments.first_rows_on_device, 0);
  return rows.unflatten(1, {key_value_heads, -1}).sum(2);
}

void SegmentsForward(const SegmentList& segments, const FlashQueries& queries, const FlashKeys& keys,
                     const FlashSetting& setting) {
  if (TakesLists(queries.q)) {
    const ListedAllocation outputs;
    ListForward(segments, queries, keys);
    return;
  }
  for (size_t index = 0; index + 1 < segments.starts.size(); ++index) {
    BlockForward(Narrow(queries, segments, index), {Narrow(keys, segments, index)}, setting);
  }
}

void SegmentsBackward(const SegmentList& segments, const FlashQueries& queries, const FlashKeys& keys,
                      const FlashQueryGradients& gradients, const FlashKeyGradients& key_gradients,
                      const FlashSetting& setting) {
  if (TakesLists(queries.q)) {
    const ListedAllocation outputs;
    ListBackward(segments, queries, keys, gradients, key_gradients);
    return;
  }
  for (size_t index = 0; index + 1 < segments.starts.size(); ++index) {
    const auto narrow = [&](const at::Tensor& heads) { return Narrow(heads, segments, index); };
    BlockBackward(Narrow(queries, segments, index), {Narrow(keys, segments, index)},
                  {narrow(gradients.out), narrow(gradients.q), gradients.adds},
                  {{narrow(key_gradients.k), narrow(key_gradients.v), key_gradients.adds}}, setting);
  }
}

}  // namespace longspan::trainer
