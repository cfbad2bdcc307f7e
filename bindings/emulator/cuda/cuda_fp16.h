// __half and __half2 with CUDA's functions.
#pragma once
#include "emulator_half.h"
#ifdef EMULATOR_FLOAT16
#error "<float16.cuh> and <cuda_fp16.h> both define half: include one of them"
#endif
#define EMULATOR_CUDA_FP16

EMULATOR_HALF_CLASS(__half)
__forceinline__ float emulator_widen(__half x) { return static_cast<float>(emulator_bits<_Float16>(x.bits())); }
template <>
__forceinline__ __half emulator_nearest<__half>(float x) {
  return __half::from_bits(x != x ? 0x7fff : emulator_bits<unsigned short>(static_cast<_Float16>(x)));
}
EMULATOR_HALF_CLASS_BODIES(__half)
EMULATOR_HALF_ARITHMETIC(__half)
EMULATOR_HALF_CONVERSIONS(__half, half)
EMULATOR_HALF_RUNTIME(__half, kHalf, kHalfPair, "float16")

using half = __half;
using half2 = __half2;
using nv_half = __half;
using __nv_half = __half;
using nv_half2 = __half2;
using __nv_half2 = __half2;
