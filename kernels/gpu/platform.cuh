// Types, constants and functions that kernels use beyond CUDA C++. NVRTC has no headers, so the integer types are here.
#pragma once

using int8_t = signed char;
using int16_t = short;
using int32_t = int;
using int64_t = long long;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using uint64_t = unsigned long long;
using uintptr_t = unsigned long long;

constexpr float kInf = __builtin_bit_cast(float, 0x7f800000);
constexpr unsigned kFullMask = 0xffffffffu;

extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];

// The block's dynamic shared memory from `byte_offset` on.
template <class T = unsigned char>
__device__ __forceinline__ T* shared_memory(unsigned byte_offset = 0) {
  return reinterpret_cast<T*>(dynamic_shared_memory + byte_offset);
}

template <class To, class From>
__device__ __forceinline__ To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast: sizes differ");
  return __builtin_bit_cast(To, from);
}

// The address of shared memory as PTX's shared state space counts it.
__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// threadIdx.x, read from its special register at each call, so that values derived from it are recomputed in each
// iteration of a loop instead of kept live.
__device__ __forceinline__ int reload_tid() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

// x, hidden from the optimiser, so that values derived from it are recomputed instead of kept live.
__device__ __forceinline__ int value_barrier(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// bar.sync / bar.arrive of barrier `id` (1 to 15) among `threads` threads of the block.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Programmatic dependent launch: wait for the kernel before this one, or let the next one start (sm_90 and up; before,
// launches are ordered anyway).
__device__ __forceinline__ void grid_dependency_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void grid_dependency_release() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
