// embedding_gradient.h on device memory. Work is queued on `stream`; arguments that do not fit give
// cudaErrorInvalidValue and queue nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/embedding_gradient/embedding_gradient.h"

namespace longspan::kernels::embedding_gradient {

cudaError_t Add(const Arguments& arguments, cudaStream_t stream);

}  // namespace longspan::kernels::embedding_gradient
