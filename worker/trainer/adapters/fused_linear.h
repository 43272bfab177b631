// Several linear layers that read the same input, as one GEMM, each with LoRA or without, frozen or trained.
//
//   y = x Wᵀ + b + s (x Aᵀ) Bᵀ      W (out, in) frozen, b (out) where the family has one, A (r, in), B (out, r); r and
//   s
//                                   are each part's own
//
// q, k and v are one of these, gate and up another. Products with A and B alone are skinny and crawl on CPU, so
//  - in fp32 without dropout, W + s B A is built once per pass in a buffer of the arena (rank/rows of the cost of the
//    product) and the skinny products disappear from forward and dX. In bf16 that would round the update away, so
//    there they stay;
//  - on a GPU those that sum into a few ranks are kernels of ours (lora_products.h);
//  - for the gradients, the A of all parts are stacked and their B are the blocks of one block-diagonal matrix.
// Gradients are fp32 and added to. No dW for a frozen weight.
//
// A layer whose weight does not stand in memory in the compute dtype (4 bits, or only in the base's file) has no
// `weight`: each pass makes it in that buffer, from what its parts have. One that ranks share has its weight
// `gathered`, while the layer computes: LoRA goes into that, once, and no buffer is needed.
//
// A frozen weight may stand in 8 bits (quantized/fp8_weight.h). Products with it are in 8 bits too; LoRA, in bf16,
// stays apart.
//
// Every intermediate value is a slot of the arena (memory/arena.h). Not thread-safe. Legend: n rows (tokens), R the sum
// of the ranks of the parts.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "worker/trainer/adapters/dropout.h"
#include "worker/trainer/memory/arena.h"
#include "worker/trainer/quantized/fp8_weight.h"
#include "worker/trainer/quantized/nf4_weight.h"

namespace longspan::trainer {

struct LoraFactors {
  at::Tensor a, b;                    // (r, in), (out, r)
  at::Tensor a_gradient, b_gradient;  // fp32
  double scale = 0;                   // alpha / r, or alpha / sqrt(r)
};

// A weight of which each rank holds a part, while it is whole here (model/sharded_weights.h).
struct GatheredWeight {
  at::Tensor weight;    // (out, in); undefined while it is not
  bool folded = false;  // holds W + s·B·A
  int64_t inputs = 0;
};

// One of the fused linear layers: rows [first_output, first_output + outputs) of the weight.
struct LinearPart {
  std::string name;          // "model.layers.0.self_attn.q_proj"
  std::string module;        // "q_proj"
  int64_t module_index = 0;  // in ModelFamily::LinearPaths, for the dropout mask
  int64_t first_output = 0;
  int64_t outputs = 0;
  std::optional<LoraFactors> lora;
  // One of the two where FusedLinear::weight is undefined.
  std::optional<Nf4Weight> quantized;
  at::Tensor stored;  // (outputs, in), any floating dtype
};

// gradient (fp32) += leftᵀ · right. left (n, a), right (n, b), gradient (a, b).
void AddProduct(const at::Tensor& left, const at::Tensor& right, const at::Tensor& gradient, Arena& arena);

class FusedLinear {
 public:
  // The values of one pass over a layer: what Forward and Backward multiply with. Valid until the buffer of the weight
  // is used again.
  struct Pass {
    Arena* arena = nullptr;
    at::Tensor weight;                     // W, or W + s·B·A
    const Fp8Weight* fp8 = nullptr;        // in the place of `weight`
    bool low_rank = false;                 // LoRA is not in `weight`
    const DropoutPass* dropout = nullptr;  // set when it is active
    int64_t layer = 0;
  };

  at::Tensor weight;                   // (out, in) in `dtype`, or undefined
  GatheredWeight* gathered = nullptr;  // in the place of `weight` where ranks share it; its owner outlives the layer
  std::optional<Fp8Weight> fp8;        // in the place of `weight` where products with it are in 8 bits
  at::ScalarType dtype = at::kFloat;   // what is computed in
  at::Tensor weight_gradient;          // fp32; undefined when frozen
  at::Tensor bias;                     // (out); undefined when the layers have none
  at::Tensor bias_gradient;            // fp32; undefined when frozen
  std::vector<LinearPart> parts;

  int64_t outputs() const { return parts.back().first_output + parts.back().outputs; }
  int64_t inputs() const;

  bool HasLora() const;
  // Rebuilds what is derived from A and B; call when they changed.
  void Refresh();
  struct PassOptions {
    bool adapted = true;                   // with LoRA
    const DropoutPass* dropout = nullptr;  // used where it is active
    int64_t layer = 0;
    Slot weight_slot = Slot::kScratchQueryKeyValue;  // for the pass's weight where that is not the standing one
    bool fold = true;                                // false: LoRA stays apart, which pays for few rows
  };
  Pass Begin(const PassOptions& options, Arena& arena) const;

  // y (n, out) = the layers of x (n, in), which starts at row `first_row` of the batch.
  void Forward(const Pass& pass, const at::Tensor& x, int64_t first_row, const at::Tensor& y) const;
  // x_gradient (n, in) is overwritten, or left alone when undefined; gradients of what trains are added to.
  void Backward(const Pass& pass, const at::Tensor& x, const at::Tensor& y_gradient, int64_t first_row,
                const at::Tensor& x_gradient) const;
  // Whether Backward reads x: something here trains.
  bool Trains() const { return weight_gradient.defined() || HasLora(); }

 private:
  void Unpack(const at::Tensor& out) const;
  const at::Tensor& Gathered(bool folds) const;
  void ForwardWithDropout(const Pass& pass, const at::Tensor& x, int64_t first_row, const at::Tensor& y) const;
  void BackwardWithDropout(const Pass& pass, const at::Tensor& x, const at::Tensor& y_gradient, int64_t first_row,
                           const at::Tensor& x_gradient) const;
  void AddLoraGradients(const Pass& pass, const at::Tensor& x, const at::Tensor& y_gradient,
                        const at::Tensor& inner_gradient) const;

  at::Tensor stacked_a_;  // (R, in)
  at::Tensor blocks_b_;   // (out, R), each block times its scale
};

}  // namespace longspan::trainer
