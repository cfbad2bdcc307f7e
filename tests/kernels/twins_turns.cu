// Twins of blocks that add to one tile in turn (split-K, stream-K), of tickets between the warps of a block, and of
// readers that a writer must wait for; see twins_fences.cu.
#include <platform.cuh>

__device__ __forceinline__ void wait_for(int* flag, int value) {
  while (atomicAdd(flag, 0) != value) {
  }
}

// --- split-K: thread 0 waits for the block's turn, all threads add, thread 0 passes the turn on ---

__global__ void ok_split_k(float* out, int* next, int* turn) {
  int mine = 0;
  if (threadIdx.x == 0) {
    mine = atomicAdd(next, 1);
    wait_for(turn, mine);
    __threadfence();
  }
  __syncthreads();
  out[threadIdx.x] += 1.0f;
  __syncthreads();
  if (threadIdx.x != 0) return;
  __threadfence();
  atomicExch(turn, mine + 1);
}

// The turn is passed on while other threads may still be adding.
__global__ void split_k_passed_on_early(float* out, int* next, int* turn) {
  int mine = 0;
  if (threadIdx.x == 0) {
    mine = atomicAdd(next, 1);
    wait_for(turn, mine);
    __threadfence();
  }
  __syncthreads();
  out[threadIdx.x] += 1.0f;  // bug: split_k_passed_on_early
  if (threadIdx.x != 0) return;
  __threadfence();
  atomicExch(turn, mine + 1);
}

// Only thread 0 waits for the turn: nothing holds the others back.
__global__ void split_k_waits_alone(float* out, int* next, int* turn) {
  int mine = 0;
  if (threadIdx.x == 0) {
    mine = atomicAdd(next, 1);
    wait_for(turn, mine);
    __threadfence();
  }
  out[threadIdx.x] += 1.0f;  // bug: split_k_waits_alone
  __syncthreads();
  if (threadIdx.x != 0) return;
  __threadfence();
  atomicExch(turn, mine + 1);
}

// A barrier is no fence of device scope: after it nothing is acquired from the block before.
__global__ void split_k_without_acquire(float* out, int* next, int* turn) {
  int mine = 0;
  if (threadIdx.x == 0) {
    mine = atomicAdd(next, 1);
    wait_for(turn, mine);
  }
  __syncthreads();
  out[threadIdx.x] += 1.0f;  // bug: split_k_without_acquire
  __syncthreads();
  if (threadIdx.x != 0) return;
  __threadfence();
  atomicExch(turn, mine + 1);
}

__global__ void split_k_without_release(float* out, int* next, int* turn) {
  int mine = 0;
  if (threadIdx.x == 0) {
    mine = atomicAdd(next, 1);
    wait_for(turn, mine);
    __threadfence();
  }
  __syncthreads();
  out[threadIdx.x] += 1.0f;  // bug: split_k_without_release
  __syncthreads();
  if (threadIdx.x == 0) atomicExch(turn, mine + 1);
}

// Every thread fences its own addition; the barrier brings the fences before the turn is passed on.
__global__ void ok_split_k_all_fence(float* out, int* next, int* turn) {
  int mine = 0;
  if (threadIdx.x == 0) {
    mine = atomicAdd(next, 1);
    wait_for(turn, mine);
  }
  __syncthreads();
  __threadfence();
  out[threadIdx.x] += 1.0f;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) atomicExch(turn, mine + 1);
}

// Stream-K: all but the last share go to a workspace; who owns the tile waits for them and adds them up.
__global__ void ok_fix_up(float* out, float* workspace, int* next, int* done) {
  int* share = shared_memory<int>();
  if (threadIdx.x == 0) *share = atomicAdd(next, 1);
  __syncthreads();
  const int mine = *share, owner = static_cast<int>(gridDim.x) - 1;
  if (mine != owner) {
    workspace[mine * blockDim.x + threadIdx.x] = 1.0f;
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(done, 1);
    }
    return;
  }
  if (threadIdx.x == 0) {
    wait_for(done, owner);
    __threadfence();
  }
  __syncthreads();
  float sum = 1.0f;
  for (int i = 0; i < owner; ++i) sum += workspace[i * blockDim.x + threadIdx.x];
  out[threadIdx.x] = sum;
}

// The block's share is reported when one of its warps is done.
__global__ void fix_up_reported_by_one_warp(float* out, float* workspace, int* next, int* done) {
  int* share = shared_memory<int>();
  if (threadIdx.x == 0) *share = atomicAdd(next, 1);
  __syncthreads();
  const int mine = *share, owner = static_cast<int>(gridDim.x) - 1;
  if (mine != owner) {
    workspace[mine * blockDim.x + threadIdx.x] = 1.0f;  // bug: fix_up_reported_by_one_warp
    __syncwarp();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(done, 1);
    }
    return;
  }
  if (threadIdx.x == 0) {
    wait_for(done, owner);
    __threadfence();
  }
  __syncthreads();
  float sum = 1.0f;
  for (int i = 0; i < owner; ++i) sum += workspace[i * blockDim.x + threadIdx.x];  // bug: fix_up_reported_by_one_warp
  out[threadIdx.x] = sum;
}

// --- tickets between the warps of one block: the last warp adds up ---

