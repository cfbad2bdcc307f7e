#include <cooperative_groups.h>

namespace cg = cooperative_groups;

__global__ void large_tile(float* out) {
  auto tile = cg::tiled_partition<64>(cg::this_thread_block());
  out[threadIdx.x] = tile.thread_rank();
}
