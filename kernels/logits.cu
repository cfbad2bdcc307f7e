// logits: softcap and top-k of the language-model head's logits. softcap: z = cap · tanh(z / cap) in place. top_k: the
// k largest of each row, largest first, the lowest index first among equals.
//   shapes    z [M, V]   values, indices [M, k]   best [M, slices, k] and candidates [M, count]: keys, see below
//   types     z, values fp32; indices int; keys uint64
//   constant  none
//   template  kVec elements per access, divides M · V (softcap) or V (top_k); Source of the keys in {Logits, Keys}
//   launch    softcap: grid (ceil(M · V / (kVec · kSoftcapThreads))), block kSoftcapThreads
//             top_k: grid (ceil(count / kSlice), M), block kThreads, dynamic smem 2 · kThreads / 32 · 8 bytes; over the
//             logits (count = V), then over the keys that this leaves, until one slice gives values and indices
//   numerics  softcap: tanhf, accurate to 2 ulp, also near 0. top_k: -0 equals 0; NaN counts as larger than +inf, as in
//             NumPy and PyTorch; values are copied
//   cost      softcap reads and writes z once; top_k reads z once, then k keys of each slice, in k rounds
//   source    Gemma Team, arXiv:2408.00118 (softcap); Herf, Radix Tricks, 2001 (floats in the order of integers)
#include <platform.cuh>

#include "common/vec.cuh"

enum Source { Logits, Keys };

constexpr int kSoftcapThreads = 256;
constexpr int kThreads = 512;

template <int kVec>
__global__ void __launch_bounds__(kSoftcapThreads) softcap(float* __restrict__ z, int64_t vectors, float cap) {
  grid_dependency_wait();
  grid_dependency_release();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kSoftcapThreads + threadIdx.x;
  if (index >= vectors) return;
  auto v = Vec<float, kVec>::load(z + index * kVec);
#pragma unroll
  for (int i = 0; i < kVec; ++i) v.element[i] = cap * tanhf(v.element[i] / cap);
  v.store(z + index * kVec);
}

// A key orders (value, index) pairs: larger is better. 0 is below every pair.
__device__ __forceinline__ uint64_t key_of(float value, int index) {
  const uint32_t bits = bit_cast<uint32_t>(value + 0.0f);  // -0 becomes 0
  const uint32_t order = value != value ? 0xffffffffu : (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(order) << 32 | (0xffffffffu - index);
}
__device__ __forceinline__ int index_of(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }

__device__ __forceinline__ uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

template <int N>
__device__ __forceinline__ uint64_t largest_of(const uint64_t (&keys)[N]) {
  uint64_t key = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) key = larger(key, keys[i]);
  return key;
}

__device__ __forceinline__ uint64_t warp_largest(uint64_t key) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const uint32_t high = __shfl_xor_sync(kFullMask, static_cast<uint32_t>(key >> 32), step);
    const uint32_t low = __shfl_xor_sync(kFullMask, static_cast<uint32_t>(key), step);
    key = larger(key, static_cast<uint64_t>(high) << 32 | low);
  }
  return key;
}

template <Source kSource, int kVec>
__global__ void __launch_bounds__(kThreads, 1)
    top_k(float* __restrict__ values, int* __restrict__ indices, uint64_t* __restrict__ best, const float* z,
          const uint64_t* candidates, int count, int V, int k) {
  grid_dependency_wait();
  grid_dependency_release();
  constexpr int kWarps = kThreads / 32, kPerThread = 16, kSlice = kThreads * kPerThread;
  uint64_t* warp_best = shared_memory<uint64_t>();
  const int64_t row = blockIdx.y;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  uint64_t keys[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; i += kVec) {
    const int at = blockIdx.x * kSlice + i * kThreads + threadIdx.x * kVec;
    if constexpr (kSource == Logits) {
      Vec<float, kVec> v = {};
      if (at < count) v = Vec<float, kVec>::load(z + row * V + at);
#pragma unroll
      for (int j = 0; j < kVec; ++j) keys[i + j] = at < count ? key_of(v.element[j], at + j) : 0;
    } else {
      keys[i] = at < count ? candidates[row * count + at] : 0;
    }
  }
  uint64_t largest = largest_of(keys), of_warp = warp_largest(largest);
  for (int round = 0; round < k; ++round) {
    uint64_t* of_round = warp_best + round % 2 * kWarps;  // the other half may still be read
    if (lane == 0) of_round[warp] = of_warp;
    __syncthreads();  // every warp's largest is there
    uint64_t winner = 0;
#pragma unroll
    for (int w = 0; w < kWarps; w += 2) {
      const auto two = Vec<uint64_t, 2>::load(of_round + w);
      winner = larger(winner, larger(two.element[0], two.element[1]));
    }
    if (of_warp == winner) {  // no other warp's is: keys differ, but for the 0 of nothing
      if (largest == winner) {
#pragma unroll
        for (int i = 0; i < kPerThread; ++i)
          if (keys[i] == winner) keys[i] = 0;
        largest = largest_of(keys);
      }
      of_warp = warp_largest(largest);
    }
    if (threadIdx.x != 0) continue;
    if (gridDim.x > 1) {
      best[(row * gridDim.x + blockIdx.x) * k + round] = winner;
    } else {
      indices[row * k + round] = index_of(winner);
      values[row * k + round] = z[row * V + index_of(winner)];
    }
  }
}
