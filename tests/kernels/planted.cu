// planted: one bug per kernel, at the line marked "bug: <kernel>", and beside it the correct form (ok_...).
#include <async_copy.cuh>
#include <mma.cuh>
#include <platform.cuh>

#include "common/vec.cuh"

__global__ void shared_race(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x] = in[threadIdx.x];                      // bug: shared_race
  out[threadIdx.x] = tile[(threadIdx.x + 1) % blockDim.x];  // bug: shared_race
}

__global__ void ok_shared(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[(threadIdx.x + 1) % blockDim.x];
}

__global__ void shared_overwrite(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[(threadIdx.x + 1) % blockDim.x];  // bug: shared_overwrite
  tile[threadIdx.x] = 0.0f;                                 // bug: shared_overwrite
}

__global__ void missing_syncwarp(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x] = in[threadIdx.x];       // bug: missing_syncwarp
  out[threadIdx.x] = tile[threadIdx.x ^ 1];  // bug: missing_syncwarp
}

__global__ void ok_syncwarp(float* out, const float* in) {
  float* tile = shared_memory<float>();
  for (int i = 0; i < 3; ++i) {
    tile[threadIdx.x] = in[threadIdx.x];
    __syncwarp();
    out[threadIdx.x] = tile[threadIdx.x ^ 1];
    __syncwarp();
  }
}

__global__ void syncwarp_across_warps(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x] = in[threadIdx.x];  // bug: syncwarp_across_warps
  __syncwarp();
  out[threadIdx.x] = tile[threadIdx.x ^ 32];  // bug: syncwarp_across_warps
}

__global__ void syncwarp_half(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x] = in[threadIdx.x];  // bug: syncwarp_half
  __syncwarp(threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffff0000u);
  out[threadIdx.x] = tile[threadIdx.x ^ 16];  // bug: syncwarp_half
}

// Warps 0 and 1 hand a tile over through named barriers.
__global__ void ok_named_barrier(float* out, const float* in) {
  float* tile = shared_memory<float>();
  if (threadIdx.x < 32) {
    tile[threadIdx.x] = in[threadIdx.x];
    named_barrier_arrive(1, 64);
  } else {
    named_barrier_sync(1, 64);
    out[threadIdx.x - 32] = tile[threadIdx.x - 32];
  }
}

__global__ void named_barrier_wrong_way(float* out, const float* in) {
  float* tile = shared_memory<float>();
  if (threadIdx.x < 32) {
    named_barrier_sync(1, 64);
    tile[threadIdx.x] = in[threadIdx.x];  // bug: named_barrier_wrong_way
  } else {
    named_barrier_arrive(1, 64);
    out[threadIdx.x - 32] = tile[threadIdx.x - 32];  // bug: named_barrier_wrong_way
  }
}

__global__ void global_race(float* out) {
  out[threadIdx.x / 2] = static_cast<float>(threadIdx.x);  // bug: global_race
}

__global__ void global_race_across_blocks(float* out) {
  out[threadIdx.x] = static_cast<float>(blockIdx.x);  // bug: global_race_across_blocks
}

__global__ void global_read_across_blocks(float* out) {
  const int next = (blockIdx.x + 1) % gridDim.x * blockDim.x + threadIdx.x;
  const float seen = out[next];
  out[blockIdx.x * blockDim.x + threadIdx.x] = seen + 1.0f;
}

__global__ void ok_global(float* out) {
  const int i = blockIdx.x * blockDim.x;
  out[i + threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  const float next = out[i + (threadIdx.x + 1) % blockDim.x];
  __syncthreads();
  out[i + threadIdx.x] = next;
}

__global__ void halves_of_a_word(bf16* out) {  // neighbouring 2-byte writes do not race
  out[threadIdx.x] = from_float<bf16>(static_cast<float>(threadIdx.x));
}

__global__ void bytes_of_a_word(uint8_t* out) { out[threadIdx.x] = static_cast<uint8_t>(threadIdx.x); }

__global__ void ok_atomic(int* count, float* sum) {
  atomicAdd(count, 1);
  atomicAdd(sum, 0.5f);
}

__global__ void atomic_and_plain(int* count) {
  if (threadIdx.x == 0)
    *count = 0;
  else
    atomicAdd(count, 1);  // bug: atomic_and_plain
}

// The last block to arrive adds up what all blocks have written.
template <bool kFence, bool kBarrier>
__global__ void last_block_sums(float* out, float* partial, int* arrived) {
  int* is_last = shared_memory<int>();
  partial[blockIdx.x * blockDim.x + threadIdx.x] = 1.0f;  // bug: last_block_sums
  if (kBarrier) __syncthreads();
  if (threadIdx.x == 0) {
    if (kFence) __threadfence();
    *is_last = atomicAdd(arrived, 1) == static_cast<int>(gridDim.x) - 1;
    if (kFence) __threadfence();
  }
  __syncthreads();
  if (*is_last == 0) return;
  float sum = 0.0f;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i * blockDim.x + threadIdx.x];  // bug: last_block_sums
  out[threadIdx.x] = sum;
}

