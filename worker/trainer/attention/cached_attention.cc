#include "worker/trainer/attention/cached_attention.h"

#include <algorithm>
#include <tuple>

#include "worker/trainer/attention/dense_attention.h"
#include "worker/trainer/attention/window_kernels.h"

namespace longspan::trainer {
namespace {

// (1, H, n, D) of (n, H, D) rows.
at::Tensor HeadsFirst(const at::Tensor& rows) { return rows.transpose(0, 1).unsqueeze(0); }

// One token: the query heads of a key/value head become the rows of one call, so its keys are read once.
void AttendOne(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, const at::Tensor& out) {
  const int64_t groups = q.size(1) / keys.size(1);
  const at::Tensor grouped = q.select(0, 0).reshape({1, keys.size(1), groups, q.size(2)});
  out.select(0, 0).copy_(
      DenseForward(grouped, HeadsFirst(keys), HeadsFirst(values), false).out.reshape({q.size(1), q.size(2)}));
}

// A tile behind `past` older tokens.
void AttendTile(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, int64_t past,
                const at::Tensor& out) {
  const int64_t n = q.size(0);
  const at::Tensor queries = HeadsFirst(q);
  const DenseOutput within =
      DenseForward(queries, HeadsFirst(keys.narrow(0, past, n)), HeadsFirst(values.narrow(0, past, n)), true);
  if (past == 0) {
    HeadsFirst(out).copy_(within.out);
    return;
  }
  const DenseOutput before =
      DenseForward(queries, HeadsFirst(keys.narrow(0, 0, past)), HeadsFirst(values.narrow(0, 0, past)), false);
  const at::Tensor both = at::logaddexp(within.logsumexp, before.logsumexp);
  const at::Tensor sum = within.out.to(at::kFloat).mul_(at::exp(within.logsumexp - both).unsqueeze(-1));
  sum.addcmul_(before.out.to(at::kFloat), at::exp(before.logsumexp - both).unsqueeze(-1));
  HeadsFirst(out).copy_(sum);
}

// A tile under a sliding window; on the CPU with a mask of the tile's rows over `keys`, which are those that any of
// them sees. `past` counts from the first of these.
void AttendWindow(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, int64_t past, int64_t window,
                  const at::Tensor& out) {
  WindowPart part;
  part.window = window;
  part.first_query = past;
  const WindowBand band = BandOf(part, q.size(0), keys.size(0));
  if (q.is_cuda()) {
    HeadsFirst(out).copy_(GpuWindowForward(band, HeadsFirst(q), HeadsFirst(keys), HeadsFirst(values)).out);
    return;
  }
  HeadsFirst(out).copy_(std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(
      HeadsFirst(q), HeadsFirst(keys), HeadsFirst(values), /*dropout_p=*/0.0, /*is_causal=*/false,
      BandMask(band, 0, q.size(0), q.options()))));
}

}  // namespace

KeyValueCache::KeyValueCache(int64_t tokens_max) : tokens_max_(tokens_max) {
  TORCH_CHECK(tokens_max >= 1, "a cache of ", tokens_max, " tokens");
}

void KeyValueCache::Append(int64_t layer, const at::Tensor& k, const at::Tensor& v) {
  TORCH_CHECK(tokens_ + k.size(0) <= tokens_max_, "a cache of ", tokens_max_, " tokens cannot hold ",
              tokens_ + k.size(0));
  if (static_cast<int64_t>(layers_.size()) <= layer) layers_.resize(static_cast<size_t>(layer) + 1);
  Layer& own = layers_[static_cast<size_t>(layer)];
  if (!own.keys.defined()) {
    own.keys = at::empty({tokens_max_, k.size(1), k.size(2)}, k.options());
    own.values = at::empty({tokens_max_, v.size(1), v.size(2)}, v.options());
  }
  own.keys.narrow(0, tokens_, k.size(0)).copy_(k);
  own.values.narrow(0, tokens_, v.size(0)).copy_(v);
}

void KeyValueCache::Advance(int64_t n) {
  TORCH_CHECK(n >= 0 && tokens_ + n <= tokens_max_, "a cache advanced beyond its end");
  tokens_ += n;
}

at::Tensor KeyValueCache::Keys(int64_t layer, int64_t appended) const {
  return layers_.at(static_cast<size_t>(layer)).keys.narrow(0, 0, tokens_ + appended);
}

at::Tensor KeyValueCache::Values(int64_t layer, int64_t appended) const {
  return layers_.at(static_cast<size_t>(layer)).values.narrow(0, 0, tokens_ + appended);
}

void AttendCached(const CachedAttention& pass, const CachedLayer& layer, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& v, const at::Tensor& out) {
  for (const CachedRows& part : pass.sequences) {
    const auto own = [&part](const at::Tensor& rows) { return rows.narrow(0, part.first_row, part.rows); };
    part.cache->Append(layer.index, own(k), own(v));
    at::Tensor keys = part.cache->Keys(layer.index, part.rows);
    at::Tensor values = part.cache->Values(layer.index, part.rows);
    int64_t past = part.cache->tokens();
    const bool windowed = layer.window > 0 && layer.window < past + part.rows;
    if (windowed) {  // what the first row no longer sees, none does
      const int64_t unseen = std::max<int64_t>(0, past - layer.window + 1);
      keys = keys.narrow(0, unseen, keys.size(0) - unseen);
      values = values.narrow(0, unseen, values.size(0) - unseen);
      past -= unseen;
    }
    if (part.rows == 1) {
      AttendOne(own(q), keys, values, own(out));
    } else if (windowed) {
      AttendWindow(own(q), keys, values, past, layer.window, own(out));
    } else {
      AttendTile(own(q), keys, values, past, own(out));
    }
  }
}

}  // namespace longspan::trainer
