// lora_products.h on device memory. Work is queued on `stream`; arguments that do not fit give cudaErrorInvalidValue
// and queue nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/lora_products/lora_products.h"

namespace longspan::kernels::lora_products {

cudaError_t Project(const ProjectArguments& arguments, cudaStream_t stream);
cudaError_t Outer(const OuterArguments& arguments, cudaStream_t stream);
cudaError_t AddOuter(const AddOuterArguments& arguments, cudaStream_t stream);

}  // namespace longspan::kernels::lora_products
