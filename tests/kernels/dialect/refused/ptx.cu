__device__ unsigned lane_id() {
  unsigned lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

__global__ void ptx(unsigned* out) { out[threadIdx.x] = lane_id(); }
