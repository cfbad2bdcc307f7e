// Twins of named barriers: bar.sync waits, bar.arrive only reports. See twins_barriers.cu.
#include <platform.cuh>

// --- a producer and a consumer, one warp each: barrier 1 says that the tile is full, barrier 2 that it is free ---

__global__ void ok_full_and_free(float* out, const float* in) {
  float* tile = shared_memory<float>();
  const unsigned lane = threadIdx.x % 32;
  for (int i = 0; i < 3; ++i) {
    if (threadIdx.x < 32) {
      if (i > 0) named_barrier_sync(2, 64);
      tile[lane] = in[32 * i + lane];
      named_barrier_arrive(1, 64);
    } else {
      named_barrier_sync(1, 64);
      out[32 * i + lane] = tile[31 - lane];
      if (i < 2) named_barrier_arrive(2, 64);
    }
  }
}

// Reported full before it is filled: arriving releases what came before it.
__global__ void full_before_filled(float* out, const float* in) {
  float* tile = shared_memory<float>();
  const unsigned lane = threadIdx.x % 32;
  for (int i = 0; i < 3; ++i) {
    if (threadIdx.x < 32) {
      if (i > 0) named_barrier_sync(2, 64);
      named_barrier_arrive(1, 64);
      tile[lane] = in[32 * i + lane];  // bug: full_before_filled
    } else {
      named_barrier_sync(1, 64);
      out[32 * i + lane] = tile[31 - lane];  // bug: full_before_filled
      if (i < 2) named_barrier_arrive(2, 64);
    }
  }
}

__global__ void free_before_read(float* out, const float* in) {
  float* tile = shared_memory<float>();
  const unsigned lane = threadIdx.x % 32;
  for (int i = 0; i < 3; ++i) {
    if (threadIdx.x < 32) {
      if (i > 0) named_barrier_sync(2, 64);
      tile[lane] = in[32 * i + lane];  // bug: free_before_read
      named_barrier_arrive(1, 64);
    } else {
      named_barrier_sync(1, 64);
      if (i < 2) named_barrier_arrive(2, 64);
      out[32 * i + lane] = tile[31 - lane];  // bug: free_before_read
    }
  }
}

// Two stages with a pair of barriers each; stage s has barriers 1 + s (full) and 3 + s (free).
__global__ void ok_two_stages(float* out, const float* in) {
  float* tile = shared_memory<float>();
  const unsigned lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    const int stage = i % 2;
    if (threadIdx.x < 32) {
      if (i > 1) named_barrier_sync(3 + stage, 64);
      tile[32 * stage + lane] = in[32 * i + lane];
      named_barrier_arrive(1 + stage, 64);
    } else {
      named_barrier_sync(1 + stage, 64);
      out[32 * i + lane] = tile[32 * stage + 31 - lane];
      if (i < 2) named_barrier_arrive(3 + stage, 64);
    }
  }
}

// The consumer waits for one stage and reads the other.
__global__ void two_stages_mixed_up(float* out, const float* in) {
  float* tile = shared_memory<float>();
  const unsigned lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    const int stage = i % 2;
    if (threadIdx.x < 32) {
      if (i > 1) named_barrier_sync(3 + stage, 64);
      tile[32 * stage + lane] = in[32 * i + lane];  // bug: two_stages_mixed_up
      named_barrier_arrive(1 + stage, 64);
    } else {
      named_barrier_sync(1 + stage, 64);
      out[32 * i + lane] = tile[32 * (1 - stage) + 31 - lane];  // bug: two_stages_mixed_up
      if (i < 2) named_barrier_arrive(3 + stage, 64);
    }
  }
}

// --- two consumers take turns with one scratch tile (ping-pong) ---

