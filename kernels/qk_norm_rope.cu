// qk_norm_rope: q = rope(norm(q)), k = rope(norm(k)), v = v or norm(v), head by head, from one packed projection; k and
// v are stored to rows of the cache.
//   shapes    x [N, (H + KH + KH) D], rows x_stride apart: H query heads, KH key heads, then at v_column KH value heads
//             (v_column may be the keys' own: V is then the raw K)   q [N, H, D]   k_cache, v_cache [rows, KH, D]
//             q_weight, k_weight [D]   cos, sin [P, D / 2]   positions, slots [N]; H or KH may be 0
//   types     T in {bf16, half}; cos and sin fp32, positions and slots int; sums and products fp32
//   constant  q_weight, k_weight, cos, sin, positions, slots
//   template  D in {64, 128, 256, 512}; kNorm of q and k in {Raw: none, Times: · w, OnePlus: · (1 + w)}; kNormV: v is
//             divided by its root mean square
//   launch    grid (ceil(N (H + 2 KH) / heads_per_block<D>)), block kThreads
//   index     token n turns by row positions[n] of cos and sin, its k and v go to row slots[n] of the caches, or
//             nowhere if that is negative; row n where there is no index
//   numerics  RMSNorm over D, then pairs (i, i + D / 2) with i < pairs turn, the others pass; rounded to T once
//   cost      reads x once (a K that is also V twice), writes q and the new rows of the caches once; a token's
//             angles and the weights are read again for every head, from L1
//   source    Su et al., arXiv:2104.09864, in HuggingFace's half-split form; Zhang and Sennrich, arXiv:1910.07467
#include <float16.cuh>
#include <platform.cuh>

#include "common/reduce.cuh"
#include "common/vec.cuh"

enum Norm { Raw, Times, OnePlus };

// Filled by Python, which reads the members here by name. x_stride and v_column in elements.
// __grid_constant__ at the kernel: without it the members take registers.
struct Params {
  int N, H, KH, x_stride, v_column, pairs;
  float eps;
};

constexpr int kThreads = 128;
constexpr int kVec = 8;  // 16 bytes of T
// A head's lanes each hold kVec elements of its lower half and the kVec that they are paired with.
template <int D>
constexpr int kLanes = D / (2 * kVec);
template <int D>
constexpr int heads_per_block = kThreads / kLanes<D>;

// values = v · scale · weight[i], element by element.
template <Norm kNorm, class T>
__device__ __forceinline__ void normalise(float (&values)[kVec], const Vec<T, kVec>& v, float scale, const T* weight) {
  Vec<T, kVec> w;
  const bool has_weight = kNorm != Raw && weight != nullptr;
  if (has_weight) w = Vec<T, kVec>::load(weight);
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    values[i] = to_float(v.element[i]) * scale;
    if (has_weight) values[i] *= (kNorm == OnePlus ? 1.0f : 0.0f) + to_float(w.element[i]);
  }
}

// Turns the pairs (low[i], high[i]) whose number, first + i, is below `pairs`.
__device__ __forceinline__ void rotate(float (&low)[kVec], float (&high)[kVec], const float* cos, const float* sin,
                                       int first, int pairs) {
#pragma unroll
  for (int part = 0; part < kVec; part += 4) {
    if (first + part >= pairs) return;
    const auto c = Vec<float, 4>::load(cos + first + part), s = Vec<float, 4>::load(sin + first + part);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (first + part + i >= pairs) return;
      const float x = low[part + i], y = high[part + i];
      low[part + i] = x * c.element[i] - y * s.element[i];
      high[part + i] = y * c.element[i] + x * s.element[i];
    }
  }
}

template <class T>
__device__ __forceinline__ void store_rounded(T* address, const float (&values)[kVec]) {
  Vec<T, kVec> v;
#pragma unroll
  for (int i = 0; i < kVec; ++i) v.element[i] = from_float<T>(values[i]);
  v.store(address);
}

template <class T, int D, Norm kNorm, bool kNormV>
__global__ void __launch_bounds__(kThreads, 8)
    qk_norm_rope(T* __restrict__ q, T* __restrict__ k_cache, T* __restrict__ v_cache, const T* x,
                 const T* __restrict__ q_weight, const T* __restrict__ k_weight, const float* __restrict__ cos,
                 const float* __restrict__ sin, const int* __restrict__ positions, const int* __restrict__ slots,
                 const __grid_constant__ Params params) {
  grid_dependency_wait();
  grid_dependency_release();
  using V = Vec<T, kVec>;
  constexpr int kHalf = D / 2;
  const int N = params.N, H = params.H, KH = params.KH;
  // The values of all tokens come after all queries and keys: warps that hold both would ask for half of the angles.
  const int turned = N * (H + KH), first = threadIdx.x % kLanes<D> * kVec;
  const int row = blockIdx.x * heads_per_block<D> + threadIdx.x / kLanes<D>;
  const bool exists = row < turned + N * KH, is_value = row >= turned;
  const int heads = is_value ? max(KH, 1) : H + KH, rest = is_value ? row - turned : row;
  const int token = rest / heads, head = rest - token * heads;
  const bool is_query = !is_value && head < H;

  V low = {}, high = {};  // lanes without a head take part in the sums
  if (exists) {
    const int column = (is_value ? params.v_column : 0) + head * D;
    const T* source = x + static_cast<int64_t>(token) * params.x_stride + column + first;
    low = V::load(source);
    high = V::load(source + kHalf);
  }
  float scale = 1.0f;
  if constexpr (kNorm != Raw || kNormV) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kVec; ++i)
      sum +=
          to_float(low.element[i]) * to_float(low.element[i]) + to_float(high.element[i]) * to_float(high.element[i]);
    const float rstd = rsqrtf(lanes_sum<kLanes<D>>(sum) / D + params.eps);
    if (is_value ? kNormV : kNorm != Raw) scale = rstd;
  }
  if (!exists) return;

  const T* weight = is_query ? q_weight : is_value ? nullptr : k_weight;
  float low_values[kVec], high_values[kVec];
  normalise<kNorm>(low_values, low, scale, weight == nullptr ? nullptr : weight + first);
  normalise<kNorm>(high_values, high, scale, weight == nullptr ? nullptr : weight + kHalf + first);
  if (!is_value) {
    const int64_t angles = static_cast<int64_t>(positions == nullptr ? token : positions[token]) * kHalf;
    rotate(low_values, high_values, cos + angles, sin + angles, first, params.pairs);
  }
  T* target;
  if (is_query) {
    target = q + (static_cast<int64_t>(token) * H + head) * D;
  } else {
    const int64_t slot = slots == nullptr ? token : slots[token];
    if (slot < 0) return;
    target = is_value ? v_cache + (slot * KH + head) * D : k_cache + (slot * KH + head - H) * D;
  }
  store_rounded(target + first, low_values);
  store_rounded(target + first + kHalf, high_values);
}
