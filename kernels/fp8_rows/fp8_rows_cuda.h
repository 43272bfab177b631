// fp8_rows.h on device memory. Work is queued on `stream`; arguments that do not fit give cudaErrorInvalidValue and
// queue nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/fp8_rows/fp8_rows.h"

namespace longspan::kernels::fp8_rows {

cudaError_t Quantize(const QuantizeArguments& arguments, cudaStream_t stream);

}  // namespace longspan::kernels::fp8_rows
