// The build without CUDA. Nothing comes here: LibTorch has no tensors on a GPU without its CUDA library.
#include "worker/trainer/gpu/gpu_kernels.h"

namespace longspan::trainer::gpu {
namespace {

[[noreturn]] void NoCuda() { TORCH_CHECK(false, "this program was built without CUDA"); }

}  // namespace

void HeadRmsNorm(const at::Tensor&, const at::Tensor&, double, const at::Tensor&, const at::Tensor&) { NoCuda(); }
void HeadRmsNormBackward(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                         const NormGradients&) {
  NoCuda();
}
void LayerNorm(const at::Tensor&, const at::Tensor&, const at::Tensor&, double, const at::Tensor&, const at::Tensor&) {
  NoCuda();
}
void LayerNormBackward(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                       const NormGradients&) {
  NoCuda();
}
void AddNorm(const at::Tensor&, const at::Tensor&, const NormWeights&, const at::Tensor&, const at::Tensor&) {
  NoCuda();
}
void ApplyRotation(const at::Tensor&, const RotationTables&, bool) { NoCuda(); }
void SiluProduct(const at::Tensor&, const at::Tensor&) { NoCuda(); }
void SiluProductBackward(const at::Tensor&, const at::Tensor&, const at::Tensor&) { NoCuda(); }
void CrossEntropy(const at::Tensor&, const at::Tensor&, bool, const at::Tensor&) { NoCuda(); }
void AddScaled(const at::Tensor&, double, const at::Tensor&) { NoCuda(); }
void AddColumnSums(const at::Tensor&, const at::Tensor&, const at::Tensor&) { NoCuda(); }
void AddRows(const at::Tensor&, const at::Tensor&, const at::Tensor&) { NoCuda(); }
double SumOfSquares(const std::vector<at::Tensor>&) { NoCuda(); }
void ApplyDropout(const DropoutMask&, const at::Tensor&, const at::Tensor&) { NoCuda(); }
void DrawNormal(uint64_t, double, const at::Tensor&) { NoCuda(); }
void DequantizeNf4(const at::Tensor&, const at::Tensor&, const at::Tensor&, float, const at::Tensor&) { NoCuda(); }
void ProjectRows(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&) { NoCuda(); }
void OuterSums(const at::Tensor&, const at::Tensor&, const at::Tensor&) { NoCuda(); }
void AddOuterSums(const at::Tensor&, int64_t, double, const at::Tensor&) { NoCuda(); }
void QuantizeFp8Rows(const at::Tensor&, const at::Tensor&, const at::Tensor&) { NoCuda(); }
void StepAdamw(const std::vector<AdamwTensor>&, const AdamwStep&) { NoCuda(); }

}  // namespace longspan::trainer::gpu
