// Twins of what orders the threads of a block: __syncthreads and named barriers. A kernel with one bug, its racing
// lines marked "bug: <kernel>", and beside it the right form (ok_...). The barriers of a block synchronize those who
// take part; nothing else orders accesses to memory.
#include <platform.cuh>

// --- reductions ---

__global__ void ok_reduce(float* out, const float* in) {
  float* sums = shared_memory<float>();
  sums[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  for (unsigned step = blockDim.x / 2; step > 0; step /= 2) {
    if (threadIdx.x < step) sums[threadIdx.x] += sums[threadIdx.x + step];
    __syncthreads();
  }
  if (threadIdx.x == 0) out[0] = sums[0];
}

__global__ void reduce_without_barrier(float* out, const float* in) {
  float* sums = shared_memory<float>();
  sums[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  for (unsigned step = blockDim.x / 2; step > 0; step /= 2)
    if (threadIdx.x < step) sums[threadIdx.x] += sums[threadIdx.x + step];  // bug: reduce_without_barrier
  if (threadIdx.x == 0) out[0] = sums[0];
}

// The barrier at the end of a step is taken by those only who add in it.
__global__ void reduce_barrier_of_some(float* out, const float* in) {
  float* sums = shared_memory<float>();
  sums[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  for (unsigned step = blockDim.x / 2; step > 0; step /= 2) {
    if (threadIdx.x >= step) break;
    sums[threadIdx.x] += sums[threadIdx.x + step];
    __syncthreads();  // bug: reduce_barrier_of_some
  }
  if (threadIdx.x == 0) out[0] = sums[0];
}

// The last steps in one warp, as before Volta: lanes are not in lockstep, and each writes what another still reads.
__global__ void reduce_tail_in_lockstep(float* out, const float* in) {
  float* sums = shared_memory<float>();
  sums[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  if (threadIdx.x >= 32) return;
  for (unsigned step = 32; step > 0; step /= 2)
    sums[threadIdx.x] += sums[threadIdx.x + step];  // bug: reduce_tail_in_lockstep
  if (threadIdx.x == 0) out[0] = sums[0];
}

// __syncwarp after a step, but within one lane t + step still writes what lane t reads.
__global__ void reduce_tail_reads_and_writes(float* out, const float* in) {
  float* sums = shared_memory<float>();
  sums[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  if (threadIdx.x >= 32) return;
  for (unsigned step = 32; step > 0; step /= 2) {
    sums[threadIdx.x] += sums[threadIdx.x + step];  // bug: reduce_tail_reads_and_writes
    __syncwarp();
  }
  if (threadIdx.x == 0) out[0] = sums[0];
}

__global__ void ok_reduce_tail(float* out, const float* in) {
  float* sums = shared_memory<float>();
  sums[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  if (threadIdx.x >= 32) return;
  for (unsigned step = 32; step > 0; step /= 2) {
    const float other = sums[threadIdx.x + step];
    __syncwarp();
    sums[threadIdx.x] += other;
    __syncwarp();
  }
  if (threadIdx.x == 0) out[0] = sums[0];
}

// Two sums one after the other through the same slots: the second one's slots are written while the first one's are
// read.
__global__ void slots_used_twice(float* out, const float* in) {
  float* slots = shared_memory<float>();
  float total = 0.0f;
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = in[round];  // bug: slots_used_twice
    __syncthreads();
    total += slots[0] + slots[1];  // bug: slots_used_twice
  }
  out[threadIdx.x] = total;
}

__global__ void ok_slots_of_each_round(float* out, const float* in) {
  float* slots = shared_memory<float>();
  float total = 0.0f;
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x % 32 == 0) slots[2 * round + threadIdx.x / 32] = in[round];
    __syncthreads();
    total += slots[2 * round] + slots[2 * round + 1];
  }
  out[threadIdx.x] = total;
}

// --- scans ---

__global__ void ok_scan(float* out, const float* in) {
  float* sums = shared_memory<float>();
  sums[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  for (unsigned step = 1; step < blockDim.x; step *= 2) {
    const float before = threadIdx.x >= step ? sums[threadIdx.x - step] : 0.0f;
    __syncthreads();
    sums[threadIdx.x] += before;
    __syncthreads();
  }
  out[threadIdx.x] = sums[threadIdx.x];
}

// In place, a step's reads must be over before its writes.
__global__ void scan_in_place(float* out, const float* in) {
  float* sums = shared_memory<float>();
  sums[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  for (unsigned step = 1; step < blockDim.x; step *= 2) {
    const float before = threadIdx.x >= step ? sums[threadIdx.x - step] : 0.0f;  // bug: scan_in_place
    sums[threadIdx.x] += before;                                                 // bug: scan_in_place
    __syncthreads();
  }
  out[threadIdx.x] = sums[threadIdx.x];
}

// From one buffer into the other and back: one barrier a step is enough.
__global__ void ok_scan_two_buffers(float* out, const float* in) {
  float *from = shared_memory<float>(), *to = from + blockDim.x;
  from[threadIdx.x] = in[threadIdx.x];
  for (unsigned step = 1; step < blockDim.x; step *= 2) {
    __syncthreads();
    to[threadIdx.x] = from[threadIdx.x] + (threadIdx.x >= step ? from[threadIdx.x - step] : 0.0f);
    float* const written = to;
    to = from;
    from = written;
  }
  out[threadIdx.x] = from[threadIdx.x];
}

// --- histograms ---

__global__ void ok_histogram(int* out, const int* in) {
  int* bins = shared_memory<int>();
  if (threadIdx.x < 8) bins[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&bins[in[threadIdx.x]], 1);
  __syncthreads();
  if (threadIdx.x < 8) out[threadIdx.x] = bins[threadIdx.x];
}

__global__ void histogram_counts_plainly(int* out, const int* in) {
  int* bins = shared_memory<int>();
  if (threadIdx.x < 8) bins[threadIdx.x] = 0;
  __syncthreads();
  bins[in[threadIdx.x]] += 1;  // bug: histogram_counts_plainly
  __syncthreads();
  if (threadIdx.x < 8) out[threadIdx.x] = bins[threadIdx.x];
}

__global__ void histogram_cleared_late(int* out, const int* in) {
  int* bins = shared_memory<int>();
  if (threadIdx.x < 8) bins[threadIdx.x] = 0;  // bug: histogram_cleared_late
  atomicAdd(&bins[in[threadIdx.x]], 1);        // bug: histogram_cleared_late
  __syncthreads();
  if (threadIdx.x < 8) out[threadIdx.x] = bins[threadIdx.x];
}

__global__ void histogram_read_early(int* out, const int* in) {
  int* bins = shared_memory<int>();
  if (threadIdx.x < 8) bins[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&bins[in[threadIdx.x]], 1);                       // bug: histogram_read_early
  if (threadIdx.x < 8) out[threadIdx.x] = bins[threadIdx.x];  // bug: histogram_read_early
}

// --- tiles that are used again and again ---

__global__ void ok_transpose(float* out, const float* in) {
  float* tile = shared_memory<float>();
  const unsigned row = threadIdx.x / 8, column = threadIdx.x % 8;
  for (int i = 0; i < 2; ++i) {
    tile[row * 9 + column] = in[64 * i + threadIdx.x];
    __syncthreads();
    out[64 * i + threadIdx.x] = tile[column * 9 + row];
    __syncthreads();
  }
}

__global__ void transpose_refilled_early(float* out, const float* in) {
  float* tile = shared_memory<float>();
  const unsigned row = threadIdx.x / 8, column = threadIdx.x % 8;
  for (int i = 0; i < 2; ++i) {
    tile[row * 9 + column] = in[64 * i + threadIdx.x];  // bug: transpose_refilled_early
    __syncthreads();
    out[64 * i + threadIdx.x] = tile[column * 9 + row];  // bug: transpose_refilled_early
  }
}

__global__ void transpose_read_early(float* out, const float* in) {
  float* tile = shared_memory<float>();
  const unsigned row = threadIdx.x / 8, column = threadIdx.x % 8;
  for (int i = 0; i < 2; ++i) {
    tile[row * 9 + column] = in[64 * i + threadIdx.x];   // bug: transpose_read_early
    out[64 * i + threadIdx.x] = tile[column * 9 + row];  // bug: transpose_read_early
    __syncthreads();
  }
}

// Two buffers in turn: whoever fills one has passed the barrier that follows the reads of it.
__global__ void ok_double_buffer(float* out, const float* in) {
  float* tile = shared_memory<float>();
  float sum = 0.0f;
  for (int i = 0; i < 4; ++i) {
    tile[64 * (i % 2) + threadIdx.x] = in[64 * i + threadIdx.x];
    __syncthreads();
    sum += tile[64 * (i % 2) + 63 - threadIdx.x];
  }
  out[threadIdx.x] = sum;
}

// Fetched one turn ahead, before the barrier: with two buffers it is the one that others may still be reading.
__global__ void fetched_ahead_into_two(float* out, const float* in) {
  float* tile = shared_memory<float>();
  float sum = 0.0f;
  tile[threadIdx.x] = in[threadIdx.x];
  for (int i = 0; i < 4; ++i) {
    const int next = i + 1;
    if (next < 4) tile[64 * (next % 2) + threadIdx.x] = in[64 * next + threadIdx.x];  // bug: fetched_ahead_into_two
    __syncthreads();
    sum += tile[64 * (i % 2) + 63 - threadIdx.x];  // bug: fetched_ahead_into_two
  }
  out[threadIdx.x] = sum;
}

__global__ void ok_fetched_ahead_into_three(float* out, const float* in) {
  float* tile = shared_memory<float>();
  float sum = 0.0f;
  tile[threadIdx.x] = in[threadIdx.x];
  for (int i = 0; i < 4; ++i) {
    const int next = i + 1;
    if (next < 4) tile[64 * (next % 3) + threadIdx.x] = in[64 * next + threadIdx.x];
    __syncthreads();
    sum += tile[64 * (i % 3) + 63 - threadIdx.x];
  }
  out[threadIdx.x] = sum;
}

// Thread 0 tells the block which tile is next; the word is written anew while slow threads still read it.
__global__ void next_tile_overwritten(float* out, const float* in, int* counter) {
  int* next = shared_memory<int>();
  float sum = 0.0f;
  for (;;) {
    if (threadIdx.x == 0) *next = atomicAdd(counter, 1);  // bug: next_tile_overwritten
    __syncthreads();
    const int tile = *next;  // bug: next_tile_overwritten
    if (tile >= 4) break;
    sum += in[64 * tile + threadIdx.x];
  }
  out[threadIdx.x] = sum;
}

__global__ void ok_next_tile(float* out, const float* in, int* counter) {
  int* next = shared_memory<int>();
  float sum = 0.0f;
  for (;;) {
    if (threadIdx.x == 0) *next = atomicAdd(counter, 1);
    __syncthreads();
    const int tile = *next;
    if (tile >= 4) break;
    sum += in[64 * tile + threadIdx.x];
    __syncthreads();
  }
  out[threadIdx.x] = sum;
}

// --- barriers that not all reach ---

__global__ void barrier_in_condition(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x] = in[threadIdx.x];
  if (in[threadIdx.x] > 8.0f) __syncthreads();  // bug: barrier_in_condition
  tile[threadIdx.x] += 1.0f;
  __syncthreads();  // bug: barrier_in_condition
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

__global__ void ok_barrier_for_all(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  if (in[threadIdx.x] > 8.0f) tile[threadIdx.x] += 1.0f;
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

// Warps go through the loop a different number of times.
__global__ void barrier_in_uneven_loop(float* out, const float* in) {
  float* tile = shared_memory<float>();
  for (unsigned i = 0; i <= threadIdx.x / 32; ++i) {
    tile[threadIdx.x] = in[i];
    __syncthreads();  // bug: barrier_in_uneven_loop
  }
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void ok_barrier_in_even_loop(float* out, const float* in) {
  float* tile = shared_memory<float>();
  for (unsigned i = 0; i < 2; ++i) {
    if (i <= threadIdx.x / 32) tile[threadIdx.x] = in[i];
    __syncthreads();
  }
  out[threadIdx.x] = tile[threadIdx.x];
}
