#include <cooperative_groups.h>

__global__ void grid_sync(float* out) {
  out[blockIdx.x] = 1;
  cooperative_groups::this_grid().sync();
  out[blockIdx.x] += out[0];
}
