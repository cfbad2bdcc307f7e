// Keywords of CUDA C++.
#pragma once

// A message of ours, at the line of the kernel that uses the word.
#define EMULATOR_PRAGMA(text) _Pragma(#text)
#define EMULATOR_REFUSE(words) EMULATOR_PRAGMA(GCC error words)

#undef __global__
#define __global__ inline __attribute__((unused))  // kernels that the instance does not name are not compiled
#undef __align__
#define __align__(n) __attribute__((aligned(n)))

// To the compiler a variable of this thread, whose place it asks for at run time: __tls_get_addr below answers with the
// block's shared memory. Each variable asks for itself, so that they need not lie side by side.
#define __shared__ thread_local __attribute__((tls_model("global-dynamic")))
extern "C" __attribute__((visibility("hidden"), no_sanitize("thread"))) inline void* __tls_get_addr(void* where);
extern "C" __attribute__((visibility("hidden"), no_sanitize("thread"), used)) inline void* __tls_get_addr(void* where) {
  const auto* index = static_cast<const uint64_t*>(where);
  return emulator_shared_variable(index[0], index[1]);
}

#undef __constant__
#define __constant__ __attribute__((section("emulator_constant")))
#define __managed__ EMULATOR_REFUSE("__managed__ variables are not emulated: pass an array as an argument")
#define __cluster_dims__(...) EMULATOR_REFUSE("thread block clusters are not emulated")
#define __block_size__(...) EMULATOR_REFUSE("thread block clusters are not emulated")
#define __maxnreg__(...)
#define __inline_hint__
#define __restrict __restrict__
#define __device_builtin__
#define __builtin_assume(condition) ((condition) ? static_cast<void>(0) : __builtin_unreachable())
#define __assume(condition) __builtin_assume(condition)

// clang-format off
#define EMULATOR_NO_PTX "PTX is not emulated: inline asm has no meaning on a CPU. Use CUDA's functions, or the primitives of <mma.cuh> (ldmatrix, stmatrix, mma) and <async_copy.cuh> (cp.async)"
// clang-format on
#define asm EMULATOR_REFUSE(EMULATOR_NO_PTX)

#define EMULATOR_NO_TEXTURES "textures and surfaces are not emulated: pass an array as an argument"
#define cudaTextureObject_t EMULATOR_REFUSE(EMULATOR_NO_TEXTURES) int
#define cudaSurfaceObject_t EMULATOR_REFUSE(EMULATOR_NO_TEXTURES) int

#define __CUDACC__ 1
#define __NVCC__ 1
#define __CUDA_ARCH__ 800
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0
#define CUDART_VERSION 13000
#define CUDA_VERSION 13000
