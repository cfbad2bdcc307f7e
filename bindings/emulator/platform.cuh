// The CUDA language on the host: what NVRTC gives a kernel without being asked.
#pragma once
#include <bits/c++config.h>
#undef _GLIBCXX_USE_STD_SPEC_FUNCS  // std::beta, std::riemann_zeta, ...: to read them takes longer than a small kernel
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "abi.h"

#define __global__ static __attribute__((unused))  // kernels that the instance does not name are not compiled
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

#define threadIdx (emulator_thread_idx())
#define blockIdx (emulator_block_idx())
#define blockDim (emulator_block_dim())
#define gridDim (emulator_grid_dim())
#define printf emulator_print
#define log2f emulator_log2f
#define tanhf emulator_tanhf

using std::int16_t;
using std::int32_t;
using std::int64_t;
using std::int8_t;
using std::uint16_t;
using std::uint32_t;
using std::uint64_t;
using std::uint8_t;
using std::uintptr_t;

constexpr float kInf = __builtin_inff();
constexpr unsigned kFullMask = 0xffffffffu;

// The block's dynamic shared memory from `byte_offset` on.
template <class T = unsigned char>
__forceinline__ T* shared_memory(unsigned byte_offset = 0) {
  return reinterpret_cast<T*>(emulator_shared() + byte_offset);
}

template <class To, class From>
__forceinline__ To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast: sizes differ");
  return __builtin_bit_cast(To, from);
}

// The functions of CUDA's math library that kernels use, with the maximum errors that the CUDA C++ Programming Guide
// gives. Another that is not exact belongs here before a kernel calls it.
__forceinline__ float rsqrtf(float x) { return emulator_library_result(1.0 / std::sqrt(static_cast<double>(x)), 2); }
__forceinline__ float emulator_log2f(float x) { return emulator_library_result(std::log2(static_cast<double>(x)), 1); }
__forceinline__ float emulator_tanhf(float x) {
  const float y = emulator_library_result(std::tanh(static_cast<double>(x)), 2);
  return y > 1.0f ? 1.0f : y < -1.0f ? -1.0f : y;
}
__forceinline__ float __fdividef(float x, float y) { return x / y; }
__forceinline__ int min(int a, int b) { return a < b ? a : b; }
__forceinline__ int max(int a, int b) { return a > b ? a : b; }
__forceinline__ unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
__forceinline__ unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
__forceinline__ int __popc(unsigned x) { return __builtin_popcount(x); }
__forceinline__ int __ffs(int x) { return __builtin_ffs(x); }
__forceinline__ int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
[[noreturn]] __forceinline__ void __trap() { emulator_trap(); }

__forceinline__ void __syncthreads() { emulator_sync_block(); }
__forceinline__ void __syncwarp(unsigned mask = kFullMask) { emulator_sync_warp(mask); }

// threadIdx.x; on a GPU read again at each call, which saves registers.
__forceinline__ int reload_tid() { return static_cast<int>(threadIdx.x); }

// x; on a GPU hidden from the optimiser, which saves registers.
__forceinline__ int value_barrier(int x) { return x; }

// bar.sync / bar.arrive of barrier `id` (1 to 15) among `threads` threads of the block.
__forceinline__ void named_barrier_sync(int id, int threads) { emulator_named_barrier(id, threads, true); }
__forceinline__ void named_barrier_arrive(int id, int threads) { emulator_named_barrier(id, threads, false); }

// Programmatic dependent launch: launches are ordered here anyway, so these only order.
__forceinline__ void grid_dependency_wait() { emulator_grid_wait(); }
__forceinline__ void grid_dependency_release() { emulator_grid_release(); }

