#include "worker/trainer/model/decoder_layer.h"

#include <algorithm>

#include "worker/trainer/model/mlp_activation.h"

namespace longspan::trainer {
namespace {

// q, k and v as (N, H, D) views of their fused rows.
struct HeadViews {
  at::Tensor q, k, v;
  at::Tensor q_and_k;  // both as one view; undefined where there is no such view
};

HeadViews ViewHeads(const LayerShape& shape, const at::Tensor& query_key_value) {
  const int64_t rows = query_key_value.size(0);
  if (shape.fuses_query_key_value) {
    const at::Tensor heads = query_key_value.view({rows, shape.query_heads, 3, shape.head_dim});
    return {heads.select(2, 0), heads.select(2, 1), heads.select(2, 2), {}};
  }
  const int64_t turned = shape.query_heads + shape.key_value_heads;
  const at::Tensor heads = query_key_value.view({rows, turned + shape.key_value_heads, shape.head_dim});
  return {heads.narrow(1, 0, shape.query_heads), heads.narrow(1, shape.query_heads, shape.key_value_heads),
          heads.narrow(1, turned, shape.key_value_heads), heads.narrow(1, 0, turned)};
}

void Turn(const HeadViews& heads, const Rotation& rotation, bool inverse) {
  if (heads.q_and_k.defined()) {
    ApplyRotation(heads.q_and_k, rotation, inverse);
  } else {
    ApplyRotation(heads.q, rotation, inverse);
    ApplyRotation(heads.k, rotation, inverse);
  }
}

at::Tensor AttentionRows(const LayerShape& shape, const at::Tensor& rows) {
  return rows.view({rows.size(0), shape.query_heads, shape.head_dim});
}

// After RoPE; with head norms, which their backward pass needs the input of, as projected.
at::Tensor ProjectQueryKeyValue(const LayerWeights& weights, const FusedLinear::Pass& linear_pass,
                                const LayerPass& pass, const at::Tensor& normed) {
  const FusedLinear& linear = weights.query_key_value;
  at::Tensor out = at::empty({normed.size(0), linear.outputs()}, normed.options());
  linear.Forward(linear_pass, normed, 0, out);
  if (!weights.has_head_norms()) Turn(ViewHeads(pass.shape, out), pass.rotation, /*inverse=*/false);
  return out;
}

// (N, H) fp32 each; undefined without head norms.
struct HeadStatistics {
  at::Tensor query, key;
};

// What attention reads, from what ProjectQueryKeyValue gave; the statistics where the backward pass wants them.
HeadViews AttentionHeads(const LayerWeights& weights, const LayerPass& pass, const at::Tensor& query_key_value,
                         HeadStatistics* statistics) {
  const HeadViews projected = ViewHeads(pass.shape, query_key_value);
  if (!weights.has_head_norms()) return projected;
  const int64_t rows = query_key_value.size(0);
  const int64_t query_heads = pass.shape.query_heads, key_heads = pass.shape.key_value_heads;
  HeadViews heads;
  heads.q_and_k = at::empty({rows, query_heads + key_heads, pass.shape.head_dim}, query_key_value.options());
  heads.q = heads.q_and_k.narrow(1, 0, query_heads);
  heads.k = heads.q_and_k.narrow(1, query_heads, key_heads);
  heads.v = projected.v;
  HeadStatistics of_heads;
  if (statistics != nullptr) {
    of_heads = {at::empty({rows, query_heads}, at::kFloat), at::empty({rows, key_heads}, at::kFloat)};
    *statistics = of_heads;
  }
  HeadRmsNorm(projected.q, weights.query_norm.value, pass.shape.norm_epsilon, heads.q, of_heads.query);
  HeadRmsNorm(projected.k, weights.key_norm.value, pass.shape.norm_epsilon, heads.k, of_heads.key);
  Turn(heads, pass.rotation, /*inverse=*/false);
  return heads;
}

// Turns the gradients of q and k as attention reads them into those of q and k as projected, in place.
void UndoRotationAndHeadNorms(const LayerWeights& weights, const LayerPass& pass, const at::Tensor& query_key_value,
                              const HeadStatistics& statistics, const HeadViews& gradients) {
  Turn(gradients, pass.rotation, /*inverse=*/true);
  if (!weights.has_head_norms()) return;
  const HeadViews projected = ViewHeads(pass.shape, query_key_value);
  HeadRmsNormBackward(projected.q, weights.query_norm.value, statistics.query, gradients.q,
                      weights.query_norm.gradient);
  HeadRmsNormBackward(projected.k, weights.key_norm.value, statistics.key, gradients.k, weights.key_norm.gradient);
}

struct AttentionResult {
  at::Tensor out;
  std::vector<at::Tensor> logsumexp;
};

AttentionResult Attend(const LayerWeights& weights, const LayerPass& pass, int64_t layer, const HeadViews& heads) {
  AttentionResult result;
  result.out = at::empty({heads.q.size(0), pass.shape.query_heads * pass.shape.head_dim}, heads.q.options());
  const at::Tensor out = AttentionRows(pass.shape, result.out);
  const int64_t window = pass.windowed ? weights.window : 0;
  if (pass.cached != nullptr) {
    AttendCached(*pass.cached, {layer, window}, heads.q, heads.k, heads.v, out);
  } else if (window > 0) {
    SlidingWindowAttention(pass.attention_shape, window, heads.q, heads.k, heads.v, out);
  } else {
    result.logsumexp = AttentionForward(pass.attention, heads.q, heads.k, heads.v, out);
  }
  return result;
}

at::Tensor AddOutputProjection(const FusedLinear& linear, const FusedLinear::Pass& linear_pass, const at::Tensor& x,
                               const at::Tensor& attention_out) {
  at::Tensor residual = at::empty_like(x);
  linear.Forward(linear_pass, attention_out, 0, residual);
  return residual.add_(x);
}

// The MLP's two linears, ready for one pass.
struct MlpPasses {
  FusedLinear::Pass in, out;
};

MlpPasses BeginMlp(const LayerWeights& weights, const LayerPass& pass, int64_t layer, Workspace* workspace) {
  return {weights.mlp_in.Begin(pass.adapted, &pass.dropout, layer, &workspace->folded_mlp_in, pass.folds),
          weights.mlp_out.Begin(pass.adapted, &pass.dropout, layer, &workspace->folded_mlp_out, pass.folds)};
}

// Rows of a tile, from row `begin` of the batch on.
struct MlpTile {
  int64_t begin = 0;
  at::Tensor input;  // what the MLP's norm reads: r, or x of a parallel residual
  at::Tensor inner;  // (n, 2F) or (n, F)
};

// y = residual + MLP(norm(input)). Fills tile.inner.
void MlpForwardTile(const LayerWeights& weights, const LayerPass& pass, const MlpPasses& mlp, const MlpTile& tile,
                    const at::Tensor& residual, const at::Tensor& y) {
  const at::Tensor normed = Normalise(weights.post_attention_norm, pass.shape.norm_epsilon, tile.input, nullptr);
  weights.mlp_in.Forward(mlp.in, normed, tile.begin, tile.inner);
  const at::Tensor product = at::empty({normed.size(0), pass.shape.intermediate_size}, normed.options());
  MlpActivation(pass.shape.activation, tile.inner).Forward(product);
  weights.mlp_out.Forward(mlp.out, product, tile.begin, y);
  y.add_(residual);
}

// Adds to `gradient`, which is dy, what the MLP's input gets. tile.inner holds the kept values, or is filled again when
// `recompute`.
void MlpBackwardTile(const LayerWeights& weights, const LayerPass& pass, const MlpPasses& mlp, const MlpTile& tile,
                     bool recompute, const at::Tensor& gradient) {
  at::Tensor statistics;
  const at::Tensor normed = Normalise(weights.post_attention_norm, pass.shape.norm_epsilon, tile.input, &statistics);
  if (recompute) weights.mlp_in.Forward(mlp.in, normed, tile.begin, tile.inner);
  const MlpActivation activation(pass.shape.activation, tile.inner);
  const std::vector<int64_t> product_shape = {normed.size(0), pass.shape.intermediate_size};
  at::Tensor product;  // only the gradients of mlp_out read it
  if (weights.mlp_out.Trains()) {
    product = at::empty(product_shape, normed.options());
    activation.Forward(product);
  }
  const at::Tensor product_gradient = at::empty(product_shape, normed.options());
  weights.mlp_out.Backward(mlp.out, product, gradient, tile.begin, product_gradient);
  const at::Tensor inner_gradient = at::empty(tile.inner.sizes(), normed.options());
  activation.Backward(product_gradient, inner_gradient);
  const at::Tensor normed_gradient = at::empty_like(normed);
  weights.mlp_in.Backward(mlp.in, normed, inner_gradient, tile.begin, normed_gradient);
  NormaliseBackward(weights.post_attention_norm, tile.input, statistics, normed_gradient, gradient);
}

template <typename Tile>
void ForTiles(int64_t rows, int64_t tile_rows, Tile tile) {
  for (int64_t begin = 0; begin < rows; begin += tile_rows) tile(begin, std::min(tile_rows, rows - begin));
}

at::Tensor TileOfInner(const LayerPass& pass, const at::Tensor& kept, const at::Tensor& input, int64_t begin,
                       int64_t rows) {
  if (kept.defined()) return kept.narrow(0, begin, rows);
  return at::empty({rows, pass.shape.mlp_in_size()}, input.options());
}

// y = residual + MLP(norm(input)). Fills kept_inner where it is defined.
at::Tensor MlpForward(const LayerWeights& weights, const LayerPass& pass, int64_t layer, const at::Tensor& input,
                      const at::Tensor& residual, const at::Tensor& kept_inner, Workspace* workspace) {
  const at::Tensor y = at::empty_like(residual);
  const MlpPasses mlp = BeginMlp(weights, pass, layer, workspace);
  ForTiles(input.size(0), pass.memory.tile_tokens, [&](int64_t begin, int64_t rows) {
    const MlpTile tile{begin, input.narrow(0, begin, rows), TileOfInner(pass, kept_inner, input, begin, rows)};
    MlpForwardTile(weights, pass, mlp, tile, residual.narrow(0, begin, rows), y.narrow(0, begin, rows));
  });
  return y;
}

// Adds to `gradient`, which is dy, what the MLP's input gets.
void MlpBackward(const LayerWeights& weights, const LayerPass& pass, int64_t layer, const at::Tensor& input,
                 const at::Tensor& kept_inner, const at::Tensor& gradient, Workspace* workspace) {
  const MlpPasses mlp = BeginMlp(weights, pass, layer, workspace);
  ForTiles(input.size(0), pass.memory.tile_tokens, [&](int64_t begin, int64_t rows) {
    const MlpTile tile{begin, input.narrow(0, begin, rows), TileOfInner(pass, kept_inner, input, begin, rows)};
    MlpBackwardTile(weights, pass, mlp, tile, !kept_inner.defined(), gradient.narrow(0, begin, rows));
  });
}

}  // namespace

at::Tensor LayerForward(const LayerWeights& weights, const LayerPass& pass, int64_t layer, const at::Tensor& x,
                        SavedLayer* saved, Workspace* workspace) {
  TORCH_CHECK(saved == nullptr || !pass.windowed, "windows are for evaluation");
  const auto keeps = [&](KeepPolicy part) { return saved != nullptr && Keeps(pass.memory.keep, part); };
  at::Tensor residual;
  {
    auto linear_pass =
        weights.query_key_value.Begin(pass.adapted, &pass.dropout, layer, &workspace->folded_attention, pass.folds);
    const at::Tensor query_key_value = ProjectQueryKeyValue(
        weights, linear_pass, pass, Normalise(weights.input_norm, pass.shape.norm_epsilon, x, nullptr));
    AttentionResult attention = Attend(weights, pass, layer, AttentionHeads(weights, pass, query_key_value, nullptr));
    linear_pass = weights.output.Begin(pass.adapted, &pass.dropout, layer, &workspace->folded_attention, pass.folds);
    residual = AddOutputProjection(weights.output, linear_pass, x, attention.out);
    if (saved != nullptr) saved->x = x;
    if (keeps(KeepPolicy::kAttentionOutput)) {
      saved->attention_out = attention.out;
      saved->logsumexp = std::move(attention.logsumexp);
    }
    if (keeps(KeepPolicy::kQueryKeyValue)) saved->query_key_value = query_key_value;
    if (keeps(KeepPolicy::kResidual) && !pass.shape.parallel_residual) saved->residual = residual;
  }
  at::Tensor kept_inner;
  if (keeps(KeepPolicy::kGateUp)) {
    kept_inner = saved->mlp_inner = at::empty({x.size(0), pass.shape.mlp_in_size()}, x.options());
  }
  return MlpForward(weights, pass, layer, pass.shape.parallel_residual ? x : residual, residual, kept_inner, workspace);
}

at::Tensor LayerBackward(const LayerWeights& weights, const LayerPass& pass, int64_t layer, const SavedLayer& saved,
                         at::Tensor y_gradient, bool wants_x_gradient, Workspace* workspace) {
  const LayerShape& shape = pass.shape;
  at::Tensor norm_statistics;
  const at::Tensor normed = Normalise(weights.input_norm, shape.norm_epsilon, saved.x, &norm_statistics);
  at::Tensor query_key_value = saved.query_key_value;
  if (!query_key_value.defined()) {
    const auto linear_pass =
        weights.query_key_value.Begin(pass.adapted, &pass.dropout, layer, &workspace->folded_attention);
    query_key_value = ProjectQueryKeyValue(weights, linear_pass, pass, normed);
  }
  AttentionResult attention{saved.attention_out, saved.logsumexp};
  HeadStatistics statistics;
  const HeadViews heads = AttentionHeads(weights, pass, query_key_value, &statistics);
  if (!attention.out.defined()) attention = Attend(weights, pass, layer, heads);

  const auto output_pass = weights.output.Begin(pass.adapted, &pass.dropout, layer, &workspace->folded_attention);
  at::Tensor attention_gradient;
  const auto output_backward = [&] {
    attention_gradient = at::empty_like(attention.out);
    weights.output.Backward(output_pass, attention.out, y_gradient, 0, attention_gradient);
  };
  if (shape.parallel_residual) {
    output_backward();
    MlpBackward(weights, pass, layer, saved.x, saved.mlp_inner, y_gradient, workspace);
  } else {
    {
      at::Tensor residual = saved.residual;
      if (!residual.defined()) residual = AddOutputProjection(weights.output, output_pass, saved.x, attention.out);
      MlpBackward(weights, pass, layer, residual, saved.mlp_inner, y_gradient, workspace);  // y_gradient is dr now
    }
    output_backward();
  }

  const at::Tensor fused_gradient = at::empty_like(query_key_value);
  const HeadViews gradients = ViewHeads(shape, fused_gradient);
  AttentionBackward(pass.attention, {heads.q, heads.k, heads.v, AttentionRows(shape, attention.out)},
                    attention.logsumexp, AttentionRows(shape, attention_gradient),
                    {gradients.q, gradients.k, gradients.v});
  UndoRotationAndHeadNorms(weights, pass, query_key_value, statistics, gradients);

  const bool wants_normed_gradient = wants_x_gradient || weights.input_norm.gradient.defined();
  const at::Tensor normed_gradient = wants_normed_gradient ? at::empty_like(normed) : at::Tensor();
  const auto linear_pass =
      weights.query_key_value.Begin(pass.adapted, &pass.dropout, layer, &workspace->folded_attention);
  weights.query_key_value.Backward(linear_pass, normed, fused_gradient, 0, normed_gradient);
  if (!wants_normed_gradient) return {};
  NormaliseBackward(weights.input_norm, saved.x, norm_statistics, normed_gradient, y_gradient);
  return y_gradient;
}

}  // namespace longspan::trainer
