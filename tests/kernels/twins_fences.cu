// Twins of what orders blocks: a kernel with one bug, its racing lines marked "bug: <kernel>", and beside it the right
// form (ok_...). The verdicts follow the PTX memory consistency model: blocks are ordered by a fence, an atomic
// operation, an atomic operation on the same variable that reads what the first wrote, and a fence after that.
// Most kernels here run in blocks of one thread.
#include <platform.cuh>

// --- tickets: the block that takes the last one adds up what all have written ---

__device__ __forceinline__ float sum_of(const float* partial, int n) {
  float sum = 0.0f;
  for (int i = 0; i < n; ++i) sum += partial[i];
  return sum;
}

__device__ __forceinline__ float share_of(unsigned block) { return static_cast<float>(block + 1); }

__device__ __forceinline__ bool is_last(int ticket) { return ticket == static_cast<int>(gridDim.x) - 1; }

__global__ void ok_ticket(float* out, float* partial, int* arrived) {
  partial[blockIdx.x] = share_of(blockIdx.x);
  __threadfence();
  const int ticket = atomicAdd(arrived, 1);
  __threadfence();
  if (is_last(ticket)) out[0] = sum_of(partial, gridDim.x);
}

// The fence comes before the ticket, but the value only after both: nothing publishes it.
__global__ void ticket_before_write(float* out, float* partial, int* arrived) {
  __threadfence();
  const int ticket = atomicAdd(arrived, 1);
  partial[blockIdx.x] = share_of(blockIdx.x);  // bug: ticket_before_write
  __threadfence();
  if (!is_last(ticket)) return;
  float sum = 0.0f;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];  // bug: ticket_before_write
  out[0] = sum;
}

// A release pattern publishes what precedes its fence; the value stands between fence and ticket.
__global__ void write_after_fence(float* out, float* partial, int* arrived) {
  __threadfence();
  partial[blockIdx.x] = share_of(blockIdx.x);  // bug: write_after_fence
  const int ticket = atomicAdd(arrived, 1);
  __threadfence();
  if (!is_last(ticket)) return;
  float sum = 0.0f;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];  // bug: write_after_fence
  out[0] = sum;
}

// An atomic read without a fence after it acquires nothing.
__global__ void no_acquire(float* out, float* partial, int* arrived) {
  partial[blockIdx.x] = share_of(blockIdx.x);  // bug: no_acquire
  __threadfence();
  if (!is_last(atomicAdd(arrived, 1))) return;
  float sum = 0.0f;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];  // bug: no_acquire
  out[0] = sum;
}

// A fence of block scope does not synchronize with a thread of another block.
__global__ void release_of_block_scope(float* out, float* partial, int* arrived) {
  partial[blockIdx.x] = share_of(blockIdx.x);  // bug: release_of_block_scope
  __threadfence_block();
  const int ticket = atomicAdd(arrived, 1);
  __threadfence();
  if (!is_last(ticket)) return;
  float sum = 0.0f;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];  // bug: release_of_block_scope
  out[0] = sum;
}

__global__ void acquire_of_block_scope(float* out, float* partial, int* arrived) {
  partial[blockIdx.x] = share_of(blockIdx.x);  // bug: acquire_of_block_scope
  __threadfence();
  const int ticket = atomicAdd(arrived, 1);
  __threadfence_block();
  if (!is_last(ticket)) return;
  float sum = 0.0f;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];  // bug: acquire_of_block_scope
  out[0] = sum;
}

// --- the same with blocks of many threads ---

// Every thread fences what it wrote, then one counts for all. Its ticket follows their fences in causality order, and
// two fence.sc are always ordered: the reader's fence cannot be the first, or its ticket would come before the others'.
__global__ void ok_every_thread_fences(float* out, float* partial, int* arrived) {
  int* ticket = shared_memory<int>();
  partial[blockIdx.x * blockDim.x + threadIdx.x] = 1.0f;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *ticket = atomicAdd(arrived, 1);
  __syncthreads();
  __threadfence();
  if (is_last(*ticket) && threadIdx.x == 0) out[0] = sum_of(partial, gridDim.x * blockDim.x);
}

