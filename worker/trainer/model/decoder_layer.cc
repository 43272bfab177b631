#include "worker/trainer/model/decoder_layer.h"

#include <algorithm>

namespace longspan::trainer {
namespace {

// q, k and v as (N, H, D) views of their fused rows.
struct HeadViews {
  at::Tensor q, k, v, turned;  // turned: q and k together, what RoPE applies to
};

HeadViews ViewHeads(const LayerShape& shape, const at::Tensor& query_key_value) {
  const at::Tensor heads =
      query_key_value.view({query_key_value.size(0), shape.query_heads + 2 * shape.key_value_heads, shape.head_dim});
  HeadViews views;
  views.q = heads.narrow(1, 0, shape.query_heads);
  views.k = heads.narrow(1, shape.query_heads, shape.key_value_heads);
  views.v = heads.narrow(1, shape.query_heads + shape.key_value_heads, shape.key_value_heads);
  views.turned = heads.narrow(1, 0, shape.query_heads + shape.key_value_heads);
  return views;
}

at::Tensor AttentionRows(const LayerShape& shape, const at::Tensor& rows) {
  return rows.view({rows.size(0), shape.query_heads, shape.head_dim});
}

// norm(x), and its inverse root mean squares where the backward pass wants them.
at::Tensor Normalise(const LayerPass& pass, const NormWeight& norm, const at::Tensor& x, at::Tensor* inverse_rms) {
  at::Tensor out = at::empty_like(x);
  if (inverse_rms != nullptr) *inverse_rms = at::empty({x.size(0)}, at::kFloat);
  RmsNorm(x, norm.value, pass.shape.norm_epsilon, out, inverse_rms != nullptr ? *inverse_rms : at::Tensor());
  return out;
}

at::Tensor ProjectQueryKeyValue(const FusedLinear& linear, const FusedLinear::Pass& linear_pass, const LayerPass& pass,
                                const at::Tensor& normed) {
  at::Tensor out = at::empty({normed.size(0), linear.outputs()}, normed.options());
  linear.Forward(linear_pass, normed, 0, out);
  ApplyRotation(ViewHeads(pass.shape, out).turned, pass.rotation, /*inverse=*/false);
  return out;
}

struct AttentionResult {
  at::Tensor out;
  std::vector<at::Tensor> logsumexp;
};

AttentionResult Attend(const LayerPass& pass, int64_t layer, const at::Tensor& query_key_value) {
  AttentionResult result;
  const HeadViews heads = ViewHeads(pass.shape, query_key_value);
  result.out =
      at::empty({query_key_value.size(0), pass.shape.query_heads * pass.shape.head_dim}, query_key_value.options());
  if (pass.cached != nullptr) {
    AttendCached(*pass.cached, layer, heads.q, heads.k, heads.v, AttentionRows(pass.shape, result.out));
    return result;
  }
  result.logsumexp = AttentionForward(pass.attention, heads.q, heads.k, heads.v, AttentionRows(pass.shape, result.out));
  return result;
}

at::Tensor AddOutputProjection(const FusedLinear& linear, const FusedLinear::Pass& linear_pass, const at::Tensor& x,
                               const at::Tensor& attention_out) {
  at::Tensor residual = at::empty_like(x);
  linear.Forward(linear_pass, attention_out, 0, residual);
  return residual.add_(x);
}

at::Tensor SigmoidOfGate(const at::Tensor& gate_up, int64_t intermediate_size) {
  return at::sigmoid(gate_up.narrow(1, 0, intermediate_size).to(at::kFloat));
}

// The MLP's two linears, ready for one pass.
struct MlpPasses {
  FusedLinear::Pass gate_up, down;
};

MlpPasses BeginMlp(const LayerWeights& weights, const LayerPass& pass, int64_t layer, Workspace* workspace) {
  return {weights.gate_up.Begin(pass.adapted, &pass.dropout, layer, &workspace->folded_mlp_in, pass.folds),
          weights.down.Begin(pass.adapted, &pass.dropout, layer, &workspace->folded_mlp_out, pass.folds)};
}

// Rows [begin, end) of y = r + MLP(norm(r)).
void MlpForwardTile(const LayerWeights& weights, const LayerPass& pass, const MlpPasses& mlp,
                    const at::Tensor& residual, int64_t begin, const at::Tensor& gate_up, const at::Tensor& y) {
  const int64_t size = pass.shape.intermediate_size;
  const at::Tensor normed = Normalise(pass, weights.post_attention_norm, residual, nullptr);
  weights.gate_up.Forward(mlp.gate_up, normed, begin, gate_up);
  const at::Tensor product = at::empty({residual.size(0), size}, residual.options());
  SiluProduct(gate_up, SigmoidOfGate(gate_up, size), product);
  weights.down.Forward(mlp.down, product, begin, y);
  y.add_(residual);
}

// Turns dy of a tile into dr, in place. `gate_up` holds the kept values, or is filled again when `recompute`.
void MlpBackwardTile(const LayerWeights& weights, const LayerPass& pass, const MlpPasses& mlp,
                     const at::Tensor& residual, int64_t begin, const at::Tensor& gate_up, bool recompute,
                     const at::Tensor& gradient) {
  const int64_t size = pass.shape.intermediate_size;
  at::Tensor inverse_rms;
  const at::Tensor normed = Normalise(pass, weights.post_attention_norm, residual, &inverse_rms);
  if (recompute) weights.gate_up.Forward(mlp.gate_up, normed, begin, gate_up);
  const at::Tensor sigmoid = SigmoidOfGate(gate_up, size);
  at::Tensor product;  // silu(g)∘u: only the gradients of down_proj read it
  if (weights.down.Trains()) {
    product = at::empty({residual.size(0), size}, residual.options());
    SiluProduct(gate_up, sigmoid, product);
  }
  const at::Tensor product_gradient = at::empty({residual.size(0), size}, residual.options());
  weights.down.Backward(mlp.down, product, gradient, begin, product_gradient);
  const at::Tensor gate_up_gradient = at::empty({residual.size(0), 2 * size}, residual.options());
  SiluProductBackward(gate_up, sigmoid, product_gradient, gate_up_gradient);
  const at::Tensor normed_gradient = at::empty_like(residual);
  weights.gate_up.Backward(mlp.gate_up, normed, gate_up_gradient, begin, normed_gradient);
  RmsNormBackward(residual, weights.post_attention_norm.value, inverse_rms, normed_gradient, gradient,
                  weights.post_attention_norm.gradient);
}

template <typename Tile>
void ForTiles(int64_t rows, int64_t tile_rows, Tile tile) {
  for (int64_t begin = 0; begin < rows; begin += tile_rows) tile(begin, std::min(tile_rows, rows - begin));
}

void MlpBackward(const LayerWeights& weights, const LayerPass& pass, int64_t layer, const at::Tensor& residual,
                 const at::Tensor& kept_gate_up, const at::Tensor& gradient, Workspace* workspace) {
  const MlpPasses mlp = BeginMlp(weights, pass, layer, workspace);
  ForTiles(residual.size(0), pass.memory.mlp_tile_tokens, [&](int64_t begin, int64_t rows) {
    const at::Tensor gate_up = kept_gate_up.defined()
                                   ? kept_gate_up.narrow(0, begin, rows)
                                   : at::empty({rows, 2 * pass.shape.intermediate_size}, residual.options());
    MlpBackwardTile(weights, pass, mlp, residual.narrow(0, begin, rows), begin, gate_up, !kept_gate_up.defined(),
                    gradient.narrow(0, begin, rows));
  });
}

}  // namespace

at::Tensor LayerForward(const LayerWeights& weights, const LayerPass& pass, int64_t layer, const at::Tensor& x,
                        SavedLayer* saved, Workspace* workspace) {
  const auto keeps = [&](KeepPolicy part) { return saved != nullptr && Keeps(pass.memory.keep, part); };
  at::Tensor residual;
  {
    auto linear_pass =
        weights.query_key_value.Begin(pass.adapted, &pass.dropout, layer, &workspace->folded_attention, pass.folds);
    const at::Tensor query_key_value = ProjectQueryKeyValue(weights.query_key_value, linear_pass, pass,
                                                            Normalise(pass, weights.input_norm, x, nullptr));
    AttentionResult attention = Attend(pass, layer, query_key_value);
    linear_pass = weights.output.Begin(pass.adapted, &pass.dropout, layer, &workspace->folded_attention, pass.folds);
    residual = AddOutputProjection(weights.output, linear_pass, x, attention.out);
    if (saved != nullptr) saved->x = x;
    if (keeps(KeepPolicy::kAttentionOutput)) {
      saved->attention_out = attention.out;
      saved->logsumexp = std::move(attention.logsumexp);
    }
    if (keeps(KeepPolicy::kQueryKeyValue)) saved->query_key_value = query_key_value;
    if (keeps(KeepPolicy::kResidual)) saved->residual = residual;
  }
  const int64_t rows = x.size(0);
  const int64_t gate_up_size = 2 * pass.shape.intermediate_size;
  if (keeps(KeepPolicy::kGateUp)) saved->gate_up = at::empty({rows, gate_up_size}, x.options());
  const at::Tensor y = at::empty_like(x);
  const MlpPasses mlp = BeginMlp(weights, pass, layer, workspace);
  ForTiles(rows, pass.memory.mlp_tile_tokens, [&](int64_t begin, int64_t tile_rows) {
    const at::Tensor gate_up = keeps(KeepPolicy::kGateUp) ? saved->gate_up.narrow(0, begin, tile_rows)
                                                          : at::empty({tile_rows, gate_up_size}, x.options());
    MlpForwardTile(weights, pass, mlp, residual.narrow(0, begin, tile_rows), begin, gate_up,
                   y.narrow(0, begin, tile_rows));
  });
  return y;
}

at::Tensor LayerBackward(const LayerWeights& weights, const LayerPass& pass, int64_t layer, const SavedLayer& saved,
                         at::Tensor y_gradient, bool wants_x_gradient, Workspace* workspace) {
  const LayerShape& shape = pass.shape;
  at::Tensor inverse_rms;
  const at::Tensor normed = Normalise(pass, weights.input_norm, saved.x, &inverse_rms);
  at::Tensor query_key_value = saved.query_key_value;
  if (!query_key_value.defined()) {
    const auto linear_pass =
        weights.query_key_value.Begin(pass.adapted, &pass.dropout, layer, &workspace->folded_attention);
    query_key_value = ProjectQueryKeyValue(weights.query_key_value, linear_pass, pass, normed);
  }
  AttentionResult attention{saved.attention_out, saved.logsumexp};
  if (!attention.out.defined()) attention = Attend(pass, layer, query_key_value);

  const auto output_pass = weights.output.Begin(pass.adapted, &pass.dropout, layer, &workspace->folded_attention);
  at::Tensor residual = saved.residual;
  if (!residual.defined()) residual = AddOutputProjection(weights.output, output_pass, saved.x, attention.out);
  MlpBackward(weights, pass, layer, residual, saved.gate_up, y_gradient, workspace);
  const at::Tensor& residual_gradient = y_gradient;  // dr now
  residual.reset();

  const at::Tensor attention_gradient = at::empty_like(attention.out);
  weights.output.Backward(output_pass, attention.out, residual_gradient, 0, attention_gradient);
  const at::Tensor fused_gradient = at::empty_like(query_key_value);
  const HeadViews heads = ViewHeads(shape, query_key_value);
  const HeadViews gradients = ViewHeads(shape, fused_gradient);
  AttentionBackward(pass.attention, {heads.q, heads.k, heads.v, AttentionRows(shape, attention.out)},
                    attention.logsumexp, AttentionRows(shape, attention_gradient),
                    {gradients.q, gradients.k, gradients.v});
  ApplyRotation(gradients.turned, pass.rotation, /*inverse=*/true);

  const bool wants_normed_gradient = wants_x_gradient || weights.input_norm.gradient.defined();
  const at::Tensor normed_gradient = wants_normed_gradient ? at::empty_like(normed) : at::Tensor();
  const auto linear_pass =
      weights.query_key_value.Begin(pass.adapted, &pass.dropout, layer, &workspace->folded_attention);
  weights.query_key_value.Backward(linear_pass, normed, fused_gradient, 0, normed_gradient);
  if (!wants_normed_gradient) return {};
  RmsNormBackward(saved.x, weights.input_norm.value, inverse_rms, normed_gradient, y_gradient,
                  weights.input_norm.gradient);
  return y_gradient;
}

}  // namespace longspan::trainer
