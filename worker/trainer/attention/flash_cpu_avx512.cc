// Compiled for AVX-512; reached only on machines that have it. Includes nothing with inline functions of its own.
#include <immintrin.h>

#include "worker/trainer/attention/flash_cpu_kernel.h"

namespace longspan::trainer {
namespace {

struct Avx512 {
  using Vector = __m512;
  static constexpr int kWidth = 16;
  static constexpr int kVectors = 4;  // 24 sums, 4 loaded vectors and a factor, of 32 registers

  static Vector Zero() { return _mm512_setzero_ps(); }
  static Vector Set(float value) { return _mm512_set1_ps(value); }
  static Vector Load(const float* from) { return _mm512_loadu_ps(from); }
  static void Store(float* to, Vector values) { _mm512_storeu_ps(to, values); }
  static __mmask16 First(int64_t count) { return static_cast<__mmask16>((1u << count) - 1u); }
  static Vector LoadFirst(const float* from, int64_t count) { return _mm512_maskz_loadu_ps(First(count), from); }
  static Vector KeepFirst(Vector values, int64_t count, Vector others) {
    return _mm512_mask_blend_ps(First(count), others, values);
  }
  static Vector Add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static Vector Subtract(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
  static Vector Multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
  static Vector MultiplyAdd(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static Vector Max(Vector a, Vector b) { return _mm512_max_ps(a, b); }
  static float HighestOf(Vector a) { return _mm512_reduce_max_ps(a); }
  static float SumOf(Vector a) { return _mm512_reduce_add_ps(a); }

  // The polynomial is Cephes' expf. 0 below -104, NaN stays NaN (the second operand of max wins).
  static Vector Exp(Vector x) {
    x = _mm512_max_ps(Set(-104.0f), x);
    const Vector n = _mm512_roundscale_ps(_mm512_mul_ps(x, Set(kLog2OfE)), _MM_FROUND_TO_NEAREST_INT);
    const Vector r = _mm512_fnmadd_ps(n, Set(kLn2Low), _mm512_fnmadd_ps(n, Set(kLn2High), x));
    return _mm512_scalef_ps(ExpNearZero<Avx512>(r), n);
  }

  static void Transpose(Vector (&rows)[16]) {
    Vector pairs[16];
    for (int i = 0; i < 16; i += 4) {  // within each quarter: 2 by 2, then 4 by 4
      const Vector a = _mm512_unpacklo_ps(rows[i], rows[i + 1]), b = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
      const Vector c = _mm512_unpacklo_ps(rows[i + 2], rows[i + 3]), d = _mm512_unpackhi_ps(rows[i + 2], rows[i + 3]);
      pairs[i] = _mm512_shuffle_ps(a, c, 0x44);
      pairs[i + 1] = _mm512_shuffle_ps(a, c, 0xee);
      pairs[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
      pairs[i + 3] = _mm512_shuffle_ps(b, d, 0xee);
    }
    for (int i = 0; i < 4; ++i) {  // then the quarters
      const Vector a = _mm512_shuffle_f32x4(pairs[i], pairs[i + 4], 0x88);
      const Vector b = _mm512_shuffle_f32x4(pairs[i], pairs[i + 4], 0xdd);
      const Vector c = _mm512_shuffle_f32x4(pairs[i + 8], pairs[i + 12], 0x88);
      const Vector d = _mm512_shuffle_f32x4(pairs[i + 8], pairs[i + 12], 0xdd);
      rows[i] = _mm512_shuffle_f32x4(a, c, 0x88);
      rows[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
      rows[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
      rows[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
  }
};

}  // namespace

const FlashKernels kFlashAvx512 = {"AVX-512", Forward<Avx512>, Backward<Avx512>};

}  // namespace longspan::trainer
