#include "worker/trainer/adapters/fused_linear.h"

#include <algorithm>

#include "worker/trainer/adapters/lora_products.h"
#include "worker/trainer/model/matrix_product.h"
#include "worker/trainer/model/row_sums.h"

namespace longspan::trainer {

namespace {

at::Tensor Product(const at::Tensor& left, const at::Tensor& right, Slot slot, Arena& arena) {
  at::Tensor out = arena.Take(slot, {left.size(0), right.size(1)}, left.scalar_type());
  MultiplyInto(left, right, out);
  return out;
}

Fp8Rows InEightBits(const at::Tensor& x, Arena& arena) {
  const Fp8Rows rows{arena.Take(Slot::kFp8Codes, x.sizes(), at::kFloat8_e4m3fn),
                     arena.Take(Slot::kFp8Scales, {x.size(0)}, at::kFloat)};
  QuantizeRows(x, rows);
  return rows;
}

}  // namespace

void AddProduct(const at::Tensor& left, const at::Tensor& right, const at::Tensor& gradient, Arena& arena) {
  if (left.scalar_type() == gradient.scalar_type()) {
    MultiplyInto(left.t(), right, gradient, {.of_out = 1});
  } else {
    AddScaled(Product(left.t(), right, Slot::kWeightProduct, arena), 1, gradient);
  }
}

bool FusedLinear::HasLora() const {
  return std::any_of(parts.begin(), parts.end(), [](const LinearPart& part) { return part.lora.has_value(); });
}

int64_t FusedLinear::inputs() const {
  if (weight.defined()) return weight.size(1);
  if (gathered != nullptr) return gathered->inputs;
  if (fp8) return fp8->inputs();
  return parts.front().quantized ? parts.front().quantized->inputs : parts.front().stored.size(1);
}

// The weight (out, in) of a layer that has none standing.
void FusedLinear::Unpack(const at::Tensor& out) const {
  for (const LinearPart& part : parts) {
    const at::Tensor rows = out.narrow(0, part.first_output, part.outputs);
    if (part.quantized) {
      DequantizeNf4(*part.quantized, rows);
    } else {
      rows.copy_(part.stored);
    }
  }
}

void FusedLinear::Refresh() {
  if (!HasLora()) return;
  std::vector<at::Tensor> factors;
  int64_t ranks = 0;
  for (const LinearPart& part : parts) {
    if (!part.lora) continue;
    factors.push_back(part.lora->a);
    ranks += part.lora->a.size(0);
  }
  stacked_a_ = factors.size() == 1 ? factors[0] : at::cat(factors);
  if (!blocks_b_.defined()) blocks_b_ = at::zeros({outputs(), ranks}, stacked_a_.options());
  int64_t first_rank = 0;
  for (const LinearPart& part : parts) {
    if (!part.lora) continue;
    const int64_t rank = part.lora->a.size(0);
    at::Tensor block = blocks_b_.narrow(0, part.first_output, part.outputs).narrow(1, first_rank, rank);
    block.copy_(part.lora->b).mul_(part.lora->scale);
    first_rank += rank;
  }
}

// A layer begins several times while its weight is here, always as the same pass asks for.
const at::Tensor& FusedLinear::Gathered(bool folds) const {
  TORCH_CHECK(gathered->weight.defined(), "the weight of ", parts.front().name, " is not gathered");
  TORCH_CHECK(folds || !gathered->folded, "LoRA is in the weight of ", parts.front().name);
  if (folds && !gathered->folded) MultiplyInto(blocks_b_, stacked_a_, gathered->weight, {.of_out = 1});
  gathered->folded = folds;
  return gathered->weight;
}

FusedLinear::Pass FusedLinear::Begin(const PassOptions& options, Arena& arena) const {
  const bool with_lora = options.adapted && HasLora();
  Pass pass;
  pass.arena = &arena;
  pass.layer = options.layer;
  if (with_lora && options.dropout != nullptr && options.dropout->active()) pass.dropout = options.dropout;
  pass.low_rank = with_lora && (pass.dropout != nullptr || dtype != at::kFloat || !options.fold);
  const bool folds = with_lora && !pass.low_rank;
  if (fp8) {
    TORCH_CHECK(dtype == at::kBFloat16, "8-bit products of ", dtype);
    pass.fp8 = &*fp8;
    return pass;
  }
  if (gathered != nullptr) {
    pass.weight = Gathered(folds);
    return pass;
  }
  if (weight.defined() && !folds) {
    pass.weight = weight;
    return pass;
  }
  pass.weight = arena.Take(options.weight_slot, {outputs(), inputs()}, dtype);
  if (weight.defined()) {
    pass.weight.copy_(weight);
  } else {
    Unpack(pass.weight);
  }
  if (folds) MultiplyInto(blocks_b_, stacked_a_, pass.weight, {.of_out = 1});
  return pass;
}

void FusedLinear::Forward(const Pass& pass, const at::Tensor& x, int64_t first_row, const at::Tensor& y) const {
  if (pass.fp8 != nullptr) {
    MultiplyFp8(InEightBits(x, *pass.arena), pass.fp8->by_output, y);
    if (bias.defined()) at::Tensor(y).add_(bias);
  } else {
    if (bias.defined()) at::Tensor(y).copy_(bias.expand_as(y));
    MultiplyInto(x, pass.weight.t(), y, {.of_out = bias.defined() ? 1.0 : 0.0});
  }
  if (!pass.low_rank) return;
  if (pass.dropout != nullptr) {
    ForwardWithDropout(pass, x, first_row, y);
  } else {
    MultiplyInto(ProjectRows(x, stacked_a_.t(), Slot::kLoraInner, *pass.arena), blocks_b_.t(), y, {.of_out = 1});
  }
}

void FusedLinear::Backward(const Pass& pass, const at::Tensor& x, const at::Tensor& y_gradient, int64_t first_row,
                           const at::Tensor& x_gradient) const {
  if (x_gradient.defined() && pass.fp8 != nullptr) {
    MultiplyFp8(InEightBits(y_gradient, *pass.arena), pass.fp8->by_input, x_gradient);
  } else if (x_gradient.defined()) {
    MultiplyInto(y_gradient, pass.weight, x_gradient);
  }
  if (weight_gradient.defined()) AddProduct(y_gradient, x, weight_gradient, *pass.arena);
  if (bias_gradient.defined()) {
    AddColumnSums(y_gradient, bias_gradient, ColumnSumScratch(y_gradient.size(1), *pass.arena));
  }
  if (!HasLora()) return;
  if (pass.dropout != nullptr) {
    BackwardWithDropout(pass, x, y_gradient, first_row, x_gradient);
    return;
  }
  // (n, R), of x Aᵀ
  const at::Tensor inner_gradient = ProjectRows(y_gradient, blocks_b_, Slot::kLoraInnerGradient, *pass.arena);
  if (pass.low_rank && x_gradient.defined()) MultiplyInto(inner_gradient, stacked_a_, x_gradient, {.of_out = 1});
  AddLoraGradients(pass, x, y_gradient, inner_gradient);
}

void FusedLinear::AddLoraGradients(const Pass& pass, const at::Tensor& x, const at::Tensor& y_gradient,
                                   const at::Tensor& inner_gradient) const {
  Arena& arena = *pass.arena;
  std::vector<OuterGradient> of_a, of_b;  // of b transposed, without scale
  int64_t first_rank = 0;
  for (const LinearPart& part : parts) {
    if (!part.lora) continue;
    of_a.push_back({first_rank, 0, 1, part.lora->a_gradient});
    of_b.push_back({first_rank, part.first_output, part.lora->scale, part.lora->b_gradient.t()});
    first_rank += part.lora->a.size(0);
  }
  const at::Tensor inner = ProjectRows(x, stacked_a_.t(), Slot::kLoraInner, arena);  // (n, R)
  AddOuterProducts(inner_gradient, x, of_a, Slot::kLoraAGradient, arena);
  AddOuterProducts(inner, y_gradient, of_b, Slot::kLoraBGradient, arena);
}

// Every module has its own mask, so nothing is shared between the parts.
void FusedLinear::ForwardWithDropout(const Pass& pass, const at::Tensor& x, int64_t first_row,
                                     const at::Tensor& y) const {
  const at::Tensor kept = pass.arena->Take(Slot::kDropped, x.sizes(), x.scalar_type());
  for (const LinearPart& part : parts) {
    if (!part.lora) continue;
    ApplyDropout(*pass.dropout, {pass.layer, part.module_index, first_row}, x, kept);
    MultiplyInto(ProjectRows(kept, part.lora->a.t(), Slot::kLoraInner, *pass.arena), part.lora->b.t(),
                 y.narrow(1, part.first_output, part.outputs), {.of_out = 1, .of_product = part.lora->scale});
  }
}

void FusedLinear::BackwardWithDropout(const Pass& pass, const at::Tensor& x, const at::Tensor& y_gradient,
                                      int64_t first_row, const at::Tensor& x_gradient) const {
  Arena& arena = *pass.arena;
  const at::Tensor kept = arena.Take(Slot::kDropped, x.sizes(), x.scalar_type());
  for (const LinearPart& part : parts) {
    if (!part.lora) continue;
    const DropoutSite site{pass.layer, part.module_index, first_row};
    const at::Tensor part_gradient = y_gradient.narrow(1, part.first_output, part.outputs);
    at::Tensor inner_gradient = ProjectRows(part_gradient, part.lora->b, Slot::kLoraInnerGradient, arena);
    inner_gradient.mul_(part.lora->scale);
    ApplyDropout(*pass.dropout, site, x, kept);
    AddOuterProducts(inner_gradient, kept, {{0, 0, 1, part.lora->a_gradient}}, Slot::kLoraAGradient, arena);
    const at::Tensor inner = ProjectRows(kept, part.lora->a.t(), Slot::kLoraInner, arena);
    AddOuterProducts(inner, part_gradient, {{0, 0, part.lora->scale, part.lora->b_gradient.t()}}, Slot::kLoraBGradient,
                     arena);
    if (!x_gradient.defined()) continue;
    const at::Tensor masked = Product(inner_gradient, part.lora->a, Slot::kDroppedGradient, arena);
    ApplyDropout(*pass.dropout, site, masked, masked);
    x_gradient.add_(masked);
  }
}

}  // namespace longspan::trainer