__global__ void ok_ping_pong(float* out, const float* in) {
  float* scratch = shared_memory<float>();
  const unsigned lane = threadIdx.x % 32;
  const int warp = static_cast<int>(threadIdx.x / 32);
  for (int i = 0; i < 2; ++i) {
    if (warp == 1 || i > 0) named_barrier_sync(1 + warp, 64);
    scratch[lane] = in[64 * i + threadIdx.x];
    __syncwarp();
    out[64 * i + threadIdx.x] = scratch[31 - lane];
    __syncwarp();
    if (warp == 0 || i == 0) named_barrier_arrive(2 - warp, 64);
  }
}

// The turn is passed on before the scratch tile has been read.
__global__ void ping_pong_passed_on_early(float* out, const float* in) {
  float* scratch = shared_memory<float>();
  const unsigned lane = threadIdx.x % 32;
  const int warp = static_cast<int>(threadIdx.x / 32);
  for (int i = 0; i < 2; ++i) {
    if (warp == 1 || i > 0) named_barrier_sync(1 + warp, 64);
    scratch[lane] = in[64 * i + threadIdx.x];  // bug: ping_pong_passed_on_early
    __syncwarp();
    if (warp == 0 || i == 0) named_barrier_arrive(2 - warp, 64);
    out[64 * i + threadIdx.x] = scratch[31 - lane];  // bug: ping_pong_passed_on_early
    __syncwarp();
  }
}

// --- who is counted ---

// The barrier counts two warps; the third reads without having waited.
__global__ void third_warp_not_counted(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x] = in[threadIdx.x];  // bug: third_warp_not_counted
  if (threadIdx.x < 64) named_barrier_sync(1, 64);
  out[threadIdx.x] = tile[(threadIdx.x + 32) % 96];  // bug: third_warp_not_counted
}

__global__ void ok_third_warp_counted(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x] = in[threadIdx.x];
  named_barrier_sync(1, 96);
  out[threadIdx.x] = tile[(threadIdx.x + 32) % 96];
}

// Three warps read a word and a fourth renews it. It waits for two of them: the third reader must not be forgotten.
__global__ void third_reader(float* out, const float* in) {
  float* word = shared_memory<float>();
  const unsigned warp = threadIdx.x / 32;
  if (threadIdx.x == 96) *word = in[0];
  __syncthreads();
  if (warp < 3 && threadIdx.x % 32 == 0) out[warp] = *word;  // bug: third_reader
  __syncwarp();
  if (warp < 2) named_barrier_arrive(1, 96);
  if (warp != 3) return;
  named_barrier_sync(1, 96);
  if (threadIdx.x == 96) *word = 2.0f;  // bug: third_reader
}

__global__ void ok_third_reader_waited_for(float* out, const float* in) {
  float* word = shared_memory<float>();
  const unsigned warp = threadIdx.x / 32;
  if (threadIdx.x == 96) *word = in[0];
  __syncthreads();
  if (warp < 3 && threadIdx.x % 32 == 0) out[warp] = *word;
  __syncwarp();
  if (warp < 3) named_barrier_arrive(1, 128);
  if (warp != 3) return;
  named_barrier_sync(1, 128);
  if (threadIdx.x == 96) *word = 2.0f;
}

// The same with the first reader left out: which of the three is late must not matter.
__global__ void first_reader(float* out, const float* in) {
  float* word = shared_memory<float>();
  const unsigned warp = threadIdx.x / 32;
  if (threadIdx.x == 96) *word = in[0];
  __syncthreads();
  if (warp < 3 && threadIdx.x % 32 == 0) out[warp] = *word;  // bug: first_reader
  __syncwarp();
  if (warp == 1 || warp == 2) named_barrier_arrive(1, 96);
  if (warp != 3) return;
  named_barrier_sync(1, 96);
  if (threadIdx.x == 96) *word = 2.0f;  // bug: first_reader
}

// --- parts of warps. bar.sync is barrier.sync.aligned: all threads of a warp must execute it together, and it counts
// --- warps of 32, however many lanes are at it. By part of a warp its behaviour is undefined; the report may name
// --- the barrier at which the other lanes are, too.

