// Online softmax over rows of mma accumulators: the 4 lanes of a quad hold the same rows, two of each fragment.
#pragma once
#include <approx.cuh>
#include <platform.cuh>

#include "common/tile.cuh"

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kFullMask, x, 1));
  return fmaxf(x, __shfl_xor_sync(kFullMask, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(kFullMask, x, 1);
  return x + __shfl_xor_sync(kFullMask, x, 2);
}

// Log of a row's sum of exponentials, sum · exp2(factor · max); -inf for a row without any.
__device__ __forceinline__ float log_sum_exp(float max, float sum, float factor) {
  constexpr float kLn2 = 0.69314718055994531f;
  return fmaf(max, factor * kLn2, log2f(sum) * kLn2);  // factor · max alone may be infinite
}

// Running maximum of each row of kTilesM fragments, and this lane's part of the row's sum of exponentials. A maximum is
// replaced only when a score exceeds it by more than a factor of 2^kRescaleThreshold, because replacing it rescales
// every accumulator; until then exponentials exceed 1, which the final division cancels. Each row decides by its own
// scores alone, so its bits do not depend on neighbouring rows.
template <int kTilesM>
struct OnlineSoftmax {
  static constexpr float kRescaleThreshold = 8.0f, kFar = 4096.0f;
  float max[kTilesM][2], sum[kTilesM][2];

  __device__ __forceinline__ OnlineSoftmax() {
    each_row<kTilesM>([&](int m, int half) { max[m][half] = -kInf, sum[m][half] = 0.0f; });
  }

  // Replaces the maxima that the scores exceed by too much. Returns whether any row of the warp changed: its sums have
  // then been multiplied by `correction`, and the caller multiplies its other accumulators.
  template <int kTilesN>
  __device__ __forceinline__ bool update_max(const float (&scores)[kTilesM][kTilesN][4], float factor,
                                             float (&correction)[kTilesM][2]) {
    bool any = false;
    each_row<kTilesM>([&](int m, int half) {
      float top = max[m][half];
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) top = fmaxf(top, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
      top = quad_max(top);
      const bool changes = (top - max[m][half]) * factor > kRescaleThreshold;  // false while both are -inf
      correction[m][half] = changes ? exp2_approx((max[m][half] - top) * factor) : 1.0f;
      sum[m][half] *= correction[m][half];
      if (changes) max[m][half] = top;
      any |= changes;
    });
    return __any_sync(kFullMask, any);
  }

  // scores = exp2(factor · (score - max)), 0 for a score of -inf; adds them to the sums. One fused multiply-add each,
  // except where factor · max is so large that its rounding error would show.
  template <int kTilesN>
  __device__ __forceinline__ void exponentiate(float (&scores)[kTilesM][kTilesN][4], float factor) {
    float shift[kTilesM][2];
    bool any_far = false;
    each_row<kTilesM>([&](int m, int half) {
      shift[m][half] = max[m][half] == -kInf ? 0.0f : max[m][half] * factor;
      any_far |= fabsf(shift[m][half]) > kFar;
    });
    if (__any_sync(kFullMask, any_far)) subtract_far(scores, shift);
    each_row<kTilesM>([&](int m, int half) {
      float tile_sum = 0.0f;
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores[m][n][i] = exp2_approx(fmaf(scores[m][n][i], factor, -shift[m][half]));
          tile_sum += scores[m][n][i];
        }
      }
      sum[m][half] += tile_sum;
    });
  }

  // In rows whose shift is far from zero, or infinite: subtracts the maximum from the scores, and sets the shift to 0.
  template <int kTilesN>
  __device__ __forceinline__ void subtract_far(float (&scores)[kTilesM][kTilesN][4], float (&shift)[kTilesM][2]) const {
    each_row<kTilesM>([&](int m, int half) {
      const bool is_far = fabsf(shift[m][half]) > kFar;
      const float subtracted = is_far ? max[m][half] : 0.0f;
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) scores[m][n][2 * half] -= subtracted, scores[m][n][2 * half + 1] -= subtracted;
      if (is_far) shift[m][half] = 0.0f;
    });
  }
};
