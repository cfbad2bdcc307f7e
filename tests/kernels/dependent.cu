// dependent: kernels that wait for the launch before them first, late, in some threads only, or never.
#include <platform.cuh>

enum Order { WaitFirst, ReleaseFirst, WaitLast, OnlyRelease, Nothing };

template <Order kOrder>
__device__ __forceinline__ void begin() {
  if constexpr (kOrder == ReleaseFirst || kOrder == OnlyRelease) grid_dependency_release();
  if constexpr (kOrder == WaitFirst || kOrder == ReleaseFirst) grid_dependency_wait();
  if constexpr (kOrder == WaitFirst) grid_dependency_release();
}
template <Order kOrder>
__device__ __forceinline__ void end() {
  if constexpr (kOrder == WaitLast) grid_dependency_wait();
}

template <Order kOrder, class T>
__global__ void grid_copy(T* out, const T* in, int n) {
  begin<kOrder>();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = in[i];  // touch
  end<kOrder>();
}

template <Order kOrder>
__global__ void grid_count_up(int* counter) {
  begin<kOrder>();
  atomicAdd(counter, 1);  // touch
  end<kOrder>();
}

// Reads `early` before it waits for the launch before, `late` afterwards.
template <Order kOrder>
__global__ void grid_copy_two(float* out, const float* early, const float* late) {
  const float x = early[threadIdx.x];  // touch early
  begin<kOrder>();
  out[threadIdx.x] = x + late[threadIdx.x];  // touch late
  end<kOrder>();
}

// `weight` is declared constant: kernels write it at no time when this one may run.
__global__ void grid_scale(float* out, const float* __restrict__ weight, const float* in) {
  const float factor = weight[threadIdx.x];  // touch weight
  grid_dependency_wait();
  out[threadIdx.x] = factor * in[threadIdx.x] + weight[threadIdx.x];
}
__global__ void grid_scale_late(float* out, const float* __restrict__ weight, const float* in) {
  grid_dependency_wait();
  out[threadIdx.x] = weight[threadIdx.x] * in[threadIdx.x];  // touch weight
}

enum Meeting { Alone, Barrier, WarpSync, NamedBarrier };

// One thread waits, then its warp or its block meets, then all read.
template <Meeting kMeeting>
__global__ void grid_wait_by_one(float* out, const float* in) {
  if (threadIdx.x == 5) grid_dependency_wait();
  if constexpr (kMeeting == Barrier) __syncthreads();
  if constexpr (kMeeting == WarpSync) __syncwarp();
  if constexpr (kMeeting == NamedBarrier) {
    if (threadIdx.x < 32)
      named_barrier_arrive(1, 64);
    else
      named_barrier_sync(1, 64);
  }
  if (kMeeting != NamedBarrier || threadIdx.x >= 32) out[threadIdx.x] = in[threadIdx.x];
}

// Only block 0 waits before it lets the next launch start; the others at their end.
__global__ void grid_wait_by_one_block(float* out) {
  if (blockIdx.x == 0) grid_dependency_wait();
  grid_dependency_release();
  out[blockIdx.x * blockDim.x + threadIdx.x] = 1.0f;
}