// Four half warps are taken for two warps.
__global__ void half_warps_sync(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x] = in[threadIdx.x];
  if (threadIdx.x % 32 < 16) {
    named_barrier_sync(1, 64);  // bug: half_warps_sync
    out[threadIdx.x] = tile[(threadIdx.x + 32) % 128];
  }
  __syncthreads();  // bug: half_warps_sync
}

__global__ void ok_whole_warps_sync(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x] = in[threadIdx.x];
  named_barrier_sync(1, 128);
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = tile[(threadIdx.x + 32) % 128];
  __syncthreads();
}

// Two half warps report for one.
__global__ void half_warps_arrive(float* out, const float* in) {
  float* tile = shared_memory<float>();
  const unsigned warp = threadIdx.x / 32;
  if (warp == 2) {
    named_barrier_sync(1, 64);
    out[threadIdx.x - 64] = tile[threadIdx.x - 64];
  } else if (threadIdx.x % 32 < 16) {
    tile[threadIdx.x - 16 * warp] = in[threadIdx.x];
    named_barrier_arrive(1, 64);  // bug: half_warps_arrive
  }
  __syncthreads();  // bug: half_warps_arrive
}

__global__ void ok_whole_warps_arrive(float* out, const float* in) {
  float* tile = shared_memory<float>();
  const unsigned warp = threadIdx.x / 32;
  if (warp == 2) {
    named_barrier_sync(1, 96);
    out[threadIdx.x - 64] = tile[threadIdx.x - 64];
  } else {
    if (threadIdx.x % 32 < 16) tile[threadIdx.x - 16 * warp] = in[threadIdx.x];
    named_barrier_arrive(1, 96);
  }
  __syncthreads();
}

// One lane reports for its warp, as it would at an mbarrier.
__global__ void one_lane_arrives(float* out, const float* in) {
  float* tile = shared_memory<float>();
  if (threadIdx.x < 32) {
    tile[threadIdx.x] = in[threadIdx.x];
    __syncwarp();
    if (threadIdx.x == 0) named_barrier_arrive(1, 64);  // bug: one_lane_arrives
  } else {
    named_barrier_sync(1, 64);  // bug: one_lane_arrives
    out[threadIdx.x - 32] = tile[threadIdx.x - 32];
  }
  __syncthreads();  // bug: one_lane_arrives
}

__global__ void ok_warp_arrives(float* out, const float* in) {
  float* tile = shared_memory<float>();
  if (threadIdx.x < 32) {
    tile[threadIdx.x] = in[threadIdx.x];
    named_barrier_arrive(1, 64);
  } else {
    named_barrier_sync(1, 64);
    out[threadIdx.x - 32] = tile[threadIdx.x - 32];
  }
  __syncthreads();
}

// --- barriers in the wrong order ---

__global__ void barriers_crossed(float* out) {
  const int first = threadIdx.x < 32 ? 1 : 2;
  named_barrier_sync(first, 64);  // bug: barriers_crossed
  named_barrier_sync(3 - first, 64);
  out[threadIdx.x] = 1.0f;
}

__global__ void ok_barriers_in_order(float* out) {
  named_barrier_sync(1, 64);
  named_barrier_sync(2, 64);
  out[threadIdx.x] = 1.0f;
}

// The count is that of the block, but one warp never comes.
__global__ void barrier_counts_too_many(float* out) {
  if (threadIdx.x < 64) named_barrier_sync(1, 96);  // bug: barrier_counts_too_many
  out[threadIdx.x] = 1.0f;
}

// Two counts for one barrier.
__global__ void barrier_of_two_counts(float* out) {
  if (threadIdx.x < 32)
    named_barrier_sync(1, 64);  // bug: barrier_of_two_counts
  else
    named_barrier_sync(1, 96);  // bug: barrier_of_two_counts
  out[threadIdx.x] = 1.0f;
}

__global__ void ok_barrier_counts_two_warps(float* out) {
  if (threadIdx.x < 64) named_barrier_sync(1, 64);
  out[threadIdx.x] = 1.0f;
}
