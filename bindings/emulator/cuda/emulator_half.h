// What 16-bit floats of both kinds share. Every operation rounds the exact result once, to nearest even; NaN is 0x7fff.
#pragma once
#include "cuda_runtime.h"

// The neighbour of a 16-bit float, up or down.
__forceinline__ unsigned short emulator_step(unsigned short bits, bool up) {
  if ((bits & 0x7fffu) == 0) return up ? 0x0001 : 0x8001;
  return static_cast<unsigned short>(((bits & 0x8000u) == 0) == up ? bits + 1 : bits - 1);
}
// x in float, with its last bit set where bits are lost: see emulator_to_odd.
__forceinline__ float emulator_odd_float(double x) {
  const float near = static_cast<float>(x);
  if (near == x || x != x) return near;
  unsigned bits = emulator_bits<unsigned>(near);
  if (std::fabs(near) > std::fabs(x)) --bits;
  return emulator_bits<float>(bits | 1u);
}
// A 16-bit float type T converts by emulator_widen(T) and emulator_nearest<T>(float).
template <class T>
T emulator_nearest(float x);
template <class T>
__forceinline__ T emulator_narrow(float x, EmulatorRounding how) {
  T y = emulator_nearest<T>(x);
  const float back = emulator_widen(y);
  if (back == x || x != x || how == EmulatorRounding::kNearest) return y;
  const bool up = how == EmulatorRounding::kUp || (how == EmulatorRounding::kZero && x < 0);
  if (up ? back < x : back > x) y = T::from_bits(emulator_step(y.bits(), up));
  return y;
}
template <class T>
__forceinline__ T emulator_fused(T a, T b, T c) {
  const double product = double{emulator_widen(a)} * emulator_widen(b);
  return emulator_nearest<T>(emulator_odd_float(emulator_odd_sum(product, emulator_widen(c))));
}
// The smaller or the larger; a NaN counts only where both are, or where the caller passes NaN on.
template <class T>
__forceinline__ T emulator_extreme(T a, T b, bool larger, bool passes_nan) {
  const float x = emulator_widen(a), y = emulator_widen(b);
  if (x != x || y != y) {
    if (passes_nan || (x != x && y != y)) return T::from_bits(0x7fff);
    return x != x ? b : a;
  }
  if (x == y) return ((a.bits() & 0x8000u) == 0) == larger ? a : b;  // +0 is larger than -0
  return (x > y) == larger ? a : b;
}

