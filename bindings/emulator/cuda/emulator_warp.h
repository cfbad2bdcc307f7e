// Barriers, votes and reductions beyond those of <platform.cuh>.
#pragma once
#include "cuda_runtime.h"

__forceinline__ int __syncthreads_count(int predicate) {
  return emulator_sync_block_vote(emulator::BlockVote::kCount, predicate != 0);
}
__forceinline__ int __syncthreads_and(int predicate) {
  return emulator_sync_block_vote(emulator::BlockVote::kAnd, predicate != 0);
}
__forceinline__ int __syncthreads_or(int predicate) {
  return emulator_sync_block_vote(emulator::BlockVote::kOr, predicate != 0);
}
__forceinline__ void __threadfence_system() { emulator_fence(emulator::Scope::kSystem); }
__forceinline__ void __nanosleep(unsigned) { emulator_yield(); }
__forceinline__ unsigned __activemask() { return emulator_active_mask(); }
__forceinline__ long long clock64() { return static_cast<long long>(emulator_clock()); }
#define clock() static_cast<clock_t>(emulator_clock())
__forceinline__ void __brkpt() {}

template <class T>
__forceinline__ unsigned __match_any_sync(unsigned mask, T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "__match_any_sync takes values of 4 and 8 bytes");
  uint64_t mine = 0, values[32];
  __builtin_memcpy(&mine, &value, sizeof(T));
  const unsigned lanes = emulator_exchange(emulator::Exchange::kMatchAny, mask, mine, values);
  unsigned equal = 0;
  for (unsigned lane = 0; lane < 32; ++lane) equal |= unsigned{values[lane] == mine} << lane;
  return equal & lanes;
}
template <class T>
__forceinline__ unsigned __match_all_sync(unsigned mask, T value, int* all_equal) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "__match_all_sync takes values of 4 and 8 bytes");
  uint64_t mine = 0, values[32];
  __builtin_memcpy(&mine, &value, sizeof(T));
  const unsigned lanes = emulator_exchange(emulator::Exchange::kMatchAll, mask, mine, values);
  *all_equal = 1;
  for (unsigned lane = 0; lane < 32; ++lane)
    if ((lanes >> lane & 1u) != 0 && values[lane] != mine) *all_equal = 0;
  return *all_equal != 0 ? lanes : 0;
}

// T is int or unsigned, as on sm_80.
template <class T, class Combine>
__forceinline__ T emulator_reduce(unsigned mask, T value, Combine combine) {
  uint64_t values[32];
  const unsigned lanes = emulator_exchange(emulator::Exchange::kReduce, mask, static_cast<unsigned>(value), values);
  T result = static_cast<T>(values[__builtin_ctz(lanes)]);
  for (unsigned rest = lanes & (lanes - 1); rest != 0; rest &= rest - 1)
    result = combine(result, static_cast<T>(values[__builtin_ctz(rest)]));
  return result;
}
#define EMULATOR_REDUCE(name, type, expression)                                             \
  __forceinline__ type name(unsigned mask, type value) {                                    \
    return emulator_reduce(mask, value, [](type x, type y) -> type { return expression; }); \
  }
EMULATOR_REDUCE(__reduce_add_sync, unsigned, x + y)
EMULATOR_REDUCE(__reduce_add_sync, int, static_cast<int>(static_cast<unsigned>(x) + static_cast<unsigned>(y)))
EMULATOR_REDUCE(__reduce_min_sync, unsigned, x < y ? x : y)
EMULATOR_REDUCE(__reduce_min_sync, int, x < y ? x : y)
EMULATOR_REDUCE(__reduce_max_sync, unsigned, x > y ? x : y)
EMULATOR_REDUCE(__reduce_max_sync, int, x > y ? x : y)
EMULATOR_REDUCE(__reduce_and_sync, unsigned, x& y)
EMULATOR_REDUCE(__reduce_or_sync, unsigned, x | y)
EMULATOR_REDUCE(__reduce_xor_sync, unsigned, x ^ y)
#undef EMULATOR_REDUCE
