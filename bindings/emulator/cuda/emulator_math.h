// CUDA's math library. In float, results are off by the maximum errors that the CUDA C++ Programming Guide gives (they
// depend on the Emulator's `approx`); what is not named here is exact or correctly rounded on a GPU, too. In double
// they are the host's, which no `approx` moves.
#pragma once
#include "cuda_runtime.h"

// A float function by a name of the C library: its exact result in double, and its error in units in the last place.
#define EMULATOR_FLOAT_1(name, ulps, exact)        \
  __forceinline__ float emulator_##name(float a) { \
    const double x = a;                            \
    return emulator_library_result(exact, ulps);   \
  }
#define EMULATOR_FLOAT_2(name, ulps, exact)                 \
  __forceinline__ float emulator_##name(float a, float b) { \
    const double x = a, y = b;                              \
    return emulator_library_result(exact, ulps);            \
  }
constexpr double kEmulatorPi = 3.14159265358979323846;
// sin and cos of pi x, exact where they are 0 and +-1.
__forceinline__ double emulator_exact_sinpi(double x) {
  const double r = std::fmod(x, 2.0);
  return r == 0 || r == 1 || r == -1 ? std::copysign(0.0, x)
         : r == 0.5 || r == -1.5     ? 1.0
         : r == -0.5 || r == 1.5     ? -1.0
                                     : std::sin(kEmulatorPi * r);
}
__forceinline__ double emulator_exact_cospi(double x) {
  const double r = std::fmod(std::fabs(x), 2.0);
  return r == 0.5 || r == 1.5 ? 0.0 : std::cos(kEmulatorPi * r);
}
__forceinline__ float emulator_at_most_1(float y) { return y > 1.0f ? 1.0f : y < -1.0f ? -1.0f : y; }

EMULATOR_FLOAT_1(expf, 2, std::exp(x))
EMULATOR_FLOAT_1(exp2f, 2, std::exp2(x))
EMULATOR_FLOAT_1(exp10f, 2, std::pow(10.0, x))
EMULATOR_FLOAT_1(expm1f, 1, std::expm1(x))
EMULATOR_FLOAT_1(logf, 1, std::log(x))
EMULATOR_FLOAT_1(log10f, 2, std::log10(x))
EMULATOR_FLOAT_1(log1pf, 1, std::log1p(x))
__forceinline__ float emulator_sinf(float x) {
  return emulator_at_most_1(emulator_library_result(std::sin(double{x}), 2));
}
__forceinline__ float emulator_cosf(float x) {
  return emulator_at_most_1(emulator_library_result(std::cos(double{x}), 2));
}
EMULATOR_FLOAT_1(tanf, 4, std::tan(x))
EMULATOR_FLOAT_1(sinpif, 1, emulator_exact_sinpi(x))
EMULATOR_FLOAT_1(cospif, 1, emulator_exact_cospi(x))
EMULATOR_FLOAT_1(asinf, 2, std::asin(x))
EMULATOR_FLOAT_1(acosf, 2, std::acos(x))
EMULATOR_FLOAT_1(atanf, 2, std::atan(x))
EMULATOR_FLOAT_2(atan2f, 3, std::atan2(x, y))
EMULATOR_FLOAT_1(sinhf, 3, std::sinh(x))
EMULATOR_FLOAT_1(coshf, 2, std::cosh(x))
EMULATOR_FLOAT_1(asinhf, 3, std::asinh(x))
EMULATOR_FLOAT_1(acoshf, 4, std::acosh(x))
EMULATOR_FLOAT_1(atanhf, 3, std::atanh(x))
EMULATOR_FLOAT_2(powf, 4, std::pow(x, y))
EMULATOR_FLOAT_1(cbrtf, 1, std::cbrt(x))
EMULATOR_FLOAT_1(rcbrtf, 1, 1.0 / std::cbrt(x))
EMULATOR_FLOAT_2(hypotf, 3, std::hypot(x, y))
EMULATOR_FLOAT_2(rhypotf, 2, 1.0 / std::hypot(x, y))
EMULATOR_FLOAT_1(erfcf, 4, std::erfc(x))
EMULATOR_FLOAT_1(normcdff, 5, 0.5 * std::erfc(-x * 0.70710678118654752440))
EMULATOR_FLOAT_1(lgammaf, 6, std::lgamma(x))
EMULATOR_FLOAT_1(tgammaf, 5, std::tgamma(x))
__forceinline__ float emulator_erff(float x) {
  return emulator_at_most_1(emulator_library_result(std::erf(double{x}), 2));
}
__forceinline__ void emulator_sincosf(float x, float* sine, float* cosine) {
  *sine = emulator_sinf(x);
  *cosine = emulator_cosf(x);
}
__forceinline__ void sincospif(float x, float* sine, float* cosine) {
  *sine = emulator_sinpif(x);
  *cosine = emulator_cospif(x);
}
__forceinline__ float norm3df(float a, float b, float c) {
  return emulator_library_result(std::sqrt(double{a} * a + double{b} * b + double{c} * c), 3);
}
__forceinline__ float rnorm3df(float a, float b, float c) {
  return emulator_library_result(1.0 / std::sqrt(double{a} * a + double{b} * b + double{c} * c), 2);
}
__forceinline__ float norm4df(float a, float b, float c, float d) {
  return emulator_library_result(std::sqrt(double{a} * a + double{b} * b + double{c} * c + double{d} * d), 3);
}
#undef EMULATOR_FLOAT_1
#undef EMULATOR_FLOAT_2

