// Twins of warps: __syncwarp orders the lanes of its mask; shuffles and votes bring values and order no memory. See
// twins_barriers.cu.
#include <platform.cuh>

// --- what is no barrier ---

__global__ void shuffle_as_barrier(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x] = in[threadIdx.x];  // bug: shuffle_as_barrier
  const float first = __shfl_sync(kFullMask, in[threadIdx.x], 0);
  out[threadIdx.x] = first + tile[threadIdx.x ^ 1];  // bug: shuffle_as_barrier
}

__global__ void ok_shuffle_and_barrier(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x] = in[threadIdx.x];
  const float first = __shfl_sync(kFullMask, in[threadIdx.x], 0);
  __syncwarp();
  out[threadIdx.x] = first + tile[threadIdx.x ^ 1];
}

__global__ void ballot_as_barrier(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x] = in[threadIdx.x];  // bug: ballot_as_barrier
  const int count = __popc(__ballot_sync(kFullMask, 1)) - 32;
  out[threadIdx.x] = static_cast<float>(count) + tile[threadIdx.x ^ 1];  // bug: ballot_as_barrier
}

__global__ void ok_ballot_and_barrier(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x] = in[threadIdx.x];
  const int count = __popc(__ballot_sync(kFullMask, 1)) - 32;
  __syncwarp();
  out[threadIdx.x] = static_cast<float>(count) + tile[threadIdx.x ^ 1];
}

// A fence orders one thread's accesses; alone it lets no other thread know.
__global__ void fence_as_barrier(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x] = in[threadIdx.x];  // bug: fence_as_barrier
  __threadfence_block();
  out[threadIdx.x] = tile[threadIdx.x ^ 1];  // bug: fence_as_barrier
}

// --- masks ---

// The mask leaves out lanes that read.
__global__ void mask_without_readers(float* out, const float* in) {
  float* tile = shared_memory<float>();
  if (threadIdx.x < 16) tile[threadIdx.x] = in[threadIdx.x];  // bug: mask_without_readers
  if (threadIdx.x < 24) __syncwarp(0x00ffffffu);
  out[threadIdx.x] = tile[threadIdx.x % 16];  // bug: mask_without_readers
}

__global__ void ok_mask_with_readers(float* out, const float* in) {
  float* tile = shared_memory<float>();
  if (threadIdx.x < 16) tile[threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  out[threadIdx.x] = tile[threadIdx.x % 16];
}

// Groups of eight lanes synchronize among themselves, then read another group's values.
__global__ void group_reads_the_next(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x] = in[threadIdx.x];  // bug: group_reads_the_next
  __syncwarp(0xffu << (threadIdx.x & ~7u));
  out[threadIdx.x] = tile[(threadIdx.x + 8) % 32];  // bug: group_reads_the_next
}

__global__ void ok_group_reads_its_own(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x] = in[threadIdx.x];
  __syncwarp(0xffu << (threadIdx.x & ~7u));
  out[threadIdx.x] = tile[threadIdx.x ^ 7];
}

// Lanes that are not in the mask that they pass.
__global__ void mask_without_the_caller(float* out, const float* in) {
  out[threadIdx.x] = in[threadIdx.x];
  __syncwarp(0x0000ffffu);  // bug: mask_without_the_caller
}

__global__ void ok_mask_with_the_caller(float* out, const float* in) {
  out[threadIdx.x] = in[threadIdx.x];
  __syncwarp(threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u);
}

// One mask from two places in the code: since Volta lanes meet by mask.
__global__ void ok_syncwarp_from_two_places(float* out, const float* in) {
  float* tile = shared_memory<float>();
  if (threadIdx.x < 16) {
    tile[threadIdx.x] = in[threadIdx.x];
    __syncwarp();
  } else {
    tile[threadIdx.x] = in[threadIdx.x];
    __syncwarp();
  }
  out[threadIdx.x] = tile[threadIdx.x ^ 16];
}

