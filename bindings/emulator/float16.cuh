// bf16 and half: storage types with correctly rounded conversion (to nearest, ties to even; NaN is 0x7fff).
#pragma once
#include <platform.cuh>

#ifdef EMULATOR_CUDA_FP16
#error "<float16.cuh> and <cuda_fp16.h> both define half: include one of them"
#endif
#define EMULATOR_FLOAT16

struct bf16 {
  uint16_t bits;
};
struct half {
  uint16_t bits;
};
template <>
struct emulator::ElementName<bf16> {
  static constexpr const char* kName = "bfloat16";
};
template <>
struct emulator::ElementName<half> {
  static constexpr const char* kName = "float16";
};

__forceinline__ float to_float(float x) { return x; }
__forceinline__ float to_float(bf16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
__forceinline__ float to_float(half x) { return static_cast<float>(bit_cast<_Float16>(x.bits)); }

// from_float<T>(x): x rounded to T.
template <class T>
T from_float(float x);
template <>
__forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__forceinline__ bf16 from_float<bf16>(float x) {
  if (x != x) return {0x7fff};
  const uint32_t bits = bit_cast<uint32_t>(x);
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <>
__forceinline__ half from_float<half>(float x) {
  if (x != x) return {0x7fff};
  return {bit_cast<uint16_t>(static_cast<_Float16>(x))};
}

// pack<T>(low, high): two values rounded to T in one register, the layout of an mma fragment.
template <class T>
__forceinline__ uint32_t pack(float low, float high) {
  return static_cast<uint32_t>(from_float<T>(low).bits) | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}
