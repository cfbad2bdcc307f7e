#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdio>
#include <cuda/atomic>

namespace cg = cooperative_groups;

__global__ void warp_functions(unsigned* out, const int* in) {
  const int lane = threadIdx.x, x = in[lane];
  int all;
  const unsigned results[] = {
      __match_any_sync(0xffffffffu, x),
      __match_all_sync(0xffffffffu, x, &all),
      static_cast<unsigned>(all),
      __match_all_sync(0xffffffffu, 7, &all),
      static_cast<unsigned>(__reduce_add_sync(0xffffffffu, x)),
      static_cast<unsigned>(__reduce_min_sync(0xffffffffu, x)),
      static_cast<unsigned>(__reduce_max_sync(0xffffffffu, x)),
      __reduce_and_sync(0xffffffffu, static_cast<unsigned>(x)),
      __reduce_or_sync(0xffffffffu, static_cast<unsigned>(x)),
      __reduce_xor_sync(0xffffffffu, static_cast<unsigned>(x)),
      __activemask(),
      __ballot_sync(0xffffffffu, x > 0),
  };
  for (int k = 0; k < 12; ++k) out[32 * k + lane] = results[k];
}

__global__ void wide_shuffles(double* a, long long* b, half* c, __nv_bfloat162* d) {
  const int lane = threadIdx.x;
  a[lane] = __shfl_sync(0xffffffffu, a[lane], 31 - lane);
  b[lane] = __shfl_up_sync(0xffffffffu, b[lane], 1);
  c[lane] = __shfl_xor_sync(0xffffffffu, c[lane], 1);
  d[lane] = __shfl_down_sync(0xffffffffu, d[lane], 2);
}

__global__ void block_votes(int* out, int n) {
  for (int turn = 0; turn < 3; ++turn) {
    const int count = __syncthreads_count(threadIdx.x + turn < n);
    const int any = __syncthreads_or(threadIdx.x + turn == 0), all = __syncthreads_and(threadIdx.x + turn < n);
    out[turn * blockDim.x + threadIdx.x] = count * 4 + any * 2 + all;
  }
}

template <int kTile>
__global__ void tiles(int* out, const int* in) {
  auto tile = cg::tiled_partition<kTile>(cg::this_thread_block());
  const int i = cg::this_thread_block().thread_rank(), x = in[i];
  const int results[] = {
      static_cast<int>(tile.thread_rank()),
      static_cast<int>(tile.meta_group_rank()),
      static_cast<int>(tile.meta_group_size()),
      tile.shfl(x, 0),
      tile.shfl_down(x, 1),
      tile.shfl_xor(x, kTile / 2),
      static_cast<int>(tile.ballot(x > 0)),
      tile.any(x > 0),
      tile.all(x > 0),
      cg::reduce(tile, x, cg::plus<int>()),
      cg::reduce(tile, x, cg::greater<int>()),
      cg::inclusive_scan(tile, x),
      cg::exclusive_scan(tile, x, cg::plus<int>()),
  };
  for (int k = 0; k < 13; ++k) out[k * cg::this_thread_block().size() + i] = results[k];
}

__global__ void partitions(int* out, const int* in) {
  auto warp = cg::tiled_partition<32>(cg::this_thread_block());
  const cg::coalesced_group equal = cg::labeled_partition(warp, in[threadIdx.x]);
  out[threadIdx.x] = cg::reduce(equal, static_cast<int>(threadIdx.x), cg::plus<int>());
  out[32 + threadIdx.x] = static_cast<int>(equal.size());
  out[64 + threadIdx.x] = static_cast<int>(equal.thread_rank());
}

__global__ void atomics(int* i, unsigned* u, unsigned long long* w, float* f, double* d, __nv_bfloat16* b, half2* h) {
  atomicSub(&i[0], 2);
  atomicMin(&i[1], -static_cast<int>(threadIdx.x));
  atomicMax_block(&i[2], threadIdx.x);
  atomicXor(&i[3], 1 << (threadIdx.x % 31));
  atomicAdd_system(&i[4], 1);
  atomicInc(&u[0], 9);
  atomicDec(&u[1], 9);
  atomicAnd(&u[2], ~(1u << threadIdx.x));
  atomicOr(&u[3], 1u << threadIdx.x);
  atomicAdd(&w[0], 1ull << 40);
  atomicMax(&w[1], static_cast<unsigned long long>(threadIdx.x) << 33);
  atomicAdd(f, 1);
  atomicAdd(d, 0.5);
  atomicAdd(b, __float2bfloat16(1.0f));
  atomicAdd(h, __floats2half2_rn(1.0f, 2.0f));
}

__global__ void short_swap(unsigned short* s, int* won) {
  if (atomicCAS(s, static_cast<unsigned short>(7), static_cast<unsigned short>(threadIdx.x + 100)) == 7)
    atomicAdd(won, 1);
}

// A block hands its sum to the next by a flag with release and acquire.
__global__ void last_by_reference(float* partial, unsigned* count, float* out) {
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = blockIdx.x + 1.0f;
    cuda::atomic_ref<unsigned, cuda::thread_scope_device> tickets(*count);
    is_last = tickets.fetch_add(1u, cuda::std::memory_order_acq_rel) == gridDim.x - 1;
    if (is_last) {
      float sum = 0;
      for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];
      *out = sum;
    }
  }
}

__global__ void last_by_relaxed_reference(float* partial, unsigned* count, float* out) {
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = blockIdx.x + 1.0f;  // bug: last_by_relaxed_reference
    cuda::atomic_ref<unsigned, cuda::thread_scope_device> tickets(*count);
    if (tickets.fetch_add(1u, cuda::std::memory_order_relaxed) == gridDim.x - 1) {
      float sum = 0;
      for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];  // bug: last_by_relaxed_reference
      *out = sum;
    }
  }
}

// A thread waits for another of its block.
__global__ void waits_with_nanosleep(int* out) {
  __shared__ int turn;
  if (threadIdx.x == 0) turn = 0;
  __syncthreads();
  while (atomicAdd(&turn, 0) != threadIdx.x) __nanosleep(20);
  out[threadIdx.x] = atomicAdd(&turn, 1);
}

__global__ void prints(long long* out) {
  const long long start = clock64();
  if (threadIdx.x == 1) printf("lane %d of %s: %.1f\n", threadIdx.x, "warp", 0.5f);
  out[threadIdx.x] = clock64() - start;
}

__global__ void grid_shape(unsigned* out) {
  const dim3 block = blockDim, tiles(3, 2);
  const cg::grid_group grid = cg::this_grid();
  const unsigned long long rank = grid.thread_rank();
  out[rank] = static_cast<unsigned>(grid.size()) * 100 + block.x * block.y * tiles.x * tiles.y * tiles.z + warpSize;
}

__global__ void copies(char* out, const char* in, int n) {
  if (threadIdx.x != 0) return;
  memcpy(out, in, n);
  memset(out + n, 5, n);
  float word;
  memcpy(&word, in, sizeof(word));
  __builtin_assume(n > 0);
  memcpy(out + 2 * n, &word, sizeof(word));
}
