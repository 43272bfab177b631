// normal.h on device memory. Work is queued on `stream`; arguments that do not fit give cudaErrorInvalidValue and queue
// nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/normal/normal.h"

namespace longspan::kernels::normal {

cudaError_t Draw(const Arguments& arguments, cudaStream_t stream);

}  // namespace longspan::kernels::normal