template <class T>
__forceinline__ T emulator_shuffle_as(emulator::Shuffle op, unsigned mask, T value, int argument, int width) {
  static_assert(sizeof(T) <= 4 || sizeof(T) == 8, "shuffles move values of up to 4 bytes, or of 8");
  if constexpr (sizeof(T) == 4) {
    return bit_cast<T>(emulator_shuffle(op, mask, bit_cast<uint32_t>(value), argument, width));
  } else {
    uint32_t words[(sizeof(T) + 3) / 4] = {};
    __builtin_memcpy(words, &value, sizeof(T));
    for (uint32_t& word : words) word = emulator_shuffle(op, mask, word, argument, width);
    __builtin_memcpy(&value, words, sizeof(T));
    return value;
  }
}
template <class T>
__forceinline__ T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return emulator_shuffle_as(emulator::Shuffle::kIndex, mask, value, lane, width);
}
template <class T>
__forceinline__ T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulator_shuffle_as(emulator::Shuffle::kUp, mask, value, static_cast<int>(delta), width);
}
template <class T>
__forceinline__ T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulator_shuffle_as(emulator::Shuffle::kDown, mask, value, static_cast<int>(delta), width);
}
template <class T>
__forceinline__ T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  return emulator_shuffle_as(emulator::Shuffle::kXor, mask, value, lane_mask, width);
}
__forceinline__ unsigned __ballot_sync(unsigned mask, int predicate) {
  return emulator_vote(emulator::Vote::kBallot, mask, predicate != 0);
}
__forceinline__ int __any_sync(unsigned mask, int predicate) {
  return static_cast<int>(emulator_vote(emulator::Vote::kAny, mask, predicate != 0));
}
__forceinline__ int __all_sync(unsigned mask, int predicate) {
  return static_cast<int>(emulator_vote(emulator::Vote::kAll, mask, predicate != 0));
}

template <class T>
constexpr emulator::Number emulator_number() = delete;
template <>
constexpr emulator::Number emulator_number<float>() {
  return emulator::Number::kFloat;
}
template <>
constexpr emulator::Number emulator_number<int>() {
  return emulator::Number::kInt;
}
template <>
constexpr emulator::Number emulator_number<unsigned>() {
  return emulator::Number::kUnsigned;
}
template <>
constexpr emulator::Number emulator_number<unsigned long long>() {
  return emulator::Number::kUnsigned64;
}

template <class T>
__forceinline__ T emulator_atomic_as(emulator::Atomic op, T* address, T value, T compare = T()) {
  uint64_t bits = 0, compare_bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  __builtin_memcpy(&compare_bits, &compare, sizeof(T));
  bits = emulator_atomic(op, emulator_number<T>(), address, bits, compare_bits, emulator::Scope::kDevice,
                         emulator::Order::kRelaxed);
#ifdef EMULATOR_CHECKED
  bits = emulator_atomic_result(bits, address);
#endif
  T old;
  __builtin_memcpy(&old, &bits, sizeof(T));
  return old;
}
// As in CUDA, floats can be added and exchanged but not compared.
template <class T>
__forceinline__ T atomicAdd(T* address, T value) {
  return emulator_atomic_as(emulator::Atomic::kAdd, address, value);
}
template <class T>
__forceinline__ T atomicExch(T* address, T value) {
  return emulator_atomic_as(emulator::Atomic::kExchange, address, value);
}
template <class T>
__forceinline__ T atomicMin(T* address, T value) {
  static_assert(!std::is_floating_point_v<T>, "CUDA has no atomicMin of this type");
  return emulator_atomic_as(emulator::Atomic::kMin, address, value);
}
template <class T>
__forceinline__ T atomicMax(T* address, T value) {
  static_assert(!std::is_floating_point_v<T>, "CUDA has no atomicMax of this type");
  return emulator_atomic_as(emulator::Atomic::kMax, address, value);
}
template <class T>
__forceinline__ T atomicCAS(T* address, T compare, T value) {
  static_assert(!std::is_floating_point_v<T>, "CUDA has no atomicCAS of this type");
  return emulator_atomic_as(emulator::Atomic::kCompareExchange, address, value, compare);
}
__forceinline__ void __threadfence() { emulator_fence(emulator::Scope::kDevice); }
__forceinline__ void __threadfence_block() { emulator_fence(emulator::Scope::kBlock); }

#ifdef EMULATOR_CHECKED
// The compiler would expand it without telling the runtime what it touches.
extern "C" void* memcpy(void* to, const void* from, std::size_t bytes) noexcept;
#define __builtin_memcpy memcpy
#endif
