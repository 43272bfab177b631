#include "worker/trainer/model/decoder_layer.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <optional>

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

template <typename Tile>
void ForTiles(int64_t rows, int64_t tile_rows, Tile tile) {
  for (int64_t begin = 0; begin < rows; begin += tile_rows) tile(begin, std::min(tile_rows, rows - begin));
}

// Everything of one layer in one pass over a batch: the weights, what the pass says, and the buffers.
class Layer {
 public:
  Layer(const LayerWeights& weights, const LayerPass& pass, int64_t layer, const at::Tensor& x, const KeptLayer& kept,
        Arena& arena)
      : weights_(weights), pass_(pass), shape_(pass.shape), layer_(layer), x_(x), kept_(kept), arena_(arena) {
    if (pass.sequence) sequence_.emplace(pass.sequence->plan, *pass.sequence->ranks, arena);
  }

  void Forward(const at::Tensor& y);
  void Backward(const at::Tensor& gradient, bool wants_x_gradient);

 private:
  struct Attention {
    at::Tensor out;                     // (N, Hq·D)
    std::vector<at::Tensor> logsumexp;  // of each call
  };
  // The linear layers behind attention, ready for one pass.
  struct TailPasses {
    FusedLinear::Pass output, mlp_in, mlp_out;
  };
  // Rows of a tile, from row `begin` of the batch on.
  struct Tile {
    int64_t begin, rows;
    at::Tensor Of(const at::Tensor& all) const { return all.narrow(0, begin, rows); }
  };

  int64_t rows() const { return x_.size(0); }
  FlashSetting KernelSetting(const at::Tensor& q) const {
    FlashSetting setting;
    if (!FlashTakes(q, setting)) return setting;
    setting.workspace =
        arena_.Take(Slot::kAttentionScratch, {FlashWorkspaceSize(shape_.head_dim, at::get_num_threads())}, at::kFloat);
    return setting;
  }
  at::Tensor Take(Slot slot, at::IntArrayRef sizes) const { return arena_.Take(slot, sizes, x_.scalar_type()); }
  at::Tensor KeptOr(const at::Tensor& kept, Slot slot, int64_t columns) const {
    return kept.defined() ? kept : Take(slot, {rows(), columns});
  }
  FusedLinear::Pass Begin(const FusedLinear& linear, Slot weight_slot) const {
    return linear.Begin({pass_.adapted, &pass_.dropout, layer_, weight_slot, pass_.folds}, arena_);
  }
  TailPasses BeginTail() const {
    return {Begin(weights_.output, Slot::kScratchOutput), Begin(weights_.mlp_in, Slot::kScratchMlpIn),
            Begin(weights_.mlp_out, Slot::kScratchMlpOut)};
  }
  at::Tensor Normed(const NormWeight& norm, const at::Tensor& x, const at::Tensor& statistics) const {
    const at::Tensor out = Take(Slot::kNormed, x.sizes());
    Normalise(norm, shape_.norm_epsilon, x, out, statistics);
    return out;
  }

  void ProjectQueryKeyValue(const at::Tensor& query_key_value) const;
  HeadViews AttentionHeads(const at::Tensor& query_key_value) const;
  void UndoRotationAndHeadNorms(const HeadViews& projected, const HeadViews& gradients, int64_t first_head = 0) const;
  Attention AttentionBuffers() const;
  void Attend(const HeadViews& heads, const Attention& attention);
  at::Tensor AttendBackward(const HeadViews& heads, const at::Tensor& query_key_value, const Attention& attention,
                            const at::Tensor& attention_gradient);
  void AttendBackwardInTiles(const AttentionInputs& inputs, const HeadViews& projected, const Attention& attention,
                             const at::Tensor& out_gradient) const;

  // Where the norm of the MLP's input goes. Undefined: not wanted.
  struct NormTarget {
    at::Tensor out, statistics;
  };
  at::Tensor Residual(const Tile& tile, const TailPasses& passes, const at::Tensor& attention_out,
                      const NormTarget& normed) const;
  at::Tensor NormedMlpInput(const Tile& tile, const TailPasses& passes, const at::Tensor& attention_out,
                            const NormTarget& normed) const;
  at::Tensor InnerOf(const Tile& tile) const {
    return kept_.mlp_inner.defined() ? tile.Of(kept_.mlp_inner)
                                     : Take(Slot::kMlpInner, {tile.rows, shape_.mlp_in_size()});
  }
  bool KeepsAnyOfMlp() const { return kept_.residual.defined() || kept_.mlp_inner.defined(); }
  void ForwardTail(const Tile& tile, const TailPasses& passes, const at::Tensor& attention_out,
                   const at::Tensor& y) const;
  void MlpBackward(const Tile& tile, const TailPasses& passes, const at::Tensor& attention_out,
                   const at::Tensor& gradient) const;
  void BackwardTail(const Tile& tile, const TailPasses& passes, const at::Tensor& attention_out,
                    const at::Tensor& gradient, const at::Tensor& attention_gradient) const;
  void ProjectionBackward(const at::Tensor& fused_gradient, const at::Tensor& gradient, bool wants_x_gradient) const;