__global__ void ok_last_warp(float* out, float* partial, int* arrived) {
  partial[threadIdx.x] = 1.0f;
  __syncwarp();
  int ticket = 0;
  if (threadIdx.x % 32 == 0) {
    __threadfence();
    ticket = atomicAdd(arrived, 1);
    __threadfence();
  }
  ticket = __shfl_sync(kFullMask, ticket, 0);
  __syncwarp();
  if (ticket != 3) return;
  float sum = 0.0f;
  for (int warp = 0; warp < 4; ++warp) sum += partial[warp * 32 + threadIdx.x % 32];
  out[threadIdx.x % 32] = sum;
}

// Warps of one block are no more ordered by an atomic alone than blocks are.
__global__ void last_warp_without_fence(float* out, float* partial, int* arrived) {
  partial[threadIdx.x] = 1.0f;  // bug: last_warp_without_fence
  __syncwarp();
  int ticket = 0;
  if (threadIdx.x % 32 == 0) ticket = atomicAdd(arrived, 1);
  ticket = __shfl_sync(kFullMask, ticket, 0);
  __syncwarp();
  if (ticket != 3) return;
  float sum = 0.0f;
  for (int warp = 0; warp < 4; ++warp) sum += partial[warp * 32 + threadIdx.x % 32];  // bug: last_warp_without_fence
  out[threadIdx.x % 32] = sum;
}

// Data and counter in shared memory; within a block fences of block scope are enough.
__global__ void ok_last_warp_shared(float* out) {
  float* partial = shared_memory<float>();
  int* arrived = shared_memory<int>(512);
  if (threadIdx.x == 0) *arrived = 0;
  __syncthreads();
  partial[threadIdx.x] = 1.0f;
  __syncwarp();
  int ticket = 0;
  if (threadIdx.x % 32 == 0) {
    __threadfence_block();
    ticket = atomicAdd(arrived, 1);
    __threadfence_block();
  }
  ticket = __shfl_sync(kFullMask, ticket, 0);
  __syncwarp();
  if (ticket != 3) return;
  float sum = 0.0f;
  for (int warp = 0; warp < 4; ++warp) sum += partial[warp * 32 + threadIdx.x % 32];
  out[threadIdx.x % 32] = sum;
}

__global__ void last_warp_shared_without_fence(float* out) {
  float* partial = shared_memory<float>();
  int* arrived = shared_memory<int>(512);
  if (threadIdx.x == 0) *arrived = 0;
  __syncthreads();
  partial[threadIdx.x] = 1.0f;  // bug: last_warp_shared_without_fence
  __syncwarp();
  int ticket = 0;
  if (threadIdx.x % 32 == 0) ticket = atomicAdd(arrived, 1);
  ticket = __shfl_sync(kFullMask, ticket, 0);
  __syncwarp();
  if (ticket != 3) return;
  float sum = 0.0f;
  for (int warp = 0; warp < 4; ++warp)
    sum += partial[warp * 32 + threadIdx.x % 32];  // bug: last_warp_shared_without_fence
  out[threadIdx.x % 32] = sum;
}

// --- readers come first: the last block writes what all have read (blocks of one thread) ---

__global__ void ok_scale_renewed(float* out, float* scale, int* arrived) {
  out[blockIdx.x] = *scale;
  __threadfence();
  const int ticket = atomicAdd(arrived, 1);
  __threadfence();
  if (ticket == static_cast<int>(gridDim.x) - 1) *scale = 2.0f;
}

// A read must be ordered before the write that ends the value's life, as a write before the read.
__global__ void scale_renewed_without_fence(float* out, float* scale, int* arrived) {
  out[blockIdx.x] = *scale;  // bug: scale_renewed_without_fence
  const int ticket = atomicAdd(arrived, 1);
  if (ticket == static_cast<int>(gridDim.x) - 1) *scale = 2.0f;  // bug: scale_renewed_without_fence
}

// One of the blocks, neither the first nor the last, reads again after its ticket.
__global__ void scale_read_after_ticket(float* out, float* scale, int* arrived) {
  out[blockIdx.x] = *scale;
  __threadfence();
  const int ticket = atomicAdd(arrived, 1);
  __threadfence();
  if (ticket == 2) out[blockIdx.x] = *scale + 1.0f;              // bug: scale_read_after_ticket
  if (ticket == static_cast<int>(gridDim.x) - 1) *scale = 2.0f;  // bug: scale_read_after_ticket
}

// All blocks read, and take their tickets in turn. Of the three that must come before the writer the last has not
// fenced: two readers in order do not vouch for the third.
__global__ void third_reader_unfenced(float* out, float* scale, int* arrived, int* next) {
  const int mine = atomicAdd(next, 1);
  out[mine] = *scale;  // bug: third_reader_unfenced
  if (mine != 2) __threadfence();
  wait_for(arrived, mine);
  atomicAdd(arrived, 1);
  if (mine != 3) return;
  __threadfence();
  *scale = 2.0f;  // bug: third_reader_unfenced
}

__global__ void ok_third_reader(float* out, float* scale, int* arrived, int* next) {
  const int mine = atomicAdd(next, 1);
  out[mine] = *scale;
  __threadfence();
  wait_for(arrived, mine);
  atomicAdd(arrived, 1);
  if (mine != 3) return;
  __threadfence();
  *scale = 2.0f;
}