// Every thread fences, but before it writes.
__global__ void every_thread_fences_first(float* out, float* partial, int* arrived) {
  int* ticket = shared_memory<int>();
  __threadfence();
  partial[blockIdx.x * blockDim.x + threadIdx.x] = 1.0f;  // bug: every_thread_fences_first
  __syncthreads();
  if (threadIdx.x == 0) *ticket = atomicAdd(arrived, 1);
  __syncthreads();
  __threadfence();
  if (!is_last(*ticket) || threadIdx.x != 0) return;
  float sum = 0.0f;
  for (unsigned i = 0; i < gridDim.x * blockDim.x; ++i) sum += partial[i];  // bug: every_thread_fences_first
  out[0] = sum;
}

// After the barrier the fence of thread 0 is cumulative: it covers what the block wrote before.
__global__ void ok_one_fences_after_barrier(float* out, float* partial, int* arrived) {
  int* ticket = shared_memory<int>();
  partial[blockIdx.x * blockDim.x + threadIdx.x] = 1.0f;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    *ticket = atomicAdd(arrived, 1);
    __threadfence();
  }
  __syncthreads();
  if (is_last(*ticket) && threadIdx.x == 0) out[0] = sum_of(partial, gridDim.x * blockDim.x);
}

// Before the barrier the fence of thread 0 covers its own write only.
__global__ void one_fences_before_barrier(float* out, float* partial, int* arrived) {
  int* ticket = shared_memory<int>();
  partial[blockIdx.x * blockDim.x + threadIdx.x] = 1.0f;  // bug: one_fences_before_barrier
  if (threadIdx.x == 0) __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    *ticket = atomicAdd(arrived, 1);
    __threadfence();
  }
  __syncthreads();
  if (!is_last(*ticket) || threadIdx.x != 0) return;
  float sum = 0.0f;
  for (unsigned i = 0; i < gridDim.x * blockDim.x; ++i) sum += partial[i];  // bug: one_fences_before_barrier
  out[0] = sum;
}

// One thread reads; it has fenced, but before it knew of the ticket.
__global__ void reader_fences_before_ticket(float* out, float* partial, int* arrived) {
  int* ticket = shared_memory<int>();
  partial[blockIdx.x * blockDim.x + threadIdx.x] = 1.0f;  // bug: reader_fences_before_ticket
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0)
    *ticket = atomicAdd(arrived, 1);
  else
    __threadfence();
  __syncthreads();
  if (!is_last(*ticket) || threadIdx.x != 1) return;
  float sum = 0.0f;
  for (unsigned i = 0; i < gridDim.x * blockDim.x; ++i) sum += partial[i];  // bug: reader_fences_before_ticket
  out[0] = sum;
}

// The barrier orders thread 0's ticket before the fence of the thread that reads.
__global__ void ok_reader_fences_after_barrier(float* out, float* partial, int* arrived) {
  int* ticket = shared_memory<int>();
  partial[blockIdx.x * blockDim.x + threadIdx.x] = 1.0f;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) *ticket = atomicAdd(arrived, 1);
  __syncthreads();
  if (!is_last(*ticket) || threadIdx.x != 1) return;
  __threadfence();
  out[0] = sum_of(partial, gridDim.x * blockDim.x);
}

// --- blocks of one warp: __syncwarp, then one lane fences and counts ---

__global__ void ok_lane_fences_for_warp(float* out, float* partial, int* arrived) {
  partial[blockIdx.x * 32 + threadIdx.x] = 1.0f;
  __syncwarp();
  int ticket = 0;
  if (threadIdx.x == 0) {
    __threadfence();
    ticket = atomicAdd(arrived, 1);
    __threadfence();
  }
  ticket = __shfl_sync(kFullMask, ticket, 0);
  __syncwarp();
  if (!is_last(ticket)) return;
  float sum = 0.0f;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i * 32 + threadIdx.x];
  out[threadIdx.x] = sum;
}