  const LayerWeights& weights_;
  const LayerPass& pass_;
  const LayerShape& shape_;
  const int64_t layer_;
  const at::Tensor& x_;
  const KeptLayer& kept_;
  Arena& arena_;
  std::optional<SequenceAttention> sequence_;
};

// ---- attention ----

// After RoPE; with head norms, which their backward pass needs the input of, as projected.
void Layer::ProjectQueryKeyValue(const at::Tensor& query_key_value) const {
  const FusedLinear& linear = weights_.query_key_value;
  const FusedLinear::Pass pass = Begin(linear, Slot::kScratchQueryKeyValue);
  ForTiles(rows(), pass_.memory.tile_tokens, [&](int64_t begin, int64_t count) {
    const Tile tile{begin, count};
    linear.Forward(pass, Normed(weights_.input_norm, tile.Of(x_), {}), begin, tile.Of(query_key_value));
  });
  if (!weights_.has_head_norms()) Turn(ViewHeads(shape_, query_key_value), pass_.rotation, /*inverse=*/false);
}

// (N, H) fp32 each.
struct HeadStatistics {
  at::Tensor query, key;
};

HeadStatistics HeadStatisticsOf(const LayerShape& shape, int64_t rows, Arena& arena) {
  const int64_t heads = shape.query_heads + shape.key_value_heads;
  const at::Tensor all = arena.Take(Slot::kHeadStatistics, {rows * heads}, at::kFloat);
  return {all.narrow(0, 0, rows * shape.query_heads).view({rows, shape.query_heads}),
          all.narrow(0, rows * shape.query_heads, rows * shape.key_value_heads).view({rows, shape.key_value_heads})};
}

// What attention reads, from what ProjectQueryKeyValue gave.
HeadViews Layer::AttentionHeads(const at::Tensor& query_key_value) const {
  const HeadViews projected = ViewHeads(shape_, query_key_value);
  if (!weights_.has_head_norms()) return projected;
  HeadViews heads;
  heads.q_and_k = Take(Slot::kTurnedHeads, {rows(), shape_.query_heads + shape_.key_value_heads, shape_.head_dim});
  heads.q = heads.q_and_k.narrow(1, 0, shape_.query_heads);
  heads.k = heads.q_and_k.narrow(1, shape_.query_heads, shape_.key_value_heads);
  heads.v = projected.v;
  const HeadStatistics statistics = HeadStatisticsOf(shape_, rows(), arena_);
  HeadRmsNorm(projected.q, weights_.query_norm.value, shape_.norm_epsilon, heads.q, statistics.query);
  HeadRmsNorm(projected.k, weights_.key_norm.value, shape_.norm_epsilon, heads.k, statistics.key);
  Turn(heads, pass_.rotation, /*inverse=*/false);
  return heads;
}

// Turns the gradients of q and k as attention reads them into those of q and k as projected, in place: of all heads, or
// of a tile of them that begins at a key/value head.
void Layer::UndoRotationAndHeadNorms(const HeadViews& projected, const HeadViews& gradients, int64_t first_head) const {
  Turn(gradients, pass_.rotation, /*inverse=*/true);
  if (!weights_.has_head_norms()) return;
  const HeadStatistics statistics = HeadStatisticsOf(shape_, rows(), arena_);
  const int64_t first_query_head = first_head * (shape_.query_heads / shape_.key_value_heads);
  HeadRmsNormBackward(projected.q, weights_.query_norm.value,
                      statistics.query.narrow(1, first_query_head, projected.q.size(1)), gradients.q,
                      WeightGradientOf(weights_.query_norm, arena_));
  HeadRmsNormBackward(projected.k, weights_.key_norm.value, statistics.key.narrow(1, first_head, projected.k.size(1)),
                      gradients.k, WeightGradientOf(weights_.key_norm, arena_));
}

