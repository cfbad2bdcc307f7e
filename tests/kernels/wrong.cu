// wrong: kernels that give a wrong result, and none, for the check-up's own test.
#include <platform.cuh>

__global__ void copy_all_but_one(float* out, const float* in, int n) {
  if (threadIdx.x + 1 < n) out[threadIdx.x] = in[threadIdx.x];
}

__global__ void wait_for_ever(volatile int* flag) {
  while (*flag == 0) {
  }
}