__global__ void read_past_end(float* out, const float* in, int n) {
  out[threadIdx.x] = in[static_cast<int>(threadIdx.x) + n];  // bug: read_past_end
}

__global__ void write_past_end(float* out, int n) {
  out[threadIdx.x + n] = 1.0f;  // bug: write_past_end
}

__global__ void shared_past_end(float* out) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x + 1] = 0.0f;  // bug: shared_past_end
  out[threadIdx.x] = 0.0f;
}

__global__ void vector_past_end(float* out, const float* in) {
  Vec<float, 4>::load(in + 4 * threadIdx.x).store(out + 4 * threadIdx.x);  // bug: vector_past_end
}

__global__ void writes_const(float* out, const float* in) {
  const_cast<float*>(in)[threadIdx.x] = 0.0f;  // bug: writes_const
  out[threadIdx.x] = 0.0f;
}

__global__ void unwritten_shared(float* out) {
  float* tile = shared_memory<float>();
  if (threadIdx.x != 5) tile[threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];  // bug: unwritten_shared
}

template <class T>
__global__ void copy(T* out, const T* in) {
  out[threadIdx.x] = in[threadIdx.x];  // bug: copy
}

__global__ void divergent_barrier(float* out) {
  float* tile = shared_memory<float>();
  if (threadIdx.x < 16) {
    tile[threadIdx.x] = 1.0f;
    __syncthreads();
  } else {
    tile[threadIdx.x] = 2.0f;
    __syncthreads();  // bug: divergent_barrier
  }
  out[threadIdx.x] = tile[threadIdx.x ^ 16];
}

__device__ __forceinline__ void meet() { __syncthreads(); }

__global__ void divergent_helper(float* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = 1.0f;
    meet();
  } else {
    out[threadIdx.x] = 2.0f;
    meet();  // bug: divergent_helper
  }
}

__global__ void ok_uniform_branch(float* out, int n) {
  if (n > 0) {
    out[threadIdx.x] = 1.0f;
    __syncthreads();
  } else {
    out[threadIdx.x] = 2.0f;
    __syncthreads();
  }
  out[threadIdx.x ^ 1] = 3.0f;
}

__global__ void missing_barrier(float* out, int n) {
  if (static_cast<int>(threadIdx.x) >= n) return;
  out[threadIdx.x] = 1.0f;
  __syncthreads();  // bug: missing_barrier
}

__global__ void deadlock(float* out) {
  if (threadIdx.x < 32)
    named_barrier_sync(1, 64);  // bug: deadlock
  else
    named_barrier_sync(2, 64);
  out[threadIdx.x] = 1.0f;
}

__global__ void lonely_shuffle(float* out) {
  if (threadIdx.x < 8)
    out[threadIdx.x] = __shfl_sync(kFullMask, 1.0f, 0);  // bug: lonely_shuffle
  else
    __syncthreads();
}

// Lanes that have exited are not waited for.
__global__ void ok_vote_of_those_left(unsigned* out) {
  if (threadIdx.x >= 8) return;
  out[threadIdx.x] = __ballot_sync(kFullMask, threadIdx.x % 2 == 0);
}

__global__ void mixed_collectives(unsigned* out) {
  if (threadIdx.x == 3)
    out[0] = __ballot_sync(kFullMask, 1);
  else
    out[threadIdx.x + 1] = __shfl_sync(kFullMask, threadIdx.x, 0);  // bug: mixed_collectives
}

__global__ void inactive_source(float* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 20);  // bug: inactive_source
}

__global__ void not_in_mask(float* out) {
  out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 0);  // bug: not_in_mask
}

__global__ void missing_wait(float* out, const float* in) {
  float* tile = shared_memory<float>();
  async_copy<4>(tile + threadIdx.x, in + threadIdx.x);
  async_commit();
  out[threadIdx.x] = tile[threadIdx.x];  // bug: missing_wait
}

__global__ void short_wait(float* out, const float* in) {
  float* tile = shared_memory<float>();
  const int n = blockDim.x;
  for (int stage = 0; stage < 2; ++stage) {
    async_copy<4>(tile + stage * n + threadIdx.x, in + stage * n + threadIdx.x);
    async_commit();
  }
  async_wait<1>();
  out[threadIdx.x] = tile[threadIdx.x];
  out[n + threadIdx.x] = tile[n + threadIdx.x];  // bug: short_wait
}

