// rope.h on device memory. Work is queued on `stream`; arguments that do not fit give cudaErrorInvalidValue and queue
// nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/rope/rope.h"

namespace longspan::kernels::rope {

cudaError_t Rotate(const Arguments& arguments, cudaStream_t stream);

}  // namespace longspan::kernels::rope