// The same by their C++ names, which choose by type: exp(1.0f) is expf(1.0f). Integers count as double.
#define EMULATOR_OVERLOAD_1(name)                                                  \
  __forceinline__ float emulator_##name(float x) { return emulator_##name##f(x); } \
  __forceinline__ double emulator_##name(double x) { return ::name(x); }           \
  template <class T, std::enable_if_t<std::is_integral_v<T>, int> = 0>             \
  __forceinline__ double emulator_##name(T x) {                                    \
    return ::name(static_cast<double>(x));                                         \
  }
#define EMULATOR_OVERLOAD_2(name)                                                                        \
  __forceinline__ float emulator_##name(float x, float y) { return emulator_##name##f(x, y); }           \
  __forceinline__ double emulator_##name(double x, double y) { return ::name(x, y); }                    \
  template <class T, class U, std::enable_if_t<!std::is_same_v<T, U> || std::is_integral_v<T>, int> = 0> \
  __forceinline__ auto emulator_##name(T x, U y) -> decltype(::name(double(x), double(y))) {             \
    return ::name(static_cast<double>(x), static_cast<double>(y));                                       \
  }
__forceinline__ double rsqrt(double x) { return 1.0 / std::sqrt(x); }
__forceinline__ float rsqrt(float x) { return rsqrtf(x); }
__forceinline__ double normcdf(double x) { return 0.5 * std::erfc(-x * 0.70710678118654752440); }
__forceinline__ double sinpi(double x) { return emulator_exact_sinpi(x); }
__forceinline__ double cospi(double x) { return emulator_exact_cospi(x); }
__forceinline__ double rcbrt(double x) { return 1.0 / std::cbrt(x); }
EMULATOR_OVERLOAD_1(exp)
EMULATOR_OVERLOAD_1(exp2)
EMULATOR_OVERLOAD_1(exp10)
EMULATOR_OVERLOAD_1(expm1)
EMULATOR_OVERLOAD_1(log)
EMULATOR_OVERLOAD_1(log2)
EMULATOR_OVERLOAD_1(log10)
EMULATOR_OVERLOAD_1(log1p)
EMULATOR_OVERLOAD_1(sin)
EMULATOR_OVERLOAD_1(cos)
EMULATOR_OVERLOAD_1(tan)
EMULATOR_OVERLOAD_1(asin)
EMULATOR_OVERLOAD_1(acos)
EMULATOR_OVERLOAD_1(atan)
EMULATOR_OVERLOAD_2(atan2)
EMULATOR_OVERLOAD_1(sinh)
EMULATOR_OVERLOAD_1(cosh)
EMULATOR_OVERLOAD_1(tanh)
EMULATOR_OVERLOAD_1(asinh)
EMULATOR_OVERLOAD_1(acosh)
EMULATOR_OVERLOAD_1(atanh)
EMULATOR_OVERLOAD_2(pow)
EMULATOR_OVERLOAD_1(cbrt)
EMULATOR_OVERLOAD_2(hypot)
EMULATOR_OVERLOAD_1(erf)
EMULATOR_OVERLOAD_1(erfc)
EMULATOR_OVERLOAD_1(lgamma)
EMULATOR_OVERLOAD_1(tgamma)
#undef EMULATOR_OVERLOAD_1
#undef EMULATOR_OVERLOAD_2
__forceinline__ void emulator_sincos(double x, double* sine, double* cosine) {
  *sine = std::sin(x), *cosine = std::cos(x);
}
__forceinline__ void emulator_sincos(float x, float* sine, float* cosine) { emulator_sincosf(x, sine, cosine); }

