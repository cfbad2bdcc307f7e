__global__ void ptx_spelled_otherwise(unsigned* out) {
  unsigned lane;
  __asm__ volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  out[threadIdx.x] = lane;
}