Layer::Attention Layer::AttentionBuffers() const {
  Attention attention;
  attention.out = KeptOr(kept_.attention_out, Slot::kAttentionOutput, shape_.query_heads * shape_.head_dim);
  if (pass_.attention.empty()) return attention;  // a pass over a cache
  const at::Tensor all = kept_.logsumexp.defined()
                             ? kept_.logsumexp
                             : arena_.Take(Slot::kLogSumExp, {rows() * shape_.query_heads}, at::kFloat);
  attention.logsumexp = SplitLogsumexp(pass_.attention, all);
  return attention;
}

void Layer::Attend(const HeadViews& heads, const Attention& attention) {
  const at::Tensor out = AttentionRows(shape_, attention.out);
  const int64_t window = pass_.windowed ? weights_.window : 0;
  if (pass_.cached != nullptr) {
    AttendCached(*pass_.cached, {layer_, window}, heads.q, heads.k, heads.v, out);
  } else if (window > 0 && sequence_) {
    sequence_->ForwardWindow(window, heads.q, heads.k, heads.v, out, attention.logsumexp);
  } else if (window > 0) {
    SlidingWindowAttention(pass_.attention_shape, window, heads.q, heads.k, heads.v, out);
  } else if (sequence_) {
    sequence_->Forward(heads.q, heads.k, heads.v, out, attention.logsumexp, KernelSetting(heads.q));
  } else {
    AttentionForward(pass_.attention, heads.q, heads.k, heads.v, out, attention.logsumexp, KernelSetting(heads.q));
  }
}

// The gradient of what the projection to q, k and v gave, (N, (Hq + 2·Hkv)·D): in memory of its own, or tile by tile of
// heads in the place of `query_key_value`.
at::Tensor Layer::AttendBackward(const HeadViews& heads, const at::Tensor& query_key_value, const Attention& attention,
                                 const at::Tensor& attention_gradient) {
  const AttentionInputs inputs{heads.q, heads.k, heads.v, AttentionRows(shape_, attention.out)};
  const at::Tensor out_gradient = AttentionRows(shape_, attention_gradient);
  const HeadViews projected = ViewHeads(shape_, query_key_value);
  const int64_t tile_heads = pass_.memory.tile_heads;
  if (tile_heads > 0 && tile_heads < shape_.key_value_heads) {
    TORCH_CHECK(!sequence_, "gradients by tiles of heads, of sequences on several ranks");
    AttendBackwardInTiles(inputs, projected, attention, out_gradient);
    return query_key_value;
  }
  const at::Tensor fused_gradient = Take(Slot::kQueryKeyValueGradient, query_key_value.sizes());
  const HeadViews gradients = ViewHeads(shape_, fused_gradient);
  const AttentionGradients to{gradients.q, gradients.k, gradients.v};
  if (sequence_) {
    sequence_->Backward(inputs, attention.logsumexp, out_gradient, to, KernelSetting(heads.q));
  } else {
    AttentionBackward(pass_.attention, inputs, attention.logsumexp, out_gradient, to, KernelSetting(heads.q));
  }
  UndoRotationAndHeadNorms(projected, gradients);
  return fused_gradient;
}

void Layer::AttendBackwardInTiles(const AttentionInputs& inputs, const HeadViews& projected, const Attention& attention,
                                  const at::Tensor& out_gradient) const {
  const int64_t group = shape_.query_heads / shape_.key_value_heads;
  const int64_t columns_of_head = (group + 2) * shape_.head_dim;
  ForTiles(shape_.key_value_heads, pass_.memory.tile_heads, [&](int64_t first, int64_t count) {
    const auto queries = [&](const at::Tensor& rows) { return rows.narrow(1, first * group, count * group); };
    const auto keys = [&](const at::Tensor& rows) { return rows.narrow(1, first, count); };
    LayerShape tile_shape = shape_;
    tile_shape.query_heads = count * group;
    tile_shape.key_value_heads = count;
    const HeadViews gradients =
        ViewHeads(tile_shape, Take(Slot::kQueryKeyValueGradient, {rows(), count * columns_of_head}));
    const HeadTile tile = TileOfHeads(pass_.attention, attention.logsumexp, first, count, group);
    AttentionBackward(tile.plan, {queries(inputs.q), keys(inputs.k), keys(inputs.v), queries(inputs.out)},
                      tile.logsumexp, queries(out_gradient), {gradients.q, gradients.k, gradients.v},
                      KernelSetting(inputs.q));
    const HeadViews place{queries(projected.q), keys(projected.k), keys(projected.v), {}};
    UndoRotationAndHeadNorms(place, gradients, first);
    place.q.copy_(gradients.q);
    place.k.copy_(gradients.k);
    place.v.copy_(gradients.v);
  });
}

