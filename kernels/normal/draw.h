// One number of normal.h, for the host and for CUDA. No product is fused with a sum, which would round differently: on
// the device by intrinsics, on the host by -ffp-contract=off, without which nobody may include this.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/common/split_mix.h"

namespace longspan::kernels::normal {

// a·b + c, rounded twice.
LONGSPAN_HOST_DEVICE inline double MultiplyAdd(double a, double b, double c) {
#ifdef __CUDA_ARCH__
  return __dadd_rn(__dmul_rn(a, b), c);
#else
  return a * b + c;
#endif
}

// Coefficients from the highest power down.
template <int size>
LONGSPAN_HOST_DEVICE inline double Polynomial(const double (&coefficients)[size], double x) {
  double value = coefficients[0];
  for (int i = 1; i < size; ++i) value = MultiplyAdd(value, x, coefficients[i]);
  return value;
}

LONGSPAN_HOST_DEVICE inline uint64_t BitsOf(double value) {
#ifdef __CUDA_ARCH__
  return static_cast<uint64_t>(__double_as_longlong(value));
#else
  return std::bit_cast<uint64_t>(value);
#endif
}
LONGSPAN_HOST_DEVICE inline double DoubleOf(uint64_t bits) {
#ifdef __CUDA_ARCH__
  return __longlong_as_double(static_cast<long long>(bits));
#else
  return std::bit_cast<double>(bits);
#endif
}

// The natural logarithm of a normal number above 0: x = 2^e·m with m in [0.7, 1.42), log m = 2·artanh((m - 1)/(m + 1))
// by its series, whose next power is below 2^-60.
LONGSPAN_HOST_DEVICE inline double Logarithm(double x) {
  constexpr double kLogTwo = 0.6931471805599453;
  constexpr double kSeries[] = {1.0 / 23, 1.0 / 21, 1.0 / 19, 1.0 / 17, 1.0 / 15, 1.0 / 13,
                                1.0 / 11, 1.0 / 9,  1.0 / 7,  1.0 / 5,  1.0 / 3,  1.0};
  const uint64_t bits = BitsOf(x);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  double mantissa = DoubleOf((bits & 0xfffffffffffffu) | 0x3ff0000000000000u);
  if (mantissa > 1.4142135623730951) {
    mantissa = mantissa / 2;
    ++exponent;
  }
  const double s = (mantissa - 1) / (mantissa + 1);
  return MultiplyAdd(2 * s, Polynomial(kSeries, s * s), exponent * kLogTwo);
}

// AS241, PPND16.
LONGSPAN_HOST_DEVICE inline double Quantile(double p) {
  constexpr double kMiddle[] = {2509.0809287301226727, 33430.575583588128105, 67265.770927008700853,
                                45921.953931549871457, 13731.693765509461125, 1971.5909503065514427,
                                133.14166789178437745, 3.3871328727963666080};
  constexpr double kMiddleBelow[] = {
      5226.4952788528545610, 28729.085735721942674, 39307.895800092710610, 21213.794301586595867,
      5394.1960214247511077, 687.18700749205790830, 42.313330701600911252, 1.0};
  constexpr double kNear[] = {7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1,
                              1.27045825245236838258,    3.64784832476320460504,    5.76949722146069140550,
                              4.63033784615654529590,    1.42343711074968357734};
  constexpr double kNearBelow[] = {
      1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
      6.89767334985100004550e-1, 1.67638483018380384940,    2.05319162663775882187,    1.0};
  constexpr double kFar[] = {2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3,
                             2.65321895265761230930e-2, 2.96560571828504891230e-1, 1.78482653991729133580,
                             5.46378491116411436990,    6.65790464350110377720};
  constexpr double kFarBelow[] = {
      2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
      1.48753612908506148525e-2,  1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0};
  const double q = p - 0.5;
  if (std::fabs(q) <= 0.425) {
    const double r = MultiplyAdd(-q, q, 0.180625);
    return Polynomial(kMiddle, r) * q / Polynomial(kMiddleBelow, r);
  }
  const double distance = std::sqrt(-Logarithm(q <= 0 ? p : 1 - p));
  const double r = distance <= 5 ? distance - 1.6 : distance - 5;
  const double z =
      distance <= 5 ? Polynomial(kNear, r) / Polynomial(kNearBelow, r) : Polynomial(kFar, r) / Polynomial(kFarBelow, r);
  return q < 0 ? -z : z;
}

LONGSPAN_HOST_DEVICE inline float Value(uint64_t key, int64_t element, double deviation) {
  const uint64_t drawn = Mix(key ^ static_cast<uint64_t>(element)) >> 12;
  return static_cast<float>(deviation * Quantile((static_cast<double>(drawn) + 0.5) * 0x1p-52));
}

}  // namespace longspan::kernels::normal