#define EMULATOR_HALF_CLASS(T)                                                               \
  struct T##_raw {                                                                           \
    unsigned short x;                                                                        \
  };                                                                                         \
  struct T {                                                                                 \
    T() = default;                                                                           \
    constexpr T(const T##_raw& raw) : __x(raw.x) {}                                          \
    T(float x);                                                                              \
    T(double x);                                                                             \
    T(int x) : T(static_cast<double>(x)) {}                                                  \
    T(unsigned x) : T(static_cast<double>(x)) {}                                             \
    T(short x) : T(static_cast<float>(x)) {}                                                 \
    T(unsigned short x) : T(static_cast<float>(x)) {}                                        \
    T(long long x) : T(static_cast<double>(x)) {}                                            \
    T(unsigned long long x) : T(static_cast<double>(x)) {}                                   \
    T& operator=(const T##_raw& raw) {                                                       \
      __x = raw.x;                                                                           \
      return *this;                                                                          \
    }                                                                                        \
    operator float() const;                                                                  \
    operator T##_raw() const { return {__x}; }                                               \
    static constexpr T from_bits(unsigned short bits) { return T(T##_raw{bits}); }           \
    constexpr unsigned short bits() const { return __x; }                                    \
                                                                                             \
   protected:                                                                                \
    unsigned short __x;                                                                      \
  };                                                                                         \
  struct __attribute__((aligned(4))) T##2_raw { unsigned short x, y; };                      \
  struct __attribute__((aligned(4))) T##2 {                                                  \
    T x, y;                                                                                  \
    T##2() = default;                                                                        \
    constexpr T##2(const T& a, const T& b) : x(a), y(b) {}                                   \
    constexpr T##2(const T##2_raw & raw) : x(T::from_bits(raw.x)), y(T::from_bits(raw.y)) {} \
    operator T##2_raw() const { return {x.bits(), y.bits()}; }                               \
  };

#define EMULATOR_HALF_CLASS_BODIES(T)                                                        \
  __forceinline__ T::T(float x) : __x(emulator_nearest<T>(x).bits()) {}                      \
  __forceinline__ T::T(double x) : __x(emulator_nearest<T>(emulator_odd_float(x)).bits()) {} \
  __forceinline__ T::operator float() const { return emulator_widen(*this); }

// A function of two, for single values and for pairs.
#define EMULATOR_HALF_BINARY(T, name, expression)             \
  __forceinline__ T name(const T a, const T b) {              \
    const float x = emulator_widen(a), y = emulator_widen(b); \
    return emulator_nearest<T>(expression);                   \
  }                                                           \
  __forceinline__ T##2 name##2(const T##2 a, const T##2 b) { return {name(a.x, b.x), name(a.y, b.y)}; }
#define EMULATOR_HALF_COMPARE(T, name, op)                                                                \
  __forceinline__ bool __h##name(const T a, const T b) { return emulator_widen(a) op emulator_widen(b); } \
  __forceinline__ bool __h##name##u(const T a, const T b) {                                               \
    const float x = emulator_widen(a), y = emulator_widen(b);                                             \
    return x != x || y != y || x op y;                                                                    \
  }                                                                                                       \
  __forceinline__ T##2 __h##name##2(const T##2 a, const T##2 b) {                                         \
    return {T(__h##name(a.x, b.x) ? 1.0f : 0.0f), T(__h##name(a.y, b.y) ? 1.0f : 0.0f)};                  \
  }                                                                                                       \
  __forceinline__ bool __hb##name##2(const T##2 a, const T##2 b) { return __h##name(a.x, b.x) && __h##name(a.y, b.y); }
#define EMULATOR_HALF_EXTREME(T, name, larger, passes_nan) \
  __forceinline__ T name(const T a, const T b) { return emulator_extreme(a, b, larger, passes_nan); }
#define EMULATOR_HALF_UNARY(T, name, expression) \
  __forceinline__ T h##name(const T a) {         \
    const float x = emulator_widen(a);           \
    return emulator_nearest<T>(expression);      \
  }                                              \
  __forceinline__ T##2 h2##name(const T##2 a) { return {h##name(a.x), h##name(a.y)}; }
#define EMULATOR_HALF_OPERATOR(T, op, name)                                                  \
  __forceinline__ T operator op(const T& a, const T& b) { return name(a, b); }               \
  __forceinline__ T& operator op## = (T & a, const T& b) { return a = name(a, b); }          \
  __forceinline__ T##2 operator op(const T##2 & a, const T##2 & b) { return name##2(a, b); } \
  __forceinline__ T##2 & operator op## = (T##2 & a, const T##2 & b) { return a = name##2(a, b); }
#define EMULATOR_HALF_RELATION(T, op, name) \
  __forceinline__ bool operator op(const T& a, const T& b) { return name(a, b); }

#define EMULATOR_HALF_ARITHMETIC(T)                                                                         \
  EMULATOR_HALF_BINARY(T, __hadd, x + y)                                                                    \
  EMULATOR_HALF_BINARY(T, __hsub, x - y)                                                                    \
  EMULATOR_HALF_BINARY(T, __hmul, x* y)                                                                     \
  EMULATOR_HALF_BINARY(T, __hadd_rn, x + y)                                                                 \
  EMULATOR_HALF_BINARY(T, __hsub_rn, x - y)                                                                 \
  EMULATOR_HALF_BINARY(T, __hmul_rn, x* y)                                                                  \
  EMULATOR_HALF_BINARY(T, __hdiv, x / y)                                                                    \
  __forceinline__ T##2 __h2div(const T##2 a, const T##2 b) { return __hdiv2(a, b); }                        \
  EMULATOR_HALF_BINARY(T, __hadd_sat, __saturatef(emulator_widen(emulator_nearest<T>(x + y))))              \
  EMULATOR_HALF_BINARY(T, __hsub_sat, __saturatef(emulator_widen(emulator_nearest<T>(x - y))))              \
  EMULATOR_HALF_BINARY(T, __hmul_sat, __saturatef(emulator_widen(emulator_nearest<T>(x * y))))              \
  __forceinline__ T __hfma(const T a, const T b, const T c) { return emulator_fused(a, b, c); }             \
  __forceinline__ T __hfma_sat(const T a, const T b, const T c) {                                           \
    return T(__saturatef(emulator_widen(emulator_fused(a, b, c))));                                         \
  }                                                                                                         \
  __forceinline__ T __hfma_relu(const T a, const T b, const T c) {                                          \
    return emulator_extreme(emulator_fused(a, b, c), T::from_bits(0), true, true);                          \
  }                                                                                                         \
  __forceinline__ T##2 __hfma2(const T##2 a, const T##2 b, const T##2 c) {                                  \
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};                                                  \
  }                                                                                                         \
  __forceinline__ T __hneg(const T a) { return T::from_bits(a.bits() ^ 0x8000); }                           \
  __forceinline__ T __habs(const T a) { return T::from_bits(a.bits() & 0x7fff); }                           \
  __forceinline__ T##2 __hneg2(const T##2 a) { return {__hneg(a.x), __hneg(a.y)}; }                         \
  __forceinline__ T##2 __habs2(const T##2 a) { return {__habs(a.x), __habs(a.y)}; }                         \
  __forceinline__ bool __hisnan(const T a) { return emulator_widen(a) != emulator_widen(a); }               \
  __forceinline__ int __hisinf(const T a) {                                                                 \
    return std::isinf(emulator_widen(a)) ? (emulator_widen(a) > 0 ? 1 : -1) : 0;                            \
  }                                                                                                         \
  EMULATOR_HALF_EXTREME(T, __hmax, true, false)                                                             \
  EMULATOR_HALF_EXTREME(T, __hmin, false, false)                                                            \
  EMULATOR_HALF_EXTREME(T, __hmax_nan, true, true)                                                          \
  EMULATOR_HALF_EXTREME(T, __hmin_nan, false, true)                                                         \
  __forceinline__ T##2 __hmax2(const T##2 a, const T##2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; } \
  __forceinline__ T##2 __hmin2(const T##2 a, const T##2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; } \
  EMULATOR_HALF_COMPARE(T, eq, ==)                                                                          \
  EMULATOR_HALF_COMPARE(T, lt, <)                                                                           \
  EMULATOR_HALF_COMPARE(T, le, <=)                                                                          \
  EMULATOR_HALF_COMPARE(T, gt, >)                                                                           \
  EMULATOR_HALF_COMPARE(T, ge, >=)                                                                          \
  __forceinline__ bool __hne(const T a, const T b) {                                                        \
    return emulator_widen(a) < emulator_widen(b) || emulator_widen(a) > emulator_widen(b);                  \
  }                                                                                                         \
  __forceinline__ bool __hneu(const T a, const T b) { return emulator_widen(a) != emulator_widen(b); }      \
  EMULATOR_HALF_OPERATOR(T, +, __hadd)                                                                      \
  EMULATOR_HALF_OPERATOR(T, -, __hsub)                                                                      \
  EMULATOR_HALF_OPERATOR(T, *, __hmul)                                                                      \
  EMULATOR_HALF_OPERATOR(T, /, __hdiv)                                                                      \
  EMULATOR_HALF_RELATION(T, ==, __heq)                                                                      \
  EMULATOR_HALF_RELATION(T, !=, __hneu)                                                                     \
  EMULATOR_HALF_RELATION(T, <, __hlt)                                                                       \
  EMULATOR_HALF_RELATION(T, <=, __hle)                                                                      \
  EMULATOR_HALF_RELATION(T, >, __hgt)                                                                       \
  EMULATOR_HALF_RELATION(T, >=, __hge)                                                                      \
  __forceinline__ T operator-(const T& a) { return __hneg(a); }                                             \
  __forceinline__ T operator+(const T& a) { return a; }                                                     \
  __forceinline__ T##2 operator-(const T##2 & a) { return __hneg2(a); }                                     \
  __forceinline__ T& operator++(T& a) { return a = __hadd(a, T(1.0f)); }                                    \
  __forceinline__ T& operator--(T& a) { return a = __hsub(a, T(1.0f)); }                                    \
  EMULATOR_HALF_UNARY(T, exp, emulator_expf(x))                                                             \
  EMULATOR_HALF_UNARY(T, exp2, emulator_exp2f(x))                                                           \
  EMULATOR_HALF_UNARY(T, exp10, emulator_exp10f(x))                                                         \
  EMULATOR_HALF_UNARY(T, log, emulator_logf(x))                                                             \
  EMULATOR_HALF_UNARY(T, log2, emulator_log2f(x))                                                           \
  EMULATOR_HALF_UNARY(T, log10, emulator_log10f(x))                                                         \
  EMULATOR_HALF_UNARY(T, sin, emulator_sinf(x))                                                             \
  EMULATOR_HALF_UNARY(T, cos, emulator_cosf(x))                                                             \
  EMULATOR_HALF_UNARY(T, tanh, emulator_tanhf(x))                                                           \
  EMULATOR_HALF_UNARY(T, sqrt, sqrtf(x))                                                                    \
  EMULATOR_HALF_UNARY(T, rsqrt, rsqrtf(x))                                                                  \
  EMULATOR_HALF_UNARY(T, rcp, 1.0f / x)                                                                     \
  EMULATOR_HALF_UNARY(T, floor, floorf(x))                                                                  \
  EMULATOR_HALF_UNARY(T, ceil, ceilf(x))                                                                    \
  EMULATOR_HALF_UNARY(T, trunc, truncf(x))                                                                  \
  EMULATOR_HALF_UNARY(T, rint, rintf(x))