// Nothing orders the other lanes' writes before the fence of lane 0.
__global__ void lane_fences_for_warp(float* out, float* partial, int* arrived) {
  partial[blockIdx.x * 32 + threadIdx.x] = 1.0f;  // bug: lane_fences_for_warp
  int ticket = 0;
  if (threadIdx.x == 0) {
    __threadfence();
    ticket = atomicAdd(arrived, 1);
    __threadfence();
  }
  ticket = __shfl_sync(kFullMask, ticket, 0);
  __syncwarp();
  if (!is_last(ticket)) return;
  float sum = 0.0f;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i * 32 + threadIdx.x];  // bug: lane_fences_for_warp
  out[threadIdx.x] = sum;
}

// The shuffle brings the ticket to all lanes, but not what lane 0 has acquired: shfl.sync orders no memory.
__global__ void shuffled_ticket(float* out, float* partial, int* arrived) {
  partial[blockIdx.x * 32 + threadIdx.x] = 1.0f;  // bug: shuffled_ticket
  __syncwarp();
  int ticket = 0;
  if (threadIdx.x == 0) {
    __threadfence();
    ticket = atomicAdd(arrived, 1);
    __threadfence();
  }
  ticket = __shfl_sync(kFullMask, ticket, 0);
  if (!is_last(ticket)) return;
  float sum = 0.0f;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i * 32 + threadIdx.x];  // bug: shuffled_ticket
  out[threadIdx.x] = sum;
}

// --- sums and counters that are atomic for some and plain for others ---

__global__ void ok_sum_then_count(float* out, float* sum, int* arrived) {
  atomicAdd(sum, share_of(blockIdx.x));
  __threadfence();
  const int ticket = atomicAdd(arrived, 1);
  __threadfence();
  if (is_last(ticket)) out[0] = *sum;
}

// The last block's plain read is ordered after its own addition only, not after the others'.
__global__ void sum_then_count(float* out, float* sum, int* arrived) {
  atomicAdd(sum, share_of(blockIdx.x));  // bug: sum_then_count
  const int ticket = atomicAdd(arrived, 1);
  if (is_last(ticket)) out[0] = *sum;  // bug: sum_then_count
}

// Fences, but the sum is updated only after the ticket.
__global__ void count_then_sum(float* out, float* sum, int* arrived) {
  __threadfence();
  const int ticket = atomicAdd(arrived, 1);
  __threadfence();
  atomicAdd(sum, share_of(blockIdx.x));  // bug: count_then_sum
  if (is_last(ticket)) out[0] = *sum;    // bug: count_then_sum
}

// The last ticket has read, directly or through others', what every earlier one wrote: they precede it in observation
// order, and so precede the plain write that follows it. No fence is needed for the counter itself.
__global__ void ok_last_resets_counter(float* out, int* arrived) {
  const int ticket = atomicAdd(arrived, 1);
  if (!is_last(ticket)) return;
  out[0] = static_cast<float>(*arrived);
  *arrived = 0;
}

// The first block's plain write has seen none of the later tickets.
__global__ void first_resets_counter(float* out, int* arrived) {
  const int ticket = atomicAdd(arrived, 1);  // bug: first_resets_counter
  if (ticket != 0) return;
  out[0] = 1.0f;
  *arrived = 0;  // bug: first_resets_counter
}

// Whoever took the first ticket reads the counter plainly while others still count.
__global__ void counter_read_early(float* out, int* arrived) {
  const int ticket = atomicAdd(arrived, 1);                // bug: counter_read_early
  if (ticket == 0) out[0] = static_cast<float>(*arrived);  // bug: counter_read_early
}
