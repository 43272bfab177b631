// tensor_sums.h on device memory. Work is queued on `stream`; arguments that do not fit give cudaErrorInvalidValue and
// queue nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/tensor_sums/tensor_sums.h"

namespace longspan::kernels::tensor_sums {

cudaError_t AddScaled(const AddScaledArguments& arguments, cudaStream_t stream);
cudaError_t ColumnSums(const ColumnSumsArguments& arguments, cudaStream_t stream);
// spans: `count` of them in device memory. work: kNormParts fp64 values. result: one fp64 value, on the device.
cudaError_t SquaredNorm(const Span* spans, int64_t count, double* work, double* result, cudaStream_t stream);

}  // namespace longspan::kernels::tensor_sums