// Conversions; `name` is half or bfloat16, as in __float2half.
#define EMULATOR_HALF_CONVERSIONS(T, name)                                                                        \
  __forceinline__ T __float2##name(const float x) { return T(x); }                                                \
  __forceinline__ T __float2##name##_rn(const float x) { return T(x); }                                           \
  __forceinline__ T __float2##name##_rz(const float x) { return emulator_narrow<T>(x, EmulatorRounding::kZero); } \
  __forceinline__ T __float2##name##_ru(const float x) { return emulator_narrow<T>(x, EmulatorRounding::kUp); }   \
  __forceinline__ T __float2##name##_rd(const float x) { return emulator_narrow<T>(x, EmulatorRounding::kDown); } \
  __forceinline__ T __double2##name(const double x) { return T(x); }                                              \
  __forceinline__ T __int2##name##_rn(const int x) { return T(x); }                                               \
  __forceinline__ T __uint2##name##_rn(const unsigned x) { return T(x); }                                         \
  __forceinline__ T __short2##name##_rn(const short x) { return T(x); }                                           \
  __forceinline__ T __ushort2##name##_rn(const unsigned short x) { return T(x); }                                 \
  __forceinline__ float __##name##2float(const T x) { return emulator_widen(x); }                                 \
  __forceinline__ int __##name##2int_rn(const T x) { return __float2int_rn(emulator_widen(x)); }                  \
  __forceinline__ int __##name##2int_rz(const T x) { return __float2int_rz(emulator_widen(x)); }                  \
  __forceinline__ int __##name##2int_ru(const T x) { return __float2int_ru(emulator_widen(x)); }                  \
  __forceinline__ int __##name##2int_rd(const T x) { return __float2int_rd(emulator_widen(x)); }                  \
  __forceinline__ unsigned __##name##2uint_rn(const T x) { return __float2uint_rn(emulator_widen(x)); }           \
  __forceinline__ unsigned __##name##2uint_rz(const T x) { return __float2uint_rz(emulator_widen(x)); }           \
  __forceinline__ short __##name##_as_short(const T x) { return static_cast<short>(x.bits()); }                   \
  __forceinline__ unsigned short __##name##_as_ushort(const T x) { return x.bits(); }                             \
  __forceinline__ T __short_as_##name(const short x) { return T::from_bits(static_cast<unsigned short>(x)); }     \
  __forceinline__ T __ushort_as_##name(const unsigned short x) { return T::from_bits(x); }                        \
  __forceinline__ T##2 make_##name##2(const T a, const T b) { return {a, b}; }                                    \
  __forceinline__ T##2 __halves2##name##2(const T a, const T b) { return {a, b}; }                                \
  __forceinline__ T##2 __##name##2##name##2(const T a) { return {a, a}; }                                         \
  __forceinline__ T##2 __float2##name##2_rn(const float a) { return {T(a), T(a)}; }                               \
  __forceinline__ T##2 __floats2##name##2_rn(const float a, const float b) { return {T(a), T(b)}; }               \
  __forceinline__ T##2 __float22##name##2_rn(const float2 a) { return {T(a.x), T(a.y)}; }                         \
  __forceinline__ float2 __##name##22float2(const T##2 a) { return {emulator_widen(a.x), emulator_widen(a.y)}; }  \
  __forceinline__ float __low2float(const T##2 a) { return emulator_widen(a.x); }                                 \
  __forceinline__ float __high2float(const T##2 a) { return emulator_widen(a.y); }                                \
  __forceinline__ T __low2##name(const T##2 a) { return a.x; }                                                    \
  __forceinline__ T __high2##name(const T##2 a) { return a.y; }                                                   \
  __forceinline__ T##2 __low2##name##2(const T##2 a) { return {a.x, a.x}; }                                       \
  __forceinline__ T##2 __high2##name##2(const T##2 a) { return {a.y, a.y}; }                                      \
  __forceinline__ T##2 __lows2##name##2(const T##2 a, const T##2 b) { return {a.x, b.x}; }                        \
  __forceinline__ T##2 __highs2##name##2(const T##2 a, const T##2 b) { return {a.y, b.y}; }                       \
  __forceinline__ T##2 __lowhigh2highlow(const T##2 a) { return {a.y, a.x}; }

#define EMULATOR_HALF_RUNTIME(T, number, pair_number, numpy) \
  template <>                                                \
  constexpr emulator::Number emulator_number<T>() {          \
    return emulator::Number::number;                         \
  }                                                          \
  template <>                                                \
  constexpr emulator::Number emulator_number<T##2>() {       \
    return emulator::Number::pair_number;                    \
  }                                                          \
  template <>                                                \
  struct emulator::ElementName<T> {                          \
    static constexpr const char* kName = numpy;              \
  };                                                         \
  template <>                                                \
  struct emulator::ElementName<T##2> {                       \
    static constexpr const char* kName = numpy;              \
  };                                                         \
  EMULATOR_ATOMIC(atomicAdd, kAdd, T)                        \
  EMULATOR_ATOMIC(atomicAdd, kAdd, T##2)
