// Compiled for AVX2 and FMA; reached only on machines that have them. Includes nothing with inline functions of its
// own.
#include <immintrin.h>

#include "worker/trainer/attention/flash_cpu_kernel.h"

namespace longspan::trainer {
namespace {

struct Avx2 {
  using Vector = __m256;
  static constexpr int kWidth = 8;
  static constexpr int kVectors = 2;  // 12 sums, 2 loaded vectors and a factor, of 16 registers

  static Vector Zero() { return _mm256_setzero_ps(); }
  static Vector Set(float value) { return _mm256_set1_ps(value); }
  static Vector Load(const float* from) { return _mm256_loadu_ps(from); }
  static void Store(float* to, Vector values) { _mm256_storeu_ps(to, values); }
  static __m256i First(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Vector LoadFirst(const float* from, int64_t count) { return _mm256_maskload_ps(from, First(count)); }
  static Vector KeepFirst(Vector values, int64_t count, Vector others) {
    return _mm256_blendv_ps(others, values, _mm256_castsi256_ps(First(count)));
  }
  static Vector Add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector Subtract(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
  static Vector Multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
  static Vector MultiplyAdd(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  static Vector Max(Vector a, Vector b) { return _mm256_max_ps(a, b); }
  static float HighestOf(Vector a) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
  }
  static float SumOf(Vector a) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
  }

  // The polynomial is Cephes' expf. 0 below the smallest normal number, infinite above the largest; NaN stays NaN (the
  // second operand of max and min wins).
  static Vector Exp(Vector x) {
    const Vector tiny = _mm256_cmp_ps(x, Set(-87.33654f), _CMP_LT_OQ);
    x = _mm256_min_ps(Set(89.0f), _mm256_max_ps(Set(-88.0f), x));
    const Vector n = _mm256_round_ps(_mm256_mul_ps(x, Set(kLog2OfE)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const Vector r = _mm256_fnmadd_ps(n, Set(kLn2Low), _mm256_fnmadd_ps(n, Set(kLn2High), x));
    const __m256i half = _mm256_srai_epi32(_mm256_cvtps_epi32(n), 1);  // 2^n as a product: n + 127 may be no exponent
    const __m256i other_half = _mm256_sub_epi32(_mm256_cvtps_epi32(n), half);
    const Vector y = _mm256_mul_ps(_mm256_mul_ps(ExpNearZero<Avx2>(r), PowerOfTwo(half)), PowerOfTwo(other_half));
    return _mm256_andnot_ps(tiny, y);
  }
  static Vector PowerOfTwo(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  }

  static void Transpose(Vector (&rows)[8]) {
    Vector fours[8];
    for (int i = 0; i < 8; i += 4) {  // within each half: 2 by 2, then 4 by 4
      const Vector a = _mm256_unpacklo_ps(rows[i], rows[i + 1]), b = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
      const Vector c = _mm256_unpacklo_ps(rows[i + 2], rows[i + 3]), d = _mm256_unpackhi_ps(rows[i + 2], rows[i + 3]);
      fours[i] = _mm256_shuffle_ps(a, c, 0x44);
      fours[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
      fours[i + 2] = _mm256_shuffle_ps(b, d, 0x44);
      fours[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
    }
    for (int i = 0; i < 4; ++i) {  // then the halves
      rows[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
      rows[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
  }
};

}  // namespace

const FlashKernels kFlashAvx2 = {"AVX2", Forward<Avx2>, Backward<Avx2>};

}  // namespace longspan::trainer