// ---- behind attention, tile by tile ----

// r = x + o·Woᵀ, and the norm of it.
at::Tensor Layer::Residual(const Tile& tile, const TailPasses& passes, const at::Tensor& attention_out,
                           const NormTarget& normed) const {
  at::Tensor residual =
      kept_.residual.defined() ? tile.Of(kept_.residual) : Take(Slot::kResidual, {tile.rows, shape_.hidden_size});
  weights_.output.Forward(passes.output, tile.Of(attention_out), tile.begin, residual);
  if (!normed.out.defined()) return residual.add_(tile.Of(x_));
  AddAndNormalise(weights_.post_attention_norm, shape_.norm_epsilon, residual, tile.Of(x_), normed.out,
                  normed.statistics);
  return residual;
}

// What the norm before the MLP reads, x or r, and the norm of it.
at::Tensor Layer::NormedMlpInput(const Tile& tile, const TailPasses& passes, const at::Tensor& attention_out,
                                 const NormTarget& normed) const {
  if (!shape_.parallel_residual && !kept_.residual.defined()) return Residual(tile, passes, attention_out, normed);
  const at::Tensor input = tile.Of(shape_.parallel_residual ? x_ : kept_.residual);
  Normalise(weights_.post_attention_norm, shape_.norm_epsilon, input, normed.out, normed.statistics);
  return input;
}

void Layer::ForwardTail(const Tile& tile, const TailPasses& passes, const at::Tensor& attention_out,
                        const at::Tensor& y) const {
  if (!y.defined() && !kept_.mlp_inner.defined()) {
    Residual(tile, passes, attention_out, {});
    return;
  }
  const at::Tensor normed = Take(Slot::kNormed, {tile.rows, shape_.hidden_size});
  const at::Tensor residual =
      Residual(tile, passes, attention_out, shape_.parallel_residual ? NormTarget{} : NormTarget{normed, {}});
  if (shape_.parallel_residual) {
    Normalise(weights_.post_attention_norm, shape_.norm_epsilon, tile.Of(x_), normed, {});
  }
  const at::Tensor inner = InnerOf(tile);
  weights_.mlp_in.Forward(passes.mlp_in, normed, tile.begin, inner);
  if (!y.defined()) return;
  const at::Tensor product = Take(Slot::kMlpProduct, {tile.rows, shape_.intermediate_size});
  MlpActivation(shape_.activation, inner, arena_).Forward(product);
  at::Tensor out = tile.Of(y);
  weights_.mlp_out.Forward(passes.mlp_out, product, tile.begin, out);
  out.add_(residual);
}

// Adds to `gradient`, which is dy of the tile, what the MLP's input gets.
void Layer::MlpBackward(const Tile& tile, const TailPasses& passes, const at::Tensor& attention_out,
                        const at::Tensor& gradient) const {
  const at::Tensor statistics = StatisticsOf(tile.rows, arena_);
  const at::Tensor normed = Take(Slot::kNormed, {tile.rows, shape_.hidden_size});
  const at::Tensor input = NormedMlpInput(tile, passes, attention_out, {normed, statistics});
  const at::Tensor inner = InnerOf(tile);
  if (!kept_.mlp_inner.defined()) weights_.mlp_in.Forward(passes.mlp_in, normed, tile.begin, inner);
  const MlpActivation activation(shape_.activation, inner, arena_);
  const std::array<int64_t, 2> product_shape = {tile.rows, shape_.intermediate_size};
  at::Tensor product;  // only the gradients of mlp_out read it
  if (weights_.mlp_out.Trains()) {
    product = Take(Slot::kMlpProduct, product_shape);
    activation.Forward(product);
  }
  const at::Tensor product_gradient = Take(Slot::kMlpProductGradient, product_shape);
  weights_.mlp_out.Backward(passes.mlp_out, product, gradient, tile.begin, product_gradient);
  const at::Tensor inner_gradient = Take(Slot::kMlpInnerGradient, inner.sizes());
  activation.Backward(product_gradient, inner_gradient);
  const at::Tensor normed_gradient = Take(Slot::kNormedGradient, normed.sizes());
  weights_.mlp_in.Backward(passes.mlp_in, normed, inner_gradient, tile.begin, normed_gradient);
  NormaliseBackward(weights_.post_attention_norm, input, statistics, normed_gradient, gradient, arena_);
}

