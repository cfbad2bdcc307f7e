// embed: x[n] = table[ids[n]] · scale or, where feature_index[n] >= 0, features[feature_index[n]] unscaled.
//   shapes    x [N, E]   ids, feature_index [N] int   table [V, E]   features [M, E]   all rows contiguous
//   types     T in {bf16, half}
//   constant  none: earlier kernels may have written ids, table and features
//   template  kVec elements per access, divides E
//   launch    grid (N), block any number of threads up to kMostThreads
//   index     where feature_index[n] is not negative ids[n] is not read; without features all rows are of the table
//   numerics  scale is rounded to T, then each product, as HuggingFace does; features are copied
//   cost      reads N rows and their indices, writes x once
//   source    Gemma Team, arXiv:2403.08295, section 2 (embeddings scaled by √E)
#include <float16.cuh>
#include <platform.cuh>

#include "common/vec.cuh"

constexpr int kMostThreads = 256;

template <class T, int kVec>
__global__ void __launch_bounds__(kMostThreads) embed(T* __restrict__ x, const int* ids, const T* table,
                                                      const T* features, const int* feature_index, int E, float scale) {
  grid_dependency_wait();
  grid_dependency_release();
  using V = Vec<T, kVec>;
  const int64_t token = blockIdx.x;
  const int feature = features == nullptr ? -1 : feature_index[token];
  const bool is_token = feature < 0;
  const T* source =
      is_token ? table + static_cast<int64_t>(ids[token]) * E : features + static_cast<int64_t>(feature) * E;
  const float factor = is_token ? to_float(from_float<T>(scale)) : 1.0f;
  for (int e = threadIdx.x * kVec; e < E; e += blockDim.x * kVec) {
    V v = V::load(source + e);
#pragma unroll
    for (int i = 0; i < kVec; ++i) v.element[i] = from_float<T>(to_float(v.element[i]) * factor);
    v.store(x + token * E + e);
  }
}
