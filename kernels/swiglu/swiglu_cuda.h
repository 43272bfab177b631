// swiglu.h on device memory. Work is queued on `stream`; arguments that do not fit give cudaErrorInvalidValue and queue
// nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/swiglu/swiglu.h"

namespace longspan::kernels::swiglu {

cudaError_t Forward(const ForwardArguments& arguments, cudaStream_t stream);
cudaError_t Backward(const BackwardArguments& arguments, cudaStream_t stream);

}  // namespace longspan::kernels::swiglu
