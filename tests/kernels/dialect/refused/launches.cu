#include <cuda_runtime.h>

__global__ void launched(float* out) { out[threadIdx.x] = 1; }

int main() {
  float* out;
  cudaMalloc(&out, 128);
  launched<<<1, 32>>>(out);
  return cudaDeviceSynchronize();
}
