// gelu(z) = ½ z (1 + tanh u) = z / (1 + exp(-2 u)), u = √(2/π) (z + 0.044715 z³): one exponential, and no cancellation
// where z is negative. exp2_approx and the division are off by 2^-21 at most.
#pragma once
#include <approx.cuh>

__device__ __forceinline__ float gelu_tanh(float z) {
  constexpr float kLinear = -2.302208198f;  // -2 √(2/π) / ln 2
  const float exponent = z * (kLinear + kLinear * 0.044715f * (z * z));
  return __fdividef(z, 1.0f + exp2_approx(exponent));  // 0 where the exponential is infinite
}
