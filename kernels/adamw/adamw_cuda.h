// adamw.h on device memory. Work is queued on `stream`; arguments that do not fit give cudaErrorInvalidValue and queue
// nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/adamw/adamw.h"

namespace longspan::kernels::adamw {

// `tensors`: `count` of them in device memory; `elements`: of the largest. All of `update` is read at the call.
cudaError_t Step(const Update& update, const Tensor* tensors, int64_t count, int64_t elements, cudaStream_t stream);

}  // namespace longspan::kernels::adamw
