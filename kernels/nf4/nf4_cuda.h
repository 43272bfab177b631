// nf4.h's Dequantize on device memory, into fp32 or bf16: the reference's fp32 values bit for bit, for bf16 rounded
// once.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/common/element_type.h"
#include "kernels/nf4/nf4.h"

namespace longspan::kernels::nf4 {

struct DequantizeArguments {
  ElementType type = ElementType::kBfloat16;  // of out
  const uint8_t* codes = nullptr;             // of the whole tensor, as the two below
  const uint8_t* scale_codes = nullptr;
  const float* scale_maxima = nullptr;
  float mean = 0;
  int64_t begin = 0, n = 0;  // values of the tensor; begin a multiple of 64
  void* out = nullptr;       // (n), aligned to 16 bytes
};

// Work is queued on `stream`; arguments that do not fit give cudaErrorInvalidValue and queue nothing.
cudaError_t Dequantize(const DequantizeArguments& arguments, cudaStream_t stream);

}  // namespace longspan::kernels::nf4
