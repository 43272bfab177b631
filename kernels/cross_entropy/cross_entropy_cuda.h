// cross_entropy.h on device memory. Work is queued on `stream`; arguments that do not fit give cudaErrorInvalidValue
// and queue nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cross_entropy/cross_entropy.h"

namespace longspan::kernels::cross_entropy {

cudaError_t Loss(const Arguments& arguments, cudaStream_t stream);

}  // namespace longspan::kernels::cross_entropy
