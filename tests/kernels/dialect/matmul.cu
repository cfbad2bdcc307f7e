#include <cuda_fp16.h>

template <int BLOCK_SIZE>
__global__ void matrixMul(float* C, float* A, float* B, int wA, int wB) {
  int bx = blockIdx.x, by = blockIdx.y;
  int tx = threadIdx.x, ty = threadIdx.y;
  int aBegin = wA * BLOCK_SIZE * by, aEnd = aBegin + wA - 1;
  int bBegin = BLOCK_SIZE * bx;
  float Csub = 0;
  for (int a = aBegin, b = bBegin; a <= aEnd; a += BLOCK_SIZE, b += BLOCK_SIZE * wB) {
    __shared__ float As[BLOCK_SIZE][BLOCK_SIZE];
    __shared__ float Bs[BLOCK_SIZE][BLOCK_SIZE];
    As[ty][tx] = A[a + wA * ty + tx];
    Bs[ty][tx] = B[b + wB * ty + tx];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < BLOCK_SIZE; ++k) Csub += As[ty][k] * Bs[k][tx];
    __syncthreads();
  }
  C[wB * BLOCK_SIZE * by + BLOCK_SIZE * bx + wB * ty + tx] = Csub;
}

namespace tiled {

constexpr int BM = 64, BN = 64, BK = 8, TM = 4, TN = 4;

// 4 x 4 results per thread, loads and stores of 16 bytes.
__global__ void __launch_bounds__((BM / TM) * (BN / TN), 1)
    sgemm_vectorized(int M, int N, int K, const float* A, const float* B, float* C) {
  __shared__ __align__(16) float As[BK * BM];
  __shared__ __align__(16) float Bs[BK * BN];
  const uint cRow = blockIdx.y, cCol = blockIdx.x;
  const int threadCol = threadIdx.x % (BN / TN);
  const int threadRow = threadIdx.x / (BN / TN);
  A += cRow * BM * K;
  B += cCol * BN;
  C += cRow * BM * N + cCol * BN;
  const uint rowA = threadIdx.x / (BK / 4), colA = threadIdx.x % (BK / 4);
  const uint rowB = threadIdx.x / (BN / 4), colB = threadIdx.x % (BN / 4);
  float sums[TM * TN] = {0.0f};
  for (int k = 0; k < K; k += BK) {
    if (rowA < BM) {
      float4 tmp = reinterpret_cast<const float4*>(&A[rowA * K + colA * 4])[0];
      As[(colA * 4 + 0) * BM + rowA] = tmp.x;
      As[(colA * 4 + 1) * BM + rowA] = tmp.y;
      As[(colA * 4 + 2) * BM + rowA] = tmp.z;
      As[(colA * 4 + 3) * BM + rowA] = tmp.w;
    }
    if (rowB < BK)
      reinterpret_cast<float4*>(&Bs[rowB * BN + colB * 4])[0] =
          reinterpret_cast<const float4*>(&B[rowB * N + colB * 4])[0];
    __syncthreads();
    A += BK;
    B += BK * N;
    for (int dot = 0; dot < BK; ++dot) {
      float4 m = *reinterpret_cast<float4*>(&As[dot * BM + threadRow * TM]);
      float4 n = *reinterpret_cast<float4*>(&Bs[dot * BN + threadCol * TN]);
      const float regM[4] = {m.x, m.y, m.z, m.w}, regN[4] = {n.x, n.y, n.z, n.w};
      for (int i = 0; i < TM; ++i)
        for (int j = 0; j < TN; ++j) sums[i * TN + j] = fmaf(regM[i], regN[j], sums[i * TN + j]);
    }
    __syncthreads();
  }
  for (int i = 0; i < TM; ++i) {
    float4 v = make_float4(sums[i * TN], sums[i * TN + 1], sums[i * TN + 2], sums[i * TN + 3]);
    reinterpret_cast<float4*>(&C[(threadRow * TM + i) * N + threadCol * TN])[0] = v;
  }
}

}  // namespace tiled

__global__ void hgemv(half* y, const half2* __restrict__ A, const half2* __restrict__ x, int K2) {
  const half2* row = A + blockIdx.x * K2;
  half2 acc = __float2half2_rn(0.f);
  for (int k = threadIdx.x; k < K2; k += 32) acc = __hfma2(row[k], x[k], acc);
  half sum = __hadd(__low2half(acc), __high2half(acc));
  for (int offset = 16; offset > 0; offset >>= 1) sum += __shfl_down_sync(0xffffffff, sum, offset);
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
}