// Fast functions of the special-function units. Some errors are absolute, in part of the range.
__forceinline__ float emulator_within(double exact, bool is_absolute, double log2_error, int ulps) {
  return is_absolute ? emulator_library_result_within(exact, std::exp2(log2_error))
                     : emulator_library_result(exact, ulps);
}
__forceinline__ bool emulator_half_to_2(float x) { return x >= 0.5f && x <= 2.0f; }
__forceinline__ int emulator_clamped(double ulps) { return static_cast<int>(ulps < 1000.0 ? ulps : 1000.0); }
__forceinline__ float __expf(float x) {
  return emulator_library_result(std::exp(double{x}), 2 + emulator_clamped(std::fabs(1.173 * x)));
}
__forceinline__ float __exp10f(float x) {
  return emulator_library_result(std::pow(10.0, x), 2 + emulator_clamped(std::fabs(2.97 * x)));
}
__forceinline__ float __logf(float x) { return emulator_within(std::log(double{x}), emulator_half_to_2(x), -21.41, 3); }
__forceinline__ float __log2f(float x) { return emulator_within(std::log2(double{x}), emulator_half_to_2(x), -22, 2); }
__forceinline__ float __log10f(float x) {
  return emulator_within(std::log10(double{x}), emulator_half_to_2(x), -24, 3);
}
// The guide gives sine's and cosine's errors from -pi to pi only; beyond they grow, here with the argument.
__forceinline__ float __sinf(float x) {
  return emulator_library_result_within(std::sin(double{x}), std::exp2(-21.41) * std::fmax(1.0, std::fabs(x)));
}
__forceinline__ float __cosf(float x) {
  return emulator_library_result_within(std::cos(double{x}), std::exp2(-21.19) * std::fmax(1.0, std::fabs(x)));
}
__forceinline__ void __sincosf(float x, float* sine, float* cosine) { *sine = __sinf(x), *cosine = __cosf(x); }
__forceinline__ float __tanf(float x) { return __sinf(x) * (1.0f / __cosf(x)); }
__forceinline__ float __powf(float x, float y) { return emulator_exp2f(y * __log2f(x)); }
__forceinline__ float __tanhf(float x) { return emulator_tanh_approx(x); }
__forceinline__ float emulator_fast_divide(float x, float y) {
  const float size = std::fabs(y);
  if (size > 0x1p126f && size < __builtin_inff()) return std::isinf(x) ? __builtin_nanf("") : 0.0f * x * y;
  return emulator_library_result(double{x} / y, 2);
}
__forceinline__ float fdividef(float x, float y) { return emulator_fast_divide(x, y); }
__forceinline__ float __frsqrt_rn(float x) { return static_cast<float>(1.0 / std::sqrt(double{x})); }
__forceinline__ float __saturatef(float x) { return x != x ? 0.0f : x < 0.0f ? 0.0f : x > 1.0f ? 1.0f : x; }

// --- one rounding in a chosen direction ---

enum class EmulatorRounding { kNearest, kZero, kUp, kDown };

// `sum` of two doubles with their sum's rounding error: bits that are lost leave the last bit set, so that a second,
// coarser rounding gives what one rounding of the exact value would.
__forceinline__ double emulator_to_odd(double rounded, double error) {
  if (error == 0 || !std::isfinite(rounded)) return rounded;
  auto bits = emulator_bits<int64_t>(rounded);
  if (rounded == 0) return error;
  if ((bits & 1) == 0) bits += (error > 0) == (rounded > 0) ? 1 : -1;
  return emulator_bits<double>(bits);
}
__forceinline__ double emulator_odd_sum(double a, double b) {
  const double sum = a + b, part = sum - a;
  return emulator_to_odd(sum, (a - (sum - part)) + (b - part));
}
__forceinline__ float emulator_rounded(double x, EmulatorRounding how) {
  const float nearest = static_cast<float>(x);
  if (how == EmulatorRounding::kNearest || nearest == x || x != x) return nearest;
  const bool is_up = how == EmulatorRounding::kUp || (how == EmulatorRounding::kZero && x < 0);
  if (is_up) return nearest > x ? nearest : std::nextafter(nearest, __builtin_inff());
  return nearest < x ? nearest : std::nextafter(nearest, -__builtin_inff());
}
__forceinline__ double emulator_odd_quotient(float x, float y) {
  const double q = double{x} / y;
  const double rest = std::fma(-q, double{y}, double{x});
  return emulator_to_odd(q, y > 0 ? rest : -rest);
}
__forceinline__ double emulator_odd_root(float x) {
  const double root = std::sqrt(double{x});
  return emulator_to_odd(root, std::fma(-root, root, double{x}));
}
#define EMULATOR_DIRECTED(suffix, how)                                                                           \
  __forceinline__ float __fadd_##suffix(float x, float y) {                                                      \
    return emulator_rounded(emulator_odd_sum(x, y), EmulatorRounding::how);                                      \
  }                                                                                                              \
  __forceinline__ float __fsub_##suffix(float x, float y) {                                                      \
    return emulator_rounded(emulator_odd_sum(x, -double{y}), EmulatorRounding::how);                             \
  }                                                                                                              \
  __forceinline__ float __fmul_##suffix(float x, float y) {                                                      \
    return emulator_rounded(double{x} * y, EmulatorRounding::how);                                               \
  }                                                                                                              \
  __forceinline__ float __fmaf_##suffix(float x, float y, float z) {                                             \
    return emulator_rounded(emulator_odd_sum(double{x} * y, z), EmulatorRounding::how);                          \
  }                                                                                                              \
  __forceinline__ float __fdiv_##suffix(float x, float y) {                                                      \
    return emulator_rounded(emulator_odd_quotient(x, y), EmulatorRounding::how);                                 \
  }                                                                                                              \
  __forceinline__ float __frcp_##suffix(float x) { return __fdiv_##suffix(1.0f, x); }                            \
  __forceinline__ float __fsqrt_##suffix(float x) {                                                              \
    return emulator_rounded(emulator_odd_root(x), EmulatorRounding::how);                                        \
  }                                                                                                              \
  __forceinline__ float __int2float_##suffix(int x) { return emulator_rounded(x, EmulatorRounding::how); }       \
  __forceinline__ float __uint2float_##suffix(unsigned x) { return emulator_rounded(x, EmulatorRounding::how); } \
  __forceinline__ float __double2float_##suffix(double x) { return emulator_rounded(x, EmulatorRounding::how); }