// Each side of the branch synchronizes itself only.
__global__ void syncwarp_of_each_side(float* out, const float* in) {
  float* tile = shared_memory<float>();
  if (threadIdx.x < 16) {
    tile[threadIdx.x] = in[threadIdx.x];  // bug: syncwarp_of_each_side
    __syncwarp(0x0000ffffu);
  } else {
    tile[threadIdx.x] = in[threadIdx.x];  // bug: syncwarp_of_each_side
    __syncwarp(0xffff0000u);
  }
  out[threadIdx.x] = tile[threadIdx.x ^ 16];  // bug: syncwarp_of_each_side
}

// Two warps share the scratch that was meant for one.
__global__ void scratch_of_one_warp(float* out, const float* in) {
  float* scratch = shared_memory<float>();
  const unsigned lane = threadIdx.x % 32;
  scratch[lane] = in[threadIdx.x];  // bug: scratch_of_one_warp
  __syncwarp();
  out[threadIdx.x] = scratch[31 - lane];  // bug: scratch_of_one_warp
}

__global__ void ok_scratch_of_each_warp(float* out, const float* in) {
  float* scratch = shared_memory<float>();
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  scratch[32 * warp + lane] = in[threadIdx.x];
  __syncwarp();
  out[threadIdx.x] = scratch[32 * warp + 31 - lane];
}

// --- lanes that have left: a collective waits for the lanes of its mask that have not exited ---

__global__ void ok_vote_after_exits(unsigned* out, int n) {
  if (static_cast<int>(threadIdx.x) >= n) return;
  out[threadIdx.x] = __ballot_sync(kFullMask, 1);
}

__global__ void ok_all_after_exits(unsigned* out, int n) {
  if (static_cast<int>(threadIdx.x) >= n) return;
  const bool all = __all_sync(kFullMask, 1), any = __any_sync(kFullMask, static_cast<int>(threadIdx.x) >= n);
  out[threadIdx.x] = all && !any ? 0xfffffu : 0u;
}

// The other lanes have not exited: they wait elsewhere, with the same mask.
__global__ void vote_of_some(unsigned* out, int n) {
  if (static_cast<int>(threadIdx.x) < n)
    out[threadIdx.x] = __ballot_sync(kFullMask, 1);  // bug: vote_of_some
  else
    __syncwarp();  // bug: vote_of_some
}

__global__ void ok_shuffle_after_exits(unsigned* out, int n) {
  if (static_cast<int>(threadIdx.x) >= n) return;
  out[threadIdx.x] = __shfl_sync(kFullMask, 0xfffffu + threadIdx.x, 0);
}

// A lane that has exited has no value to give.
__global__ void shuffle_from_exited(unsigned* out, int n) {
  if (static_cast<int>(threadIdx.x) >= n) return;
  out[threadIdx.x] = __shfl_sync(kFullMask, 0xfffffu, n);  // bug: shuffle_from_exited
}

__global__ void ok_syncwarp_after_exits(unsigned* out, int n) {
  unsigned* tile = shared_memory<unsigned>();
  if (static_cast<int>(threadIdx.x) >= n) return;
  tile[threadIdx.x] = 0xfffffu;
  __syncwarp();
  out[threadIdx.x] = tile[threadIdx.x ^ 1];
}

__global__ void exits_without_syncwarp(unsigned* out, int n) {
  unsigned* tile = shared_memory<unsigned>();
  if (static_cast<int>(threadIdx.x) >= n) return;
  tile[threadIdx.x] = 0xfffffu;              // bug: exits_without_syncwarp
  out[threadIdx.x] = tile[threadIdx.x ^ 1];  // bug: exits_without_syncwarp
}

// --- lanes that do not take part ---

// The mask is that of the lanes which have a value; the sum reads beyond it.
__global__ void sum_beyond_mask(float* out, const float* in) {
  const bool has_value = threadIdx.x < 24;
  const unsigned mask = __ballot_sync(kFullMask, has_value);
  if (!has_value) return;
  float sum = in[threadIdx.x];
  for (unsigned step = 16; step > 0; step /= 2) sum += __shfl_down_sync(mask, sum, step);  // bug: sum_beyond_mask
  if (threadIdx.x == 0) out[0] = sum;
}