// gradient: dy of all rows, which becomes dr of this tile's; of a parallel residual what x gets so far.
void Layer::BackwardTail(const Tile& tile, const TailPasses& passes, const at::Tensor& attention_out,
                         const at::Tensor& gradient, const at::Tensor& attention_gradient) const {
  const at::Tensor tile_gradient = tile.Of(gradient);
  const auto output_backward = [&] {
    weights_.output.Backward(passes.output, tile.Of(attention_out), tile_gradient, tile.begin,
                             tile.Of(attention_gradient));
  };
  if (shape_.parallel_residual) output_backward();
  MlpBackward(tile, passes, attention_out, tile_gradient);
  if (!shape_.parallel_residual) output_backward();
}

void Layer::ProjectionBackward(const at::Tensor& fused_gradient, const at::Tensor& gradient,
                               bool wants_x_gradient) const {
  const bool wants_normed_gradient = wants_x_gradient || weights_.input_norm.gradient.defined();
  const FusedLinear& linear = weights_.query_key_value;
  const FusedLinear::Pass pass = Begin(linear, Slot::kScratchQueryKeyValue);
  ForTiles(rows(), pass_.memory.tile_tokens, [&](int64_t begin, int64_t count) {
    const Tile tile{begin, count};
    const at::Tensor statistics = StatisticsOf(count, arena_);
    const at::Tensor normed = Normed(weights_.input_norm, tile.Of(x_), statistics);
    at::Tensor normed_gradient;
    if (wants_normed_gradient) normed_gradient = Take(Slot::kNormedGradient, normed.sizes());
    linear.Backward(pass, normed, tile.Of(fused_gradient), begin, normed_gradient);
    if (wants_normed_gradient) {
      NormaliseBackward(weights_.input_norm, tile.Of(x_), statistics, normed_gradient, tile.Of(gradient), arena_);
    }
  });
}

// ---- both ways ----

void Layer::Forward(const at::Tensor& y) {
  const Attention attention = AttentionBuffers();
  {
    const at::Tensor query_key_value =
        KeptOr(kept_.query_key_value, Slot::kQueryKeyValue, weights_.query_key_value.outputs());
    ProjectQueryKeyValue(query_key_value);
    Attend(AttentionHeads(query_key_value), attention);
  }
  if (!y.defined() && !KeepsAnyOfMlp()) return;
  const TailPasses passes = BeginTail();
  ForTiles(rows(), pass_.memory.tile_tokens,
           [&](int64_t begin, int64_t count) { ForwardTail({begin, count}, passes, attention.out, y); });
}

void Layer::Backward(const at::Tensor& gradient, bool wants_x_gradient) {
  const at::Tensor query_key_value =
      KeptOr(kept_.query_key_value, Slot::kQueryKeyValue, weights_.query_key_value.outputs());
  if (!kept_.query_key_value.defined()) ProjectQueryKeyValue(query_key_value);
  const HeadViews heads = AttentionHeads(query_key_value);
  if (sequence_) sequence_->Start(heads.k, heads.v);
  const Attention attention = AttentionBuffers();
  if (!kept_.attention_out.defined()) Attend(heads, attention);

  const at::Tensor attention_gradient = Take(Slot::kAttentionOutputGradient, attention.out.sizes());
  {
    const TailPasses passes = BeginTail();
    ForTiles(rows(), pass_.memory.tile_tokens, [&](int64_t begin, int64_t count) {
      BackwardTail({begin, count}, passes, attention.out, gradient, attention_gradient);
    });
  }
  ProjectionBackward(AttendBackward(heads, query_key_value, attention, attention_gradient), gradient, wants_x_gradient);
}

}  // namespace

void LayerForward(const LayerWeights& weights, const LayerPass& pass, int64_t layer, const at::Tensor& x,
                  const KeptLayer& kept, const at::Tensor& y, Arena& arena) {
  Layer(weights, pass, layer, x, kept, arena).Forward(y);
}

void LayerBackward(const LayerWeights& weights, const LayerPass& pass, int64_t layer, const at::Tensor& x,
                   const KeptLayer& kept, const at::Tensor& gradient, bool wants_x_gradient, Arena& arena) {
  Layer(weights, pass, layer, x, kept, arena).Backward(gradient, wants_x_gradient);
}

}  // namespace longspan::trainer
