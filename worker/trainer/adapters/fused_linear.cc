#include "worker/trainer/adapters/fused_linear.h"

#include <algorithm>

namespace longspan::trainer {

void AddProduct(const at::Tensor& left, const at::Tensor& right, const at::Tensor& gradient) {
  if (left.scalar_type() == gradient.scalar_type()) {
    gradient.addmm_(left.t(), right);
  } else {
    gradient.add_(at::mm(left.t(), right));
  }
}

bool FusedLinear::HasLora() const {
  return std::any_of(parts.begin(), parts.end(), [](const LinearPart& part) { return part.lora.has_value(); });
}

int64_t FusedLinear::inputs() const {
  if (weight.defined()) return weight.size(1);
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
  if (!blocks_b_.defined()) blocks_b_ = at::zeros({outputs(), ranks}, dtype);
  int64_t first_rank = 0;
  for (const LinearPart& part : parts) {
    if (!part.lora) continue;
    const int64_t rank = part.lora->a.size(0);
    at::Tensor block = blocks_b_.narrow(0, part.first_output, part.outputs).narrow(1, first_rank, rank);
    block.copy_(part.lora->b).mul_(part.lora->scale);
    first_rank += rank;
  }
}

FusedLinear::Pass FusedLinear::Begin(bool adapted, const DropoutPass* dropout, int64_t layer, at::Tensor* scratch,
                                     bool fold) const {
  const bool with_lora = adapted && HasLora();
  Pass pass;
  pass.layer = layer;
  if (with_lora && dropout != nullptr && dropout->active()) pass.dropout = dropout;
  pass.low_rank = with_lora && (pass.dropout != nullptr || dtype != at::kFloat || !fold);
  const bool folds = with_lora && !pass.low_rank;
  if (weight.defined() && !folds) {
    pass.weight = weight;
    return pass;
  }
  const int64_t size = outputs() * inputs();
  if (!scratch->defined() || scratch->numel() < size) *scratch = at::empty({size}, dtype);
  pass.weight = scratch->narrow(0, 0, size).view({outputs(), inputs()});
  if (weight.defined()) {
    at::addmm_out(pass.weight, weight, blocks_b_, stacked_a_);
    return pass;
  }
  Unpack(pass.weight);
  if (folds) pass.weight.addmm_(blocks_b_, stacked_a_);
  return pass;
}

void FusedLinear::Forward(const Pass& pass, const at::Tensor& x, int64_t first_row, const at::Tensor& y) const {
  at::Tensor out = y;
  if (bias.defined()) {
    at::addmm_out(out, bias, x, pass.weight.t());
  } else {
    at::mm_out(out, x, pass.weight.t());
  }
  if (!pass.low_rank) return;
  if (pass.dropout != nullptr) {
    ForwardWithDropout(pass, x, first_row, y);
  } else {
    out.addmm_(at::mm(x, stacked_a_.t()), blocks_b_.t());
  }
}

void FusedLinear::Backward(const Pass& pass, const at::Tensor& x, const at::Tensor& y_gradient, int64_t first_row,
                           const at::Tensor& x_gradient) const {
  if (x_gradient.defined()) {
    at::Tensor out = x_gradient;
    at::mm_out(out, y_gradient, pass.weight);
  }
  if (weight_gradient.defined()) AddProduct(y_gradient, x, weight_gradient);
  if (bias_gradient.defined()) bias_gradient.add_(at::sum(y_gradient, {0}, /*keepdim=*/false, at::kFloat));
  if (!HasLora()) return;
  if (pass.dropout != nullptr) {
    BackwardWithDropout(pass, x, y_gradient, first_row, x_gradient);
    return;
  }
  const at::Tensor inner_gradient = at::mm(y_gradient, blocks_b_);  // (n, R), of x Aᵀ
  if (pass.low_rank && x_gradient.defined()) at::Tensor(x_gradient).addmm_(inner_gradient, stacked_a_);
  AddLoraGradients(x, y_gradient, inner_gradient);
}

// Both products have R rows: that way round a GEMM with few rows is several times faster than one with few columns.
void FusedLinear::AddLoraGradients(const at::Tensor& x, const at::Tensor& y_gradient,
                                   const at::Tensor& inner_gradient) const {
  const at::Tensor inner = at::mm(x, stacked_a_.t());           // (n, R)
  const at::Tensor a_gradient = at::mm(inner_gradient.t(), x);  // (R, in)
  const at::Tensor b_gradient = at::mm(inner.t(), y_gradient);  // (R, out), transposed, without scale
  int64_t first_rank = 0;
  for (const LinearPart& part : parts) {
    if (!part.lora) continue;
    const int64_t rank = part.lora->a.size(0);
    part.lora->a_gradient.add_(a_gradient.narrow(0, first_rank, rank));
    part.lora->b_gradient.add_(b_gradient.narrow(0, first_rank, rank).narrow(1, part.first_output, part.outputs).t(),
                               part.lora->scale);
    first_rank += rank;
  }
}

// Every module has its own mask, so nothing is shared between the parts.
void FusedLinear::ForwardWithDropout(const Pass& pass, const at::Tensor& x, int64_t first_row,
                                     const at::Tensor& y) const {
  const at::Tensor kept = at::empty_like(x);
  for (const LinearPart& part : parts) {
    if (!part.lora) continue;
    ApplyDropout(*pass.dropout, {pass.layer, part.module_index, first_row}, x, kept);
    y.narrow(1, part.first_output, part.outputs)
        .addmm_(at::mm(kept, part.lora->a.t()), part.lora->b.t(), 1, part.lora->scale);
  }
}

void FusedLinear::BackwardWithDropout(const Pass& pass, const at::Tensor& x, const at::Tensor& y_gradient,
                                      int64_t first_row, const at::Tensor& x_gradient) const {
  const at::Tensor kept = at::empty_like(x);
  for (const LinearPart& part : parts) {
    if (!part.lora) continue;
    const DropoutSite site{pass.layer, part.module_index, first_row};
    const at::Tensor part_gradient = y_gradient.narrow(1, part.first_output, part.outputs);
    const at::Tensor inner_gradient = at::mm(part_gradient, part.lora->b).mul_(part.lora->scale);
    ApplyDropout(*pass.dropout, site, x, kept);
    part.lora->a_gradient.add_(at::mm(inner_gradient.t(), kept));
    const at::Tensor inner = at::mm(kept, part.lora->a.t());
    part.lora->b_gradient.add_(at::mm(inner.t(), part_gradient).t(), part.lora->scale);
    if (!x_gradient.defined()) continue;
    const at::Tensor masked = at::mm(inner_gradient, part.lora->a);
    ApplyDropout(*pass.dropout, site, masked, masked);
    x_gradient.add_(masked);
  }
}

}  // namespace longspan::trainer
