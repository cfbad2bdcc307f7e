// __nv_bfloat16 and __nv_bfloat162 with CUDA's functions.
#pragma once
#include "emulator_half.h"

EMULATOR_HALF_CLASS(__nv_bfloat16)
__forceinline__ float emulator_widen(__nv_bfloat16 x) { return emulator_bits<float>(unsigned{x.bits()} << 16); }
template <>
__forceinline__ __nv_bfloat16 emulator_nearest<__nv_bfloat16>(float x) {
  const unsigned bits = emulator_bits<unsigned>(x), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return __nv_bfloat16::from_bits(x != x ? 0x7fff : static_cast<unsigned short>(rounded));
}
EMULATOR_HALF_CLASS_BODIES(__nv_bfloat16)
EMULATOR_HALF_ARITHMETIC(__nv_bfloat16)
EMULATOR_HALF_CONVERSIONS(__nv_bfloat16, bfloat16)
EMULATOR_HALF_RUNTIME(__nv_bfloat16, kBfloat16, kBfloat16Pair, "bfloat16")

using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;
