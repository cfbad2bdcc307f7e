// Every form in which shared memory is declared.
#include <cstdint>

struct Pair {
  float value;
  int index;
};

template <typename T, int N>
__device__ T rotate(T value) {
  __shared__ T slots[N];
  slots[threadIdx.x] = value;
  __syncthreads();
  T next = slots[(threadIdx.x + 1) % N];
  __syncthreads();
  return next;
}

// Arrays of several types and dimensions, a struct, a scalar, several in one declaration.
__global__ void static_forms(float* out, const float* in) {
  __shared__ float line[64], other[64];
  __shared__ float plane[8][9];
  static __shared__ Pair pairs[64];
  __shared__ int flag;
  __shared__ volatile unsigned char bytes[64];
  const int i = threadIdx.x;
  line[i] = in[i];
  other[i] = 2 * in[i];
  plane[i / 8][i % 8] = 3 * in[i];
  pairs[i].value = 4 * in[i];
  pairs[i].index = i;
  bytes[i] = static_cast<unsigned char>(i);
  if (i == 0) flag = 7;
  __syncthreads();
  const int j = 63 - i;
  out[i] = line[j] + other[j] + plane[j / 8][j % 8] + pairs[j].value + pairs[j].index + bytes[j] + flag +
           rotate<float, 64>(in[i]) + rotate<int, 64>(i);
}

namespace names {
extern __shared__ double wide[];
}
extern __shared__ __align__(16) unsigned char raw[];

// All `extern __shared__` names are the same memory.
__global__ void dynamic_forms(float* out, const float* in) {
  extern __shared__ float4 vectors[];
  __shared__ float in_front[64];
  float* floats = reinterpret_cast<float*>(raw);
  floats[threadIdx.x] = in[threadIdx.x];
  in_front[threadIdx.x] = 1.0f;
  __syncthreads();
  if (threadIdx.x < 16) {
    float4 v = vectors[threadIdx.x];
    out[4 * threadIdx.x] = v.w;
    out[4 * threadIdx.x + 1] = v.z;
    out[4 * threadIdx.x + 2] = v.y;
    out[4 * threadIdx.x + 3] = v.x + in_front[63 - threadIdx.x];
  }
  __syncthreads();
  if (threadIdx.x < 32) names::wide[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[threadIdx.x] += static_cast<float>(names::wide[threadIdx.x % 32]);
}

template <typename T>
__global__ void dynamic_in_a_template(T* out, const T* in, int n) {
  extern __shared__ __align__(sizeof(T)) unsigned char memory[];
  T* buffer = reinterpret_cast<T*>(memory);
  for (int i = threadIdx.x; i < n; i += blockDim.x) buffer[i] = in[i];
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = buffer[n - 1 - i];
}

template <int kBytes>
__global__ void takes_shared(int* out) {
  __shared__ unsigned char memory[kBytes];
  memory[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = memory[blockDim.x - 1 - threadIdx.x];
}

__constant__ float coefficients[3] = {0.25f, 0.5f, 0.25f};
__constant__ float table[4];
__device__ int calls, history[4];

__global__ void uses_variables(float* out, const float* in, int n) {
  const int i = threadIdx.x;
  float sum = table[i % 4];
  for (int j = 0; j < 3; ++j) sum += coefficients[j] * in[(i + j + n - 1) % n];
  out[i] = sum;
  if (i == 0) {
    const int number = atomicAdd(&calls, 1);
    history[number % 4] = n;
  }
}

__global__ void reads_variables(int* out) {
  if (threadIdx.x < 4) out[threadIdx.x] = history[threadIdx.x];
  if (threadIdx.x == 4) out[4] = calls;
}
