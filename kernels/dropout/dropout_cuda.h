// dropout.h on device memory. Work is queued on `stream`; arguments that do not fit give cudaErrorInvalidValue and
// queue nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/dropout/dropout.h"

namespace longspan::kernels::dropout {

cudaError_t Apply(const Arguments& arguments, cudaStream_t stream);

}  // namespace longspan::kernels::dropout
