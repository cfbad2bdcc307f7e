__global__ void too_much(int* out) {
  __shared__ int memory[64 * 1024];
  memory[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = memory[31 - threadIdx.x];
}
