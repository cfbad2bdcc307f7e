// Functions on integers, and casts between types.
#pragma once
#include "cuda_runtime.h"

__forceinline__ int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
__forceinline__ int __ffsll(long long x) { return __builtin_ffsll(x); }
__forceinline__ int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
__forceinline__ unsigned __brev(unsigned x) {
  x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
  x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
  x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
  return __builtin_bswap32(x);
}
__forceinline__ unsigned long long __brevll(unsigned long long x) {
  return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 |
         __brev(static_cast<unsigned>(x >> 32));
}
// Byte i of the result is byte s.nibble(i) of x (0 to 3) and y (4 to 7); a nibble's top bit asks for the byte's sign.
__forceinline__ unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned nibble = s >> 4 * i & 0xfu;
    unsigned byte = static_cast<unsigned>(bytes >> 8 * (nibble & 7u)) & 0xffu;
    if (nibble & 8u) byte = byte & 0x80u ? 0xffu : 0u;
    result |= byte << 8 * i;
  }
  return result;
}
__forceinline__ unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31u) >> 32);
}
__forceinline__ unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31u));
}
__forceinline__ unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned shift) {
  return shift >= 32 ? low : __funnelshift_l(low, high, shift);
}
__forceinline__ unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned shift) {
  return shift >= 32 ? high : __funnelshift_r(low, high, shift);
}
__forceinline__ int __mulhi(int x, int y) { return static_cast<int>(static_cast<int64_t>(x) * y >> 32); }
__forceinline__ unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>(static_cast<uint64_t>(x) * y >> 32);
}
__forceinline__ long long __mul64hi(long long x, long long y) {
  return static_cast<long long>(static_cast<__int128>(x) * y >> 64);
}
__forceinline__ unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(x) * y >> 64);
}
__forceinline__ int __mul24(int x, int y) {
  const auto low = [](int v) { return static_cast<int64_t>(static_cast<int>(static_cast<unsigned>(v) << 8) >> 8); };
  return static_cast<int>(low(x) * low(y));
}
__forceinline__ unsigned __umul24(unsigned x, unsigned y) { return (x & 0xffffffu) * (y & 0xffffffu); }
__forceinline__ unsigned __sad(int x, int y, unsigned z) {
  return z + static_cast<unsigned>(x < y ? static_cast<int64_t>(y) - x : static_cast<int64_t>(x) - y);
}
__forceinline__ unsigned __usad(unsigned x, unsigned y, unsigned z) { return z + (x < y ? y - x : x - y); }
__forceinline__ int __hadd(int x, int y) { return static_cast<int>((static_cast<int64_t>(x) + y) >> 1); }
__forceinline__ int __rhadd(int x, int y) { return static_cast<int>((static_cast<int64_t>(x) + y + 1) >> 1); }
__forceinline__ unsigned __uhadd(unsigned x, unsigned y) { return static_cast<unsigned>((uint64_t{x} + y) >> 1); }
__forceinline__ unsigned __urhadd(unsigned x, unsigned y) { return static_cast<unsigned>((uint64_t{x} + y + 1) >> 1); }
__forceinline__ int __dp4a(int a, int b, int c) {
  unsigned sum = static_cast<unsigned>(c);
  for (int i = 0; i < 32; i += 8)
    sum += static_cast<unsigned>(static_cast<signed char>(a >> i) * static_cast<signed char>(b >> i));
  return static_cast<int>(sum);
}
__forceinline__ unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 32; i += 8) c += (a >> i & 0xffu) * (b >> i & 0xffu);
  return c;
}

template <class To, class From>
__forceinline__ To emulator_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  return __builtin_bit_cast(To, from);
}
__forceinline__ int __float_as_int(float x) { return emulator_bits<int>(x); }
__forceinline__ unsigned __float_as_uint(float x) { return emulator_bits<unsigned>(x); }
__forceinline__ float __int_as_float(int x) { return emulator_bits<float>(x); }
__forceinline__ float __uint_as_float(unsigned x) { return emulator_bits<float>(x); }
__forceinline__ long long __double_as_longlong(double x) { return emulator_bits<long long>(x); }
__forceinline__ double __longlong_as_double(long long x) { return emulator_bits<double>(x); }
__forceinline__ int __double2loint(double x) { return static_cast<int>(emulator_bits<uint64_t>(x)); }
__forceinline__ int __double2hiint(double x) { return static_cast<int>(emulator_bits<uint64_t>(x) >> 32); }
__forceinline__ double __hiloint2double(int high, int low) {
  return emulator_bits<double>(static_cast<uint64_t>(static_cast<unsigned>(high)) << 32 | static_cast<unsigned>(low));
}

// CUDA has min and max of every pair of arithmetic types; <platform.cuh> has int and unsigned.
#define EMULATOR_MIN_MAX(a, b, result)                                                                     \
  __forceinline__ result min(a x, b y) { return static_cast<result>(y) < static_cast<result>(x) ? y : x; } \
  __forceinline__ result max(a x, b y) { return static_cast<result>(x) < static_cast<result>(y) ? y : x; }
EMULATOR_MIN_MAX(int, unsigned, unsigned)
EMULATOR_MIN_MAX(unsigned, int, unsigned)
EMULATOR_MIN_MAX(long, long, long)
EMULATOR_MIN_MAX(unsigned long, unsigned long, unsigned long)
EMULATOR_MIN_MAX(long, unsigned long, unsigned long)
EMULATOR_MIN_MAX(unsigned long, long, unsigned long)
EMULATOR_MIN_MAX(long long, long long, long long)
EMULATOR_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
EMULATOR_MIN_MAX(long long, unsigned long long, unsigned long long)
EMULATOR_MIN_MAX(unsigned long long, long long, unsigned long long)
#undef EMULATOR_MIN_MAX
__forceinline__ float min(float x, float y) { return fminf(x, y); }
__forceinline__ float max(float x, float y) { return fmaxf(x, y); }
__forceinline__ double min(double x, double y) { return fmin(x, y); }
__forceinline__ double max(double x, double y) { return fmax(x, y); }
__forceinline__ double min(float x, double y) { return fmin(x, y); }
__forceinline__ double max(float x, double y) { return fmax(x, y); }
__forceinline__ double min(double x, float y) { return fmin(x, y); }
__forceinline__ double max(double x, float y) { return fmax(x, y); }
__forceinline__ unsigned umin(unsigned x, unsigned y) { return min(x, y); }
__forceinline__ unsigned umax(unsigned x, unsigned y) { return max(x, y); }
__forceinline__ long long llmin(long long x, long long y) { return min(x, y); }
__forceinline__ long long llmax(long long x, long long y) { return max(x, y); }
__forceinline__ unsigned long long ullmin(unsigned long long x, unsigned long long y) { return min(x, y); }
__forceinline__ unsigned long long ullmax(unsigned long long x, unsigned long long y) { return max(x, y); }
