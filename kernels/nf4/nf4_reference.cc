// Plain C++, used on CPU.
//
// Bit for bit bitsandbytes 0.50: a block is multiplied by the reciprocal of its scale, but the last block of a tensor,
// where it is not whole, is divided by it; a level is found by the number of midpoints below a value, midpoints and all
// else in fp32. No product and sum may be contracted here (-ffp-contract=off).
#include <algorithm>
#include <cmath>

#include "kernels/nf4/nf4.h"

namespace longspan::kernels::nf4 {
namespace {

constexpr float kLevels[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

constexpr float kScaleLevels[256] = {
#include "kernels/nf4/scale_levels.inc"
};

constexpr float kSmallestScale = 1e-38f;  // what a block of zeros is divided by

// Midpoints between levels, rising.
template <int count>
struct Midpoints {
  float values[count - 1];
  constexpr explicit Midpoints(const float (&levels)[count]) : values{} {
    for (int i = 0; i + 1 < count; ++i) values[i] = (levels[i] + levels[i + 1]) / 2;
  }
  // Index of the level that is nearest to x: the number of midpoints below it.
  uint8_t Nearest(float x) const {
    return static_cast<uint8_t>(std::lower_bound(values, values + count - 1, x) - values);
  }
};

constexpr Midpoints<16> kMidpoints(kLevels);
constexpr Midpoints<256> kScaleMidpoints(kScaleLevels);
constexpr int32_t kZeroCode = 7;

// How one block is scaled. `whole`: it has as many values as blocks have.
struct BlockScale {
  float scale;   // as it is stored
  float factor;  // its reciprocal, for a whole block
  bool whole;

  BlockScale(float maximum, bool whole)
      : scale(whole ? maximum : std::max(maximum, kSmallestScale)),
        factor(1.0f / std::max(maximum, kSmallestScale)),
        whole(whole) {}
  float Apply(float x) const { return std::clamp(whole ? x * factor : x / scale, -1.0f, 1.0f); }
};

// Not finite when a value is not.
float LargestMagnitude(const float* x, int64_t n) {
  float largest = 0, nothing = 0;
  for (int64_t i = 0; i < n; ++i) {
    largest = std::max(largest, std::fabs(x[i]));
    nothing += x[i] * 0.0f;  // NaN from infinity and from NaN, which the maximum loses
  }
  return largest + nothing;
}

// The codes of at most a block of scaled values: for each the number of midpoints below it. Loops over the values
// innermost, so that the compiler makes vectors of them.
void NearestLevels(const float* scaled, int64_t count, int32_t* codes) {
  std::fill_n(codes, count, 0);
  for (const float midpoint : kMidpoints.values) {
    for (int64_t i = 0; i < count; ++i) codes[i] += midpoint < scaled[i] ? 1 : 0;
  }
}

}  // namespace

const float* Levels() { return kLevels; }
const float* ScaleLevels() { return kScaleLevels; }

bool Quantize(const float* x, int64_t n, uint8_t* codes, float* scales) {
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t count = std::min(kBlock, n - begin);
    const float maximum = LargestMagnitude(x + begin, count);
    if (!std::isfinite(maximum)) return false;
    const BlockScale block(maximum, count == kBlock);
    scales[begin / kBlock] = block.scale;
    float scaled[kBlock];
    int32_t levels[kBlock + 1];
    for (int64_t i = 0; i < count; ++i) scaled[i] = block.Apply(x[begin + i]);
    NearestLevels(scaled, count, levels);
    levels[count] = kZeroCode;  // of the half byte that an odd tensor leaves
    for (int64_t i = 0; i < count; i += 2) {
      codes[(begin + i) / 2] = static_cast<uint8_t>(levels[i] << 4 | levels[i + 1]);
    }
  }
  return true;
}

void QuantizeScales(const float* scales, int64_t blocks, float mean, uint8_t* scale_codes, float* scale_maxima) {
  for (int64_t begin = 0; begin < blocks; begin += kScaleBlock) {
    const int64_t count = std::min(kScaleBlock, blocks - begin);
    float maximum = 0;
    for (int64_t i = 0; i < count; ++i) maximum = std::max(maximum, std::fabs(scales[begin + i] - mean));
    const BlockScale block(maximum, count == kScaleBlock);
    scale_maxima[begin / kScaleBlock] = block.scale;
    for (int64_t i = 0; i < count; ++i) {
      scale_codes[begin + i] = kScaleMidpoints.Nearest(block.Apply(scales[begin + i] - mean));
    }
  }
}

void Dequantize(const uint8_t* codes, const uint8_t* scale_codes, const float* scale_maxima, float mean, int64_t begin,
                int64_t n, float* out) {
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t block = (begin + at) / kBlock;
    const float scale = kScaleLevels[scale_codes[block]] * scale_maxima[block / kScaleBlock] + mean;
    float values[16];
    for (int level = 0; level < 16; ++level) values[level] = kLevels[level] * scale;
    const uint8_t* packed = codes + (begin + at) / 2;
    const int64_t count = std::min(kBlock, n - at);
    for (int64_t i = 0; i + 1 < count; i += 2) {
      out[at + i] = values[packed[i / 2] >> 4];
      out[at + i + 1] = values[packed[i / 2] & 15];
    }
    if (count % 2 != 0) out[at + count - 1] = values[packed[count / 2] >> 4];
  }
}

}  // namespace longspan::kernels::nf4