__global__ void missing_commit(float* out, const float* in) {
  float* tile = shared_memory<float>();
  async_copy<4>(tile + threadIdx.x, in + threadIdx.x);
  async_wait<0>();
  out[threadIdx.x] = tile[threadIdx.x];  // bug: missing_commit
}

__global__ void wait_without_barrier(float* out, const float* in) {
  float* tile = shared_memory<float>();
  async_copy<4>(tile + threadIdx.x, in + threadIdx.x);  // bug: wait_without_barrier
  async_commit();
  async_wait<0>();
  out[threadIdx.x] = tile[threadIdx.x ^ 1];  // bug: wait_without_barrier
}

__global__ void ok_async(float* out, const float* in, int valid) {
  float* tile = shared_memory<float>();
  async_copy<16>(tile + 4 * threadIdx.x, in + 4 * threadIdx.x, valid);
  async_commit();
  async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void misaligned_vector(float* out, const float* in) {
  Vec<float, 4>::load(in + threadIdx.x + 1).store(out + 4 * threadIdx.x);  // bug: misaligned_vector
}

__global__ void misaligned_word(uint8_t* out, const uint8_t* in) {
  const int* words = reinterpret_cast<const int*>(in + 1);
  out[threadIdx.x] = static_cast<uint8_t>(words[threadIdx.x]);  // bug: misaligned_word
}

__global__ void misaligned_row(float* out) {
  uint32_t matrix[1];
  ldmatrix_x1(matrix, shared_memory<uint8_t>() + 8 + 16 * (threadIdx.x % 8));  // bug: misaligned_row
  out[threadIdx.x] = static_cast<float>(matrix[0]);
}

__global__ void matrix_of_global_memory(float* out, const float* in) {
  uint32_t matrix[1];
  ldmatrix_x1(matrix, in + 4 * (threadIdx.x % 8));  // bug: matrix_of_global_memory
  out[threadIdx.x] = static_cast<float>(matrix[0]);
}

__global__ void async_copy_to_global(float* out, const float* in) {
  async_copy<16>(out + 4 * threadIdx.x, in + 4 * threadIdx.x);  // bug: async_copy_to_global
}

__global__ void wild_pointer(float* out, uint64_t address) {
  out[threadIdx.x] = *reinterpret_cast<const float*>(address);  // bug: wild_pointer
}

__global__ void wild_async(float* out, uint64_t address) {
  async_copy<16>(shared_memory<float>() + 4 * threadIdx.x, reinterpret_cast<const float*>(address));
  async_commit();
  async_wait<0>();  // bug: wild_async
  out[threadIdx.x] = 0.0f;
}

__device__ __noinline__ float deep(float x, int levels) {
  volatile float frame[256];
  frame[levels % 256] = x;
  return levels == 0 ? x : deep(frame[levels % 256], levels - 1) + frame[levels % 256];  // bug: stack_overflow
}
__global__ void stack_overflow(float* out, int levels) { out[threadIdx.x] = deep(1.0f, levels); }

__global__ void divides_by_zero(int* out, int zero) {
  out[threadIdx.x] = static_cast<int>(threadIdx.x) / zero;  // bug: divides_by_zero
}

// An array of registers: neither shared nor global memory, so that no access is seen.
__global__ void local_overrun(float* out, int n) {
  float row[4] = {};
  for (int i = 0; i < n; ++i) row[i] = out[i];  // bug: local_overrun
  out[threadIdx.x] = row[0] + row[3];
}

// The last array of a struct, with a bound that the compiler knows.
__global__ void unrolled_overrun(float* out, const float* in) {
  auto v = Vec<float, 4>::load(in + 4 * threadIdx.x);
#pragma unroll
  for (int i = 0; i <= 4; ++i) v.element[i] *= 2.0f;  // bug: unrolled_overrun
  v.store(out + 4 * threadIdx.x);
}

__global__ void spins(volatile int* flag) {
  while (*flag == 0) {
  }
}

__global__ void traps(float* out) {
  if (threadIdx.x == 7) __trap();  // bug: traps
  out[threadIdx.x] = 0.0f;
}

__global__ void prints(float value) {
  if (threadIdx.x == 0) printf("block %d: %.2f\n", blockIdx.x, value);
}

__global__ void partial_warp_mma(float* out) {
  float d[4] = {};
  const uint32_t a[4] = {}, b[2] = {};
  mma_m16n8k16<bf16>(d, a, b);  // bug: partial_warp_mma
  out[threadIdx.x] = d[0];
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads, 2) bounded(float* out) {
  out[threadIdx.x] = 1.0f;
}

__global__ void sums(double* out, const float* a, int n, unsigned u, float x, long long big, bool flag) {
  out[threadIdx.x] = static_cast<double>(a[0]) + n + u + x + static_cast<double>(big) + (flag ? 1.0 : 0.0);
}
