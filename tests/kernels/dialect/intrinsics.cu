// CUDA's functions, one group per kernel, over all the values that a test gives.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

template <typename T>
struct Bits;
template <>
struct Bits<half> {
  static __device__ half make(unsigned short b) { return __ushort_as_half(b); }
  static __device__ unsigned short of(half x) { return __half_as_ushort(x); }
  static __device__ half round(float x, int how) {
    return how == 0   ? __float2half(x)
           : how == 1 ? __float2half_rz(x)
           : how == 2 ? __float2half_ru(x)
                      : __float2half_rd(x);
  }
};
template <>
struct Bits<__nv_bfloat16> {
  static __device__ __nv_bfloat16 make(unsigned short b) { return __ushort_as_bfloat16(b); }
  static __device__ unsigned short of(__nv_bfloat16 x) { return __bfloat16_as_ushort(x); }
  static __device__ __nv_bfloat16 round(float x, int how) {
    return how == 0   ? __float2bfloat16(x)
           : how == 1 ? __float2bfloat16_rz(x)
           : how == 2 ? __float2bfloat16_ru(x)
                      : __float2bfloat16_rd(x);
  }
};

// All 65536 values: out[k * 65536 + i] is function k of value i.
template <typename T>
__global__ void unary(unsigned short* out, float* wide) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  const T x = Bits<T>::make(static_cast<unsigned short>(i));
  const T results[] = {__hneg(x), __habs(x), hsqrt(x), hfloor(x), hceil(x), htrunc(x), hrint(x), hrcp(x), x + x, x * x};
  for (int k = 0; k < 10; ++k) out[k * 65536 + i] = Bits<T>::of(results[k]);
  wide[i] = static_cast<float>(x);
}

template <typename T>
__global__ void narrow(unsigned short* out, const float* in, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n)
    for (int how = 0; how < 4; ++how) out[how * n + i] = Bits<T>::of(Bits<T>::round(in[i], how));
}

template <typename T>
__global__ void binary(unsigned short* out, const unsigned short* a, const unsigned short* b, const unsigned short* c,
                       int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const T x = Bits<T>::make(a[i]), y = Bits<T>::make(b[i]), z = Bits<T>::make(c[i]);
  const T results[] = {x + y, x - y, x * y, x / y, __hfma(x, y, z), __hmax(x, y), __hmin(x, y)};
  for (int k = 0; k < 7; ++k) out[k * n + i] = Bits<T>::of(results[k]);
  out[7 * n + i] =
      (x < y) | (x <= y) << 1 | (x == y) << 2 | (x != y) << 3 | (x > y) << 4 | (x >= y) << 5 | __hisnan(x) << 6;
}

__global__ void integers(unsigned* out, const unsigned* a, const unsigned* b, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const unsigned x = a[i], y = b[i];
  const unsigned long long wide = static_cast<unsigned long long>(x) << 32 | y;
  const unsigned results[] = {
      static_cast<unsigned>(__popc(x)),
      static_cast<unsigned>(__clz(static_cast<int>(x))),
      static_cast<unsigned>(__ffs(static_cast<int>(x))),
      __brev(x),
      __byte_perm(x, y, y >> 3),
      __funnelshift_l(x, y, y % 40),
      __funnelshift_r(x, y, y % 40),
      __funnelshift_lc(x, y, y % 40),
      __funnelshift_rc(x, y, y % 40),
      static_cast<unsigned>(__mulhi(static_cast<int>(x), static_cast<int>(y))),
      __umulhi(x, y),
      static_cast<unsigned>(__popcll(wide)),
      static_cast<unsigned>(__clzll(static_cast<long long>(wide))),
      static_cast<unsigned>(__ffsll(static_cast<long long>(wide))),
      static_cast<unsigned>(__dp4a(static_cast<int>(x), static_cast<int>(y), 5)),
      __dp4a(x, y, 5u),
      static_cast<unsigned>(__mul24(static_cast<int>(x), static_cast<int>(y))),
      __umul24(x, y),
      __usad(x, y, 3u),
      static_cast<unsigned>(max(static_cast<int>(x), static_cast<int>(y))),
      min(x, y),
  };
  for (int k = 0; k < 21; ++k) out[k * n + i] = results[k];
}

__global__ void conversions(int* out, float* back, const float* in, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float x = in[i];
  out[i] = __float2int_rn(x);
  out[n + i] = __float2int_rz(x);
  out[2 * n + i] = __float2int_ru(x);
  out[3 * n + i] = __float2int_rd(x);
  out[4 * n + i] = static_cast<int>(__float2uint_rz(x));
  out[5 * n + i] = __float_as_int(x);
  back[i] = __int_as_float(__float_as_int(x));
  back[n + i] = __saturatef(x);
}

// Results rounded in each direction: nearest, to zero, up, down.
__global__ void directed(float* out, const float* a, const float* b, const float* c, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float x = a[i], y = b[i], z = c[i];
  const float results[] = {
      __fadd_rn(x, y),    __fadd_rz(x, y),      __fadd_ru(x, y),      __fadd_rd(x, y),      __fmul_rn(x, y),
      __fmul_rz(x, y),    __fmul_ru(x, y),      __fmul_rd(x, y),      __fdiv_rn(x, y),      __fdiv_rz(x, y),
      __fdiv_ru(x, y),    __fdiv_rd(x, y),      __fmaf_rn(x, y, z),   __fmaf_rz(x, y, z),   __fmaf_ru(x, y, z),
      __fmaf_rd(x, y, z), __fsqrt_rn(fabsf(x)), __fsqrt_rz(fabsf(x)), __fsqrt_ru(fabsf(x)), __fsqrt_rd(fabsf(x)),
  };
  for (int k = 0; k < 20; ++k) out[k * n + i] = results[k];
}

#define FUNCTIONS 30
__global__ void library(float* out, const float* in, const float* other, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float x = in[i], y = other[i];
  const float results[FUNCTIONS] = {
      expf(x),  exp2f(x), exp10f(x), expm1f(x), logf(x),   log2f(x),  log10f(x),  log1pf(x),    sinf(x),      cosf(x),
      tanf(x),  asinf(x), acosf(x),  atanf(x),  sinhf(x),  coshf(x),  tanhf(x),   asinhf(x),    acoshf(x),    atanhf(x),
      cbrtf(x), erff(x),  erfcf(x),  rsqrtf(x), sinpif(x), cospif(x), powf(x, y), atan2f(x, y), hypotf(x, y), exp(x),
  };
  for (int k = 0; k < FUNCTIONS; ++k) out[k * n + i] = results[k];
}

__global__ void fast(float* out, const float* in, const float* other, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float x = in[i], y = other[i];
  const float results[] = {__expf(x), __logf(x), __log2f(x),       __log10f(x),
                           __sinf(x), __cosf(x), __fdividef(x, y), __frcp_rn(x)};
  for (int k = 0; k < 8; ++k) out[k * n + i] = results[k];
}
