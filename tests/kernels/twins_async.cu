// Twins of cp.async: a copy runs on until its thread has waited for its group. Until then it may read its source and
// write its target at any time; after the wait the others still need a barrier. See twins_barriers.cu.
#include <async_copy.cuh>
#include <platform.cuh>

// --- the source is read at any time before the wait ---

__global__ void ok_source_kept(float* out, float* scratch) {
  float* tile = shared_memory<float>();
  async_copy<4>(tile + threadIdx.x, scratch + threadIdx.x);
  async_commit();
  async_wait<0>();
  scratch[threadIdx.x] = -1.0f;
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

__global__ void source_overwritten(float* out, float* scratch) {
  float* tile = shared_memory<float>();
  async_copy<4>(tile + threadIdx.x, scratch + threadIdx.x);  // bug: source_overwritten
  async_commit();
  scratch[threadIdx.x] = -1.0f;  // bug: source_overwritten
  async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

// Overwritten by another thread. The barrier orders the issue of the copy, not its reading.
__global__ void source_overwritten_by_another(float* out, float* scratch) {
  float* tile = shared_memory<float>();
  async_copy<4>(tile + threadIdx.x, scratch + threadIdx.x);  // bug: source_overwritten_by_another
  async_commit();
  __syncthreads();
  scratch[63 - threadIdx.x] = -1.0f;  // bug: source_overwritten_by_another
  async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

__global__ void ok_source_overwritten_by_another(float* out, float* scratch) {
  float* tile = shared_memory<float>();
  async_copy<4>(tile + threadIdx.x, scratch + threadIdx.x);
  async_commit();
  async_wait<0>();
  __syncthreads();
  scratch[63 - threadIdx.x] = -1.0f;
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

// Atomically updated while the copy reads it.
__global__ void source_updated(float* out, float* scratch) {
  float* tile = shared_memory<float>();
  async_copy<4>(tile + threadIdx.x, scratch + threadIdx.x);  // bug: source_updated
  async_commit();
  atomicAdd(&scratch[threadIdx.x], -1.0f);  // bug: source_updated
  async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

// What the copy reads is written by another thread of the block, and nothing orders the two.
__global__ void source_unordered(float* out, const float* in, float* scratch) {
  float* tile = shared_memory<float>();
  scratch[threadIdx.x] = in[threadIdx.x];                         // bug: source_unordered
  async_copy<4>(tile + threadIdx.x, scratch + 63 - threadIdx.x);  // bug: source_unordered
  async_commit();
  async_wait<0>();
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void ok_source_ordered(float* out, const float* in, float* scratch) {
  float* tile = shared_memory<float>();
  scratch[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  async_copy<4>(tile + threadIdx.x, scratch + 63 - threadIdx.x);
  async_commit();
  async_wait<0>();
  out[threadIdx.x] = tile[threadIdx.x];
}

// --- stages ---

// Three stages, two in flight: wait for the oldest, barrier, read it, refill the one that was read a turn ago.
__global__ void ok_three_stages(float* out, const float* in) {
  float* tile = shared_memory<float>();
  float sum = 0.0f;
  for (int i = 0; i < 2; ++i) {
    async_copy<4>(tile + 64 * i + threadIdx.x, in + 64 * i + threadIdx.x);
    async_commit();
  }
  for (int i = 0; i < 4; ++i) {
    async_wait<1>();
    __syncthreads();
    const int next = i + 2;
    if (next < 4) async_copy<4>(tile + 64 * (next % 3) + threadIdx.x, in + 64 * next + threadIdx.x);
    async_commit();
    sum += tile[64 * (i % 3) + 63 - threadIdx.x];
  }
  out[threadIdx.x] = sum;
}

// Two groups may be left where the stage that is read is one of them.
__global__ void stages_wait_too_few(float* out, const float* in) {
  float* tile = shared_memory<float>();
  float sum = 0.0f;
  for (int i = 0; i < 2; ++i) {
    async_copy<4>(tile + 64 * i + threadIdx.x, in + 64 * i + threadIdx.x);  // bug: stages_wait_too_few
    async_commit();
  }
  for (int i = 0; i < 4; ++i) {
    async_wait<2>();
    __syncthreads();
    const int next = i + 2;
    if (next < 4) async_copy<4>(tile + 64 * (next % 3) + threadIdx.x, in + 64 * next + threadIdx.x);
    async_commit();
    sum += tile[64 * (i % 3) + 63 - threadIdx.x];  // bug: stages_wait_too_few
  }
  out[threadIdx.x] = sum;
}

// No group is committed once nothing is left to fetch: then "all but the latest" includes what is read.
__global__ void stages_commit_forgotten(float* out, const float* in) {
  float* tile = shared_memory<float>();
  float sum = 0.0f;
  for (int i = 0; i < 2; ++i) {
    async_copy<4>(tile + 64 * i + threadIdx.x, in + 64 * i + threadIdx.x);
    async_commit();
  }
  for (int i = 0; i < 4; ++i) {
    async_wait<1>();
    __syncthreads();
    const int next = i + 2;
    if (next < 4) {
      float* const target = tile + 64 * (next % 3) + threadIdx.x;
      async_copy<4>(target, in + 64 * next + threadIdx.x);  // bug: stages_commit_forgotten
      async_commit();
    }
    sum += tile[64 * (i % 3) + 63 - threadIdx.x];  // bug: stages_commit_forgotten
  }
  out[threadIdx.x] = sum;
}

// Two stages only: the one that is refilled is the one that others still read.
__global__ void stages_refilled_early(float* out, const float* in) {
  float* tile = shared_memory<float>();
  float sum = 0.0f;
  async_copy<4>(tile + threadIdx.x, in + threadIdx.x);  // bug: stages_refilled_early
  async_commit();
  for (int i = 0; i < 4; ++i) {
    const int next = i + 1;
    if (next < 4)
      async_copy<4>(tile + 64 * (next % 2) + threadIdx.x, in + 64 * next + threadIdx.x);  // bug: stages_refilled_early
    async_commit();
    async_wait<1>();
    __syncthreads();
    sum += tile[64 * (i % 2) + 63 - threadIdx.x];  // bug: stages_refilled_early
  }
  out[threadIdx.x] = sum;
}

__global__ void ok_two_stages_of_copies(float* out, const float* in) {
  float* tile = shared_memory<float>();
  float sum = 0.0f;
  async_copy<4>(tile + threadIdx.x, in + threadIdx.x);
  async_commit();
  for (int i = 0; i < 4; ++i) {
    const int next = i + 1;
    if (next < 4) async_copy<4>(tile + 64 * (next % 2) + threadIdx.x, in + 64 * next + threadIdx.x);
    async_commit();
    async_wait<1>();
    __syncthreads();
    sum += tile[64 * (i % 2) + 63 - threadIdx.x];
    __syncthreads();
  }
  out[threadIdx.x] = sum;
}

// --- who waits ---

// A wait is for the thread's own copies; those of the other warp, which has not waited, are still under way.
__global__ void waits_for_anothers_copy(float* out, const float* in) {
  float* tile = shared_memory<float>();
  if (threadIdx.x < 16) async_copy<16>(tile + 4 * threadIdx.x, in + 4 * threadIdx.x);  // bug: waits_for_anothers_copy
  async_commit();
  if (threadIdx.x >= 32) async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];  // bug: waits_for_anothers_copy
}

__global__ void ok_waits_for_its_copy(float* out, const float* in) {
  float* tile = shared_memory<float>();
  if (threadIdx.x < 16) async_copy<16>(tile + 4 * threadIdx.x, in + 4 * threadIdx.x);
  async_commit();
  if (threadIdx.x < 32) async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

// The barrier comes first, then the wait: others may read before the copy has landed.
__global__ void barrier_before_wait(float* out, const float* in) {
  float* tile = shared_memory<float>();
  if (threadIdx.x < 16) async_copy<16>(tile + 4 * threadIdx.x, in + 4 * threadIdx.x);  // bug: barrier_before_wait
  async_commit();
  __syncthreads();
  async_wait<0>();
  out[threadIdx.x] = tile[63 - threadIdx.x];  // bug: barrier_before_wait
}

// Elements outside are cleared by a plain store while the copy may still be landing there.
__global__ void cleared_in_flight(float* out, const float* in, int n) {
  float* tile = shared_memory<float>();
  async_copy<4>(tile + threadIdx.x, in + threadIdx.x);  // bug: cleared_in_flight
  async_commit();
  if (static_cast<int>(threadIdx.x) >= n) tile[threadIdx.x] = 0.0f;  // bug: cleared_in_flight
  async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

__global__ void ok_cleared_by_copy(float* out, const float* in, int n) {
  float* tile = shared_memory<float>();
  async_copy<4>(tile + threadIdx.x, in + threadIdx.x, static_cast<int>(threadIdx.x) < n ? 4 : 0);
  async_commit();
  async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

// Two copies of one thread to one place: nothing orders them before the wait.
__global__ void copied_over_in_flight(float* out, const float* in, int n) {
  float* tile = shared_memory<float>();
  const int valid = static_cast<int>(threadIdx.x) < n ? 4 : 0;
  async_copy<4>(tile + threadIdx.x, in + 63 - threadIdx.x);  // bug: copied_over_in_flight
  async_commit();
  async_copy<4>(tile + threadIdx.x, in + threadIdx.x, valid);  // bug: copied_over_in_flight
  async_commit();
  async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

__global__ void ok_copied_over_after_wait(float* out, const float* in, int n) {
  float* tile = shared_memory<float>();
  async_copy<4>(tile + threadIdx.x, in + 63 - threadIdx.x);
  async_commit();
  async_wait<0>();
  async_copy<4>(tile + threadIdx.x, in + threadIdx.x, static_cast<int>(threadIdx.x) < n ? 4 : 0);
  async_commit();
  async_wait<0>();
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

// --- a warp that copies and a warp that computes: barrier 1 says that the tile is full ---

__global__ void ok_copier_waits_then_arrives(float* out, const float* in) {
  float* tile = shared_memory<float>();
  if (threadIdx.x < 32) {
    async_copy<8>(tile + 2 * threadIdx.x, in + 2 * threadIdx.x);
    async_commit();
    async_wait<0>();
    named_barrier_arrive(1, 96);
  } else {
    named_barrier_sync(1, 96);
    out[threadIdx.x - 32] = tile[95 - threadIdx.x];
  }
}

// The barrier is told before the copies have been waited for.
__global__ void copier_arrives_in_flight(float* out, const float* in) {
  float* tile = shared_memory<float>();
  if (threadIdx.x < 32) {
    async_copy<8>(tile + 2 * threadIdx.x, in + 2 * threadIdx.x);  // bug: copier_arrives_in_flight
    async_commit();
    named_barrier_arrive(1, 96);
    async_wait<0>();
  } else {
    named_barrier_sync(1, 96);
    out[threadIdx.x - 32] = tile[95 - threadIdx.x];  // bug: copier_arrives_in_flight
  }
}
