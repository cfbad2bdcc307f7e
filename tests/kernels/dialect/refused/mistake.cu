__global__ void mistake(float* out) {
  out[threadIdx.x] = undeclared;
}