__global__ void ok_sum_of_all_lanes(float* out, const float* in) {
  float sum = threadIdx.x < 24 ? in[threadIdx.x] : 0.0f;
  for (unsigned step = 16; step > 0; step /= 2) sum += __shfl_down_sync(kFullMask, sum, step);
  if (threadIdx.x == 0) out[0] = sum;
}

// Both sides of a branch shuffle with the full mask; lanes meet by mask, and each side reads the other.
__global__ void ok_shuffle_from_two_places(float* out, const float* in) {
  const int lane = static_cast<int>(threadIdx.x);
  if (lane < 16)
    out[lane] = __shfl_sync(kFullMask, in[lane], lane + 16);
  else
    out[lane] = __shfl_sync(kFullMask, in[lane], lane - 16);
}

__global__ void shuffle_across_branch(float* out, const float* in) {
  const int lane = static_cast<int>(threadIdx.x);
  if (lane < 16)
    out[lane] = __shfl_sync(0x0000ffffu, in[lane], lane + 16);  // bug: shuffle_across_branch
  else
    out[lane] = __shfl_sync(0xffff0000u, in[lane], lane - 16);  // bug: shuffle_across_branch
}

// --- one lane for its warp: places in a list, taken by one atomic operation (in > 8 goes into the list) ---

__global__ void ok_leader_of_mask(float* out, const float* in, int* size) {
  const unsigned lane = threadIdx.x;
  const bool is_taken = in[lane] > 8.0f;
  const unsigned mask = __ballot_sync(kFullMask, is_taken);
  if (!is_taken) return;
  const int leader = __ffs(static_cast<int>(mask)) - 1;
  int begin = 0;
  if (static_cast<int>(lane) == leader) begin = atomicAdd(size, __popc(mask));
  begin = __shfl_sync(mask, begin, leader);
  out[begin + __popc(mask & ((1u << lane) - 1))] = in[lane];
}

// Lane 0 may have nothing to add, and then is not among those who take part.
__global__ void leader_is_lane_0(float* out, const float* in, int* size) {
  const unsigned lane = threadIdx.x;
  const bool is_taken = in[lane] > 8.0f;
  const unsigned mask = __ballot_sync(kFullMask, is_taken);
  if (!is_taken) return;
  int begin = 0;
  if (lane == 0) begin = atomicAdd(size, __popc(mask));
  begin = __shfl_sync(mask, begin, 0);  // bug: leader_is_lane_0
  out[begin + __popc(mask & ((1u << lane) - 1))] = in[lane];
}

// The leader hands the place over in shared memory, and nothing makes the others wait.
__global__ void leader_tells_unordered(float* out, const float* in, int* size) {
  int* begin = shared_memory<int>();
  const unsigned lane = threadIdx.x;
  const bool is_taken = in[lane] > 8.0f;
  const unsigned mask = __ballot_sync(kFullMask, is_taken);
  if (!is_taken) return;
  const int leader = __ffs(static_cast<int>(mask)) - 1;
  if (static_cast<int>(lane) == leader) *begin = atomicAdd(size, __popc(mask));  // bug: leader_tells_unordered
  out[*begin + __popc(mask & ((1u << lane) - 1))] = in[lane];                    // bug: leader_tells_unordered
}

__global__ void ok_leader_tells(float* out, const float* in, int* size) {
  int* begin = shared_memory<int>();
  const unsigned lane = threadIdx.x;
  const bool is_taken = in[lane] > 8.0f;
  const unsigned mask = __ballot_sync(kFullMask, is_taken);
  if (!is_taken) return;
  const int leader = __ffs(static_cast<int>(mask)) - 1;
  if (static_cast<int>(lane) == leader) *begin = atomicAdd(size, __popc(mask));
  __syncwarp(mask);
  out[*begin + __popc(mask & ((1u << lane) - 1))] = in[lane];
}
