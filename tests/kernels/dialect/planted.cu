// planted: one bug per kernel in memory that its source declares, at the lines marked "bug: <kernel>".
#include <assert.h>

__global__ void race(float* out, const float* in) {
  __shared__ float tile[64];
  tile[threadIdx.x] = in[threadIdx.x];        // bug: race
  out[threadIdx.x] = tile[63 - threadIdx.x];  // bug: race
}

__global__ void scalar_race(float* out) {
  __shared__ float sum;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  sum += threadIdx.x;  // bug: scalar_race
  __syncthreads();
  out[threadIdx.x] = sum;
}

__global__ void uninitialized(float* out, const float* in, int n) {
  __shared__ float tile[64];
  if (threadIdx.x < n) tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];  // bug: uninitialized
}

// What the last block left is not there any more.
__global__ void leftover(float* out) {
  __shared__ float kept[64];
  if (blockIdx.x == 0) kept[threadIdx.x] = 1;
  __syncthreads();
  out[64 * blockIdx.x + threadIdx.x] = kept[threadIdx.x];  // bug: leftover
}

__global__ void index_past_end(float* out, int shift) {
  __shared__ float tile[64];
  __shared__ float next[64];
  next[threadIdx.x] = 0;
  tile[threadIdx.x + shift] = 1;  // bug: index_past_end
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x] + next[63 - threadIdx.x];
}

__device__ __noinline__ void fill(float* first, int i) {
  first[i] = 1;  // bug: pointer_past_end
}

__global__ void pointer_past_end(float* out, int shift) {
  __shared__ float tile[64];
  __shared__ float next[64];
  next[threadIdx.x] = 0;
  fill(tile, threadIdx.x + shift);
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x] + next[63 - threadIdx.x];
}

__device__ __noinline__ float fetch(const float* first, int i) {
  return first[i];  // bug: pointer_before_start
}

__global__ void pointer_before_start(float* out, int shift) {
  __shared__ float one[64], two[64];
  one[threadIdx.x] = two[threadIdx.x] = 0;
  __syncthreads();
  const float* later = one < two ? two : one;
  out[threadIdx.x] = fetch(later, threadIdx.x - shift);
}

__global__ void dynamic_past_end(float* out) {
  extern __shared__ float dynamic[];
  __shared__ float tile[64];
  tile[threadIdx.x] = 0;
  dynamic[threadIdx.x + 1] = 1;  // bug: dynamic_past_end
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

__global__ void misaligned(float* out) {
  __shared__ __align__(16) float tile[68];
  for (int i = threadIdx.x; i < 68; i += 32) tile[i] = 0;
  __syncthreads();
  float4 v = *reinterpret_cast<float4*>(tile + 2 * threadIdx.x);  // bug: misaligned
  out[threadIdx.x] = v.x + v.w;
}

__global__ void failing_assert(const int* in, int n) {
  assert(in[threadIdx.x] < n && "an index");  // bug: failing_assert
}

__constant__ int fixed[2] = {1, 2};
__device__ int counter;
__device__ float values[8];

__global__ void writes_constant(int* out) {
  if (threadIdx.x == 0) const_cast<int*>(fixed)[1] = 3;  // bug: writes_constant
  out[threadIdx.x] = fixed[threadIdx.x % 2];
}

__global__ void variable_race(int* out) {
  counter = counter + 1;  // bug: variable_race
  out[threadIdx.x] = 0;
}

__global__ void variable_past_end(float* out, float* first) {
  float* all = values;
  fill(all, static_cast<int>(threadIdx.x));  // bug: variable_past_end
  out[threadIdx.x] = 0;
}

// Each lane has its own idea of who takes part: __activemask promises nothing of the others.
__global__ void believes_in_activemask(int* out) {
  int sum = 1;
  if (threadIdx.x % 2 == 0) {
    const unsigned mask = __activemask();
    for (int lane = 16; lane > 1; lane /= 2) sum += __shfl_xor_sync(mask, sum, lane);  // bug: believes_in_activemask
  }
  out[threadIdx.x] = sum;
}

__global__ void memcpy_past_end(char* out, const char* in, int n) {
  memcpy(out, in, n);  // bug: memcpy_past_end
}

__global__ void histogram_match_of_some(int* out) {
  if (threadIdx.x >= 16) __syncthreads();
  out[threadIdx.x % 4] = static_cast<int>(__match_any_sync(0xffffffff, threadIdx.x % 4));
}
