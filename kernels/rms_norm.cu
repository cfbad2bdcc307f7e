// rms_norm: y = h · rsqrt(mean(h²) + eps) · weight over each row, where h is x or, fused in, a residual plus x.
//   shapes    y, h, x, residual [S, E]   weight, post_weight [E]   all rows contiguous; h may be residual
//   types     T in {bf16, half, float}; sums and products fp32
//   constant  weight, post_weight
//   template  kVec elements per access, divides E; kWeight in {Times: w, OnePlus: 1 + w, Unit: 1};
//             kBefore in {Nothing: h = x, Add: h = (residual + x) · layer_scalar,
//             NormAdd: h = (residual + rms_norm(x) · post_weight) · layer_scalar}; kThreads
//   launch    grid (S), block kThreads, dynamic smem ceil(kThreads / 128) · 32 + E · sizeof(T) bytes
//   numerics  h and y are each rounded to T once; y is computed from the rounded h
//   cost      reads x, residual and weights once, writes y and h once; a null h or y is not written
//   source    Zhang and Sennrich, arXiv:1910.07467
#include <float16.cuh>
#include <platform.cuh>

#include "common/reduce.cuh"
#include "common/vec.cuh"

enum Weight { Times, OnePlus, Unit };
enum Before { Nothing, Add, NormAdd };

// v · scale · weight[e], element by element, in fp32.
template <Weight kWeight, class T, int kVec>
__device__ __forceinline__ void normalise(float (&out)[kVec], const Vec<T, kVec>& v, float scale, const T* weight) {
  Vec<T, kVec> w;
  if constexpr (kWeight != Unit) w = Vec<T, kVec>::load(weight);
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    out[i] = to_float(v.element[i]) * scale;
    if constexpr (kWeight == Times) out[i] *= to_float(w.element[i]);
    if constexpr (kWeight == OnePlus) out[i] *= 1.0f + to_float(w.element[i]);
  }
}

template <class T, int kVec, Weight kWeight, Before kBefore, int kThreads>
__global__ void __launch_bounds__(kThreads)
    rms_norm(T* __restrict__ y, T* h, const T* x, const T* residual, const T* __restrict__ weight,
             const T* __restrict__ post_weight, int E, float eps, float layer_scalar) {
  grid_dependency_wait();
  grid_dependency_release();
  using V = Vec<T, kVec>;
  constexpr int kPartials = (kThreads + 127) / 128 * 4;  // one per warp, and the tile behind stays aligned
  float* partial_tile = shared_memory<float>();  // two areas: the second sum starts while others still read the first
  T* row_tile = shared_memory<T>(2 * kPartials * sizeof(float));  // a thread reads back only what it wrote: no barrier
  const long long row = static_cast<long long>(blockIdx.x) * E;
  const int first = threadIdx.x * kVec, stride = kThreads * kVec;

  float scale = 1.0f;
  if constexpr (kBefore == NormAdd) {
    float sum = 0.0f;
#pragma unroll 1  // a row takes one to three steps: unrolled, they cost registers and win nothing
    for (int e = first; e < E; e += stride) {
      const V v = V::load(x + row + e);
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum += to_float(v.element[i]) * to_float(v.element[i]);
      v.store(row_tile + e);
    }
    scale = rsqrtf(block_sum<kThreads>(sum, partial_tile + kPartials) / E + eps);
  }

  float sum = 0.0f;
#pragma unroll 1
  for (int e = first; e < E; e += stride) {
    V v = V::load(kBefore == NormAdd ? row_tile + e : x + row + e);
    if constexpr (kBefore != Nothing) {
      const V r = V::load(residual + row + e);
      float branch[kVec];
      normalise<kBefore == NormAdd ? kWeight : Unit>(branch, v, scale, post_weight + e);
#pragma unroll
      for (int i = 0; i < kVec; ++i) v.element[i] = from_float<T>((to_float(r.element[i]) + branch[i]) * layer_scalar);
      if (h != nullptr) v.store(h + row + e);
    }
#pragma unroll
    for (int i = 0; i < kVec; ++i) sum += to_float(v.element[i]) * to_float(v.element[i]);
    v.store(row_tile + e);
  }
  if (y == nullptr) return;
  const float rstd = rsqrtf(block_sum<kThreads>(sum, partial_tile) / E + eps);

#pragma unroll 1
  for (int e = first; e < E; e += stride) {
    V v = V::load(row_tile + e);
    float normed[kVec];
    normalise<kWeight>(normed, v, rstd, weight + e);
#pragma unroll
    for (int i = 0; i < kVec; ++i) v.element[i] = from_float<T>(normed[i]);
    v.store(y + row + e);
  }
}
