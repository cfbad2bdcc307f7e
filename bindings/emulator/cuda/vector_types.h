// float4 and its like, dim3, and the built-in variables with CUDA's types. A vector is read and written by one access,
// which must be aligned.
#pragma once
#include "cuda_runtime.h"

#define EMULATOR_VECTOR(type, scalar, name, ...) \
  template <>                                    \
  struct emulator::ElementName<type> {           \
    static constexpr const char* kName = name;   \
  };                                             \
  __forceinline__ constexpr type make_##type(__VA_ARGS__)

// 1 to 4 components; align2 and align4 are the alignments of those with 2 and 4.
#define EMULATOR_VECTORS(type, scalar, name, align2, align4)                                 \
  struct type##1 { scalar x; };                                                              \
  struct __attribute__((aligned(align2))) type##2 { scalar x, y; };                          \
  struct type##3 { scalar x, y, z; };                                                        \
  struct __attribute__((aligned(align4))) type##4 { scalar x, y, z, w; };                    \
  EMULATOR_VECTOR(type##1, scalar, name, scalar x) { return {x}; }                           \
  EMULATOR_VECTOR(type##2, scalar, name, scalar x, scalar y) { return {x, y}; }              \
  EMULATOR_VECTOR(type##3, scalar, name, scalar x, scalar y, scalar z) { return {x, y, z}; } \
  EMULATOR_VECTOR(type##4, scalar, name, scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }

EMULATOR_VECTORS(char, signed char, "int8", 2, 4)
EMULATOR_VECTORS(uchar, unsigned char, "uint8", 2, 4)
EMULATOR_VECTORS(short, short, "int16", 4, 8)
EMULATOR_VECTORS(ushort, unsigned short, "uint16", 4, 8)
EMULATOR_VECTORS(int, int, "int32", 8, 16)
EMULATOR_VECTORS(uint, unsigned, "uint32", 8, 16)
EMULATOR_VECTORS(long, long, "int64", 16, 16)
EMULATOR_VECTORS(ulong, unsigned long, "uint64", 16, 16)
EMULATOR_VECTORS(longlong, long long, "int64", 16, 16)
EMULATOR_VECTORS(ulonglong, unsigned long long, "uint64", 16, 16)
EMULATOR_VECTORS(float, float, "float32", 8, 16)
EMULATOR_VECTORS(double, double, "float64", 16, 16)
#undef EMULATOR_VECTORS
#undef EMULATOR_VECTOR

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

__forceinline__ uint3 emulator_uint3(emulator::Dim3 v) { return {v.x, v.y, v.z}; }
__forceinline__ dim3 emulator_dim3(emulator::Dim3 v) { return {v.x, v.y, v.z}; }
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#define threadIdx (emulator_uint3(emulator_thread_idx()))
#define blockIdx (emulator_uint3(emulator_block_idx()))
#define blockDim (emulator_dim3(emulator_block_dim()))
#define gridDim (emulator_dim3(emulator_grid_dim()))
constexpr int warpSize = 32;
// The thread's number in its block, by which warps are formed.
__forceinline__ unsigned emulator_linear_thread() {
  return (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
}
