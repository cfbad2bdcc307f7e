// Kernels that say where they run, and that reach far: for launches of chosen blocks, and for sparse memory.
#include <platform.cuh>

__device__ __forceinline__ int64_t block_number() {
  return blockIdx.x + static_cast<int64_t>(gridDim.x) * (blockIdx.y + static_cast<int64_t>(gridDim.y) * blockIdx.z);
}

__global__ void place(int* out) {
  if (threadIdx.x == 0) out[block_number()] = static_cast<int>(block_number());
}

// Neighbouring blocks write one element.
__global__ void shared_by_two(int* out) {
  if (threadIdx.x == 0) out[block_number() / 2] = 1;
}

template <class T>
__global__ void move_one(T* out, const T* in, int64_t to, int64_t from) {
  if (threadIdx.x == 0) out[to] = in[from];
}
