// Logit policies: from a raw score q · k to the logit of the softmax, which takes exp2(exponent · (logit - max)).
// exponent, scale and cap are computed on the host, as stated at each policy.
#pragma once
#include <approx.cuh>
#include <float16.cuh>

// tanh(x) to an absolute error of 2^-20: tanh_approx, at 2^-11, would move a logit near a cap of 50 by 0.02.
__device__ __forceinline__ float accurate_tanh(float x) {
  constexpr float kTwoLog2E = 2.8853900817779268f;
  return fmaf(-2.0f, reciprocal_approx(exp2_approx(x * kTwoLog2E) + 1.0f), 1.0f);
}

struct LogitFactors {
  float exponent, scale, cap;
};

struct Plain : LogitFactors {  // exponent: scale · log2(e)
  using Element = float;
  static constexpr bool kIsScore = true, kHasBias = false;
  __device__ __forceinline__ float logit(float score, float) const { return score; }
};

struct SoftCap : LogitFactors {  // exponent: cap · log2(e), scale: scale / cap
  using Element = float;
  static constexpr bool kIsScore = false, kHasBias = false;
  __device__ __forceinline__ float logit(float score, float) const { return accurate_tanh(score * scale); }
};

template <class T>
struct Bias : LogitFactors {  // exponent: log2(e), scale: scale
  using Element = T;
  static constexpr bool kIsScore = false, kHasBias = true;
  __device__ __forceinline__ float logit(float score, float bias) const { return fmaf(score, scale, bias); }
};

template <class T>
struct SoftCapBias : LogitFactors {  // exponent: log2(e), scale: scale / cap, cap: cap
  using Element = T;
  static constexpr bool kIsScore = false, kHasBias = true;
  __device__ __forceinline__ float logit(float score, float bias) const {
    return fmaf(accurate_tanh(score * scale), cap, bias);
  }
};
