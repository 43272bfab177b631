// 4-bit NormalFloat with double quantisation (QLoRA, arXiv 2305.14314, section 3), with bitsandbytes' arithmetic.
//
// A tensor is taken flat, in blocks of 64 values. A value is stored as the 4-bit code of the nearest of 16 levels to
// value / scale, scale being its block's largest magnitude. The scales, less their mean, are stored the same way once
// more: in blocks of 256, as the 8-bit code of the nearest of 256 levels, with one fp32 scale of each such block. So a
// value takes 4 + 8/64 + 32/(64·256) = 4.127 bits.
//
//   codes         uint8  (CodeBytes(n))    two values a byte, the first in the high half; an odd last half is level 0.0
//   scales        fp32   (Blocks(n))       of each block
//   scale_codes   uint8  (Blocks(n))
//   scale_maxima  fp32   (ScaleBlocks(Blocks(n)))
//   mean          fp32, of the scales
//
// Of two levels that are equally near the lower one is taken. Deterministic: every output depends on its own block
// alone, so a caller may hand over any run of whole blocks to any thread. No allocation. Pointers need their type's
// alignment only; outputs are overwritten and may not overlap inputs. Host memory.
#pragma once

#include <cstdint>

namespace longspan::kernels::nf4 {

inline constexpr int64_t kBlock = 64;        // values of a scale
inline constexpr int64_t kScaleBlock = 256;  // scales of a scale_maximum

inline int64_t Blocks(int64_t values) { return (values + kBlock - 1) / kBlock; }
inline int64_t CodeBytes(int64_t values) { return (values + 1) / 2; }
inline int64_t ScaleBlocks(int64_t scales) { return (scales + kScaleBlock - 1) / kScaleBlock; }

// The levels, rising: 16 from -1 to 1, and 256 from -0.993 to 1 ("dynamic map", arXiv 1511.04561).
const float* Levels();
const float* ScaleLevels();

// x (n, any n >= 0) -> codes, scales. False when a value is not finite: outputs are then undefined. A run of a longer
// tensor must begin at a whole block, and end at one unless it ends the tensor.
[[nodiscard]] bool Quantize(const float* x, int64_t n, uint8_t* codes, float* scales);

// scales (blocks), their mean -> scale_codes, scale_maxima.
void QuantizeScales(const float* scales, int64_t blocks, float mean, uint8_t* scale_codes, float* scale_maxima);

// Values [begin, begin + n) of a tensor whose whole codes, scale_codes and scale_maxima are given -> out (n).
// begin must be a multiple of 64.
void Dequantize(const uint8_t* codes, const uint8_t* scale_codes, const float* scale_maxima, float mean, int64_t begin,
                int64_t n, float* out);

}  // namespace longspan::kernels::nf4
