#include <cuda_bf16.h>

// Eight values at a time through one 16-byte register, the rest one by one.
__global__ void add_bf16(__nv_bfloat16* z, const __nv_bfloat16* x, const __nv_bfloat16* y, size_t n) {
  size_t i = (static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
  if (i + 8 <= n) {
    uint4 a = *reinterpret_cast<const uint4*>(x + i), b = *reinterpret_cast<const uint4*>(y + i), c;
    __nv_bfloat162 *pa = reinterpret_cast<__nv_bfloat162*>(&a), *pb = reinterpret_cast<__nv_bfloat162*>(&b),
                   *pc = reinterpret_cast<__nv_bfloat162*>(&c);
#pragma unroll
    for (int j = 0; j < 4; ++j) pc[j] = __hadd2(pa[j], pb[j]);
    *reinterpret_cast<uint4*>(z + i) = c;
  } else {
    for (; i < n; ++i) z[i] = __float2bfloat16(__bfloat162float(x[i]) + __bfloat162float(y[i]));
  }
}
