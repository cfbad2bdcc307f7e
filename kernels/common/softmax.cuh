// Online softmax over rows in mma accumulator layout: lanes 4 i to 4 i + 3 (a quad) hold rows i and i + 8 of a 16-row
// tile.
#pragma once
#include <approx.cuh>
#include <platform.cuh>

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

// Of the rows of kTiles 16-row tiles: the maximum that exponents are taken against, and this lane's part of the row
// sums. A maximum follows the scores only when they pass it by a factor of 2^kSlack, since following means to rescale
// every accumulator; until then exponentials exceed 1, but the final division cancels that. Whether a row follows
// depends on that row alone, so its bits do not depend on its neighbours.
template <int kTiles>
struct OnlineSoftmax {
  static constexpr float kSlack = 8.0f, kFar = 4096.0f;
  float max[kTiles][2], sum[kTiles][2];

  __device__ __forceinline__ OnlineSoftmax() {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) max[m][0] = max[m][1] = -kInf, sum[m][0] = sum[m][1] = 0.0f;
  }

  // Lets the maxima follow the scores. Returns whether some row of the warp did: then the sums have been multiplied by
  // `correction`, and what else was accumulated so far is to be.
  template <int kColumns>
  __device__ __forceinline__ bool follow(const float (&scores)[kTiles][kColumns][4], float factor,
                                         float (&correction)[kTiles][2]) {
    bool any = false;
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = max[m][half];
#pragma unroll
        for (int n = 0; n < kColumns; ++n) top = fmaxf(top, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
        top = quad_max(top);
        const bool follows = (top - max[m][half]) * factor > kSlack;  // false while both are -inf
        correction[m][half] = follows ? exp2_approx((max[m][half] - top) * factor) : 1.0f;
        sum[m][half] *= correction[m][half];
        if (follows) max[m][half] = top;
        any |= follows;
      }
    }
    return __any_sync(kFullMask, any);
  }

  // Turns scores into exp2(factor · (score - max)), 0 for a score of -inf, and adds them to the sums. One fused step,
  // as long as factor · max is so near that its rounding does not count.
  template <int kColumns>
  __device__ __forceinline__ void exponentiate(float (&scores)[kTiles][kColumns][4], float factor) {
    float shift[kTiles][2];
    bool any_far = false;
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        shift[m][half] = max[m][half] == -kInf ? 0.0f : max[m][half] * factor;
        any_far |= fabsf(shift[m][half]) > kFar;
      }
    }
    if (__any_sync(kFullMask, any_far)) subtract_far(scores, shift);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float tile_sum = 0.0f;
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            scores[m][n][i] = exp2_approx(fmaf(scores[m][n][i], factor, -shift[m][half]));
            tile_sum += scores[m][n][i];
          }
        }
        sum[m][half] += tile_sum;
      }
    }
  }

  // Takes the maximum from the scores of rows whose shift is far from zero, or infinite; 0 is left to shift by.
  template <int kColumns>
  __device__ __forceinline__ void subtract_far(float (&scores)[kTiles][kColumns][4], float (&shift)[kTiles][2]) const {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const bool is_far = fabsf(shift[m][half]) > kFar;
        const float taken = is_far ? max[m][half] : 0.0f;
#pragma unroll
        for (int n = 0; n < kColumns; ++n) scores[m][n][2 * half] -= taken, scores[m][n][2 * half + 1] -= taken;
        if (is_far) shift[m][half] = 0.0f;
      }
    }
  }
};
