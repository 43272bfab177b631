// A weight matrix in 4 bits (kernels/nf4): how the q-methods keep the linear layers of the base.
//
// Values that are cheap to copy: copies share their tensors, which nobody writes to.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>

namespace longspan::trainer {

struct Nf4Weight {
  int64_t outputs = 0, inputs = 0;
  at::Tensor codes;         // uint8, two values a byte, rows one after another
  at::Tensor scale_codes;   // uint8, of each block of 64 values
  at::Tensor scale_maxima;  // fp32, of each block of 256 scales
  float scale_mean = 0;

  int64_t bytes() const { return codes.numel() + scale_codes.numel() + 4 * scale_maxima.numel() + 4; }
};

// weight (outputs, inputs), any floating dtype. UserError naming `name` when a value is not finite. The mean is
// LibTorch's, whose last bit may depend on the number of threads.
Nf4Weight QuantizeNf4(const at::Tensor& weight, const std::string& name);

// The same on a device.
Nf4Weight OnDevice(Nf4Weight weight, at::Device device);

// out (outputs, inputs), contiguous, fp32 or bf16, on the weight's device: overwritten.
void DequantizeNf4(const Nf4Weight& weight, const at::Tensor& out);

}  // namespace longspan::trainer