EMULATOR_DIRECTED(rn, kNearest)
EMULATOR_DIRECTED(rz, kZero)
EMULATOR_DIRECTED(ru, kUp)
EMULATOR_DIRECTED(rd, kDown)
#undef EMULATOR_DIRECTED
__forceinline__ float __ll2float_rn(long long x) { return static_cast<float>(x); }
__forceinline__ float __ull2float_rn(unsigned long long x) { return static_cast<float>(x); }
__forceinline__ double __int2double_rn(int x) { return x; }
__forceinline__ double __uint2double_rn(unsigned x) { return x; }
__forceinline__ double __ll2double_rn(long long x) { return static_cast<double>(x); }
__forceinline__ double __dadd_rn(double x, double y) { return x + y; }
__forceinline__ double __dsub_rn(double x, double y) { return x - y; }
__forceinline__ double __dmul_rn(double x, double y) { return x * y; }
__forceinline__ double __ddiv_rn(double x, double y) { return x / y; }
__forceinline__ double __dsqrt_rn(double x) { return std::sqrt(x); }
__forceinline__ double __fma_rn(double x, double y, double z) { return std::fma(x, y, z); }

// To an integer: what does not fit becomes the nearest that does, NaN becomes 0 in 32 bits and the lowest in 64.
template <class T>
__forceinline__ T emulator_to_integer(double whole) {
  constexpr T kLow = std::is_signed_v<T> ? static_cast<T>(T{1} << (8 * sizeof(T) - 1)) : T{0};
  constexpr T kHigh = static_cast<T>(~kLow);
  if (whole != whole) return sizeof(T) == 4 ? T{0} : static_cast<T>(uint64_t{1} << 63);
  if (whole <= static_cast<double>(kLow)) return kLow;
  return whole >= static_cast<double>(kHigh) ? kHigh : static_cast<T>(whole);
}
#define EMULATOR_TO_INTEGER(suffix, round)                                                                            \
  __forceinline__ int __float2int_##suffix(float x) { return emulator_to_integer<int>(round(double{x})); }            \
  __forceinline__ unsigned __float2uint_##suffix(float x) { return emulator_to_integer<unsigned>(round(double{x})); } \
  __forceinline__ long long __float2ll_##suffix(float x) { return emulator_to_integer<long long>(round(double{x})); } \
  __forceinline__ unsigned long long __float2ull_##suffix(float x) {                                                  \
    return emulator_to_integer<unsigned long long>(round(double{x}));                                                 \
  }                                                                                                                   \
  __forceinline__ int __double2int_##suffix(double x) { return emulator_to_integer<int>(round(x)); }                  \
  __forceinline__ unsigned __double2uint_##suffix(double x) { return emulator_to_integer<unsigned>(round(x)); }       \
  __forceinline__ long long __double2ll_##suffix(double x) { return emulator_to_integer<long long>(round(x)); }
EMULATOR_TO_INTEGER(rn, std::nearbyint)
EMULATOR_TO_INTEGER(rz, std::trunc)
EMULATOR_TO_INTEGER(ru, std::ceil)
EMULATOR_TO_INTEGER(rd, std::floor)
#undef EMULATOR_TO_INTEGER

#include "emulator_math_names.h"
