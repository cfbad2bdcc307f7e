// primitives: each kernel hands one primitive's operands in and its results out, thread by thread.
#include <approx.cuh>
#include <async_copy.cuh>
#include <mma.cuh>
#include <platform.cuh>

#include "common/reduce.cuh"
#include "common/vec.cuh"

template <class T>
__global__ void round_to(T* out, const float* in, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = from_float<T>(in[i]);
}

template <class T>
__global__ void widen(float* out, const T* in) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = to_float(in[i]);
}

template <class T>
__global__ void pack_pairs(uint32_t* out, const float* in) {
  out[threadIdx.x] = pack<T>(in[2 * threadIdx.x], in[2 * threadIdx.x + 1]);
}

enum Function { Exp2, Tanh, Rsqrt, Reciprocal, LibraryRsqrt, LibraryLog2, LibraryTanh };
template <Function kFunction>
__global__ void approximate(float* out, const float* in, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  if (kFunction == Exp2) out[i] = exp2_approx(in[i]);
  if (kFunction == Tanh) out[i] = tanh_approx(in[i]);
  if (kFunction == Rsqrt) out[i] = rsqrt_approx(in[i]);
  if (kFunction == Reciprocal) out[i] = reciprocal_approx(in[i]);
  if (kFunction == LibraryRsqrt) out[i] = rsqrtf(in[i]);
  if (kFunction == LibraryLog2) out[i] = log2f(in[i]);
  if (kFunction == LibraryTanh) out[i] = tanhf(in[i]);
}

__global__ void indices(int* out) {
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int threads = blockDim.x * blockDim.y * blockDim.z;
  int* row = out + (block * threads + thread) * 12;
  const unsigned values[12] = {threadIdx.x, threadIdx.y, threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z,
                               blockDim.x,  blockDim.y,  blockDim.z,  gridDim.x,  gridDim.y,  gridDim.z};
  for (int i = 0; i < 12; ++i) row[i] = static_cast<int>(values[i]);
}

template <int kWidth>
__global__ void shuffle(int* out, const int* argument) {
  const int lane = threadIdx.x, value = 100 + lane, a = argument[lane];
  out[lane] = __shfl_sync(kFullMask, value, a, kWidth);
  out[32 + lane] = __shfl_up_sync(kFullMask, value, a, kWidth);
  out[64 + lane] = __shfl_down_sync(kFullMask, value, a, kWidth);
  out[96 + lane] = __shfl_xor_sync(kFullMask, value, a, kWidth);
}

__global__ void vote(uint32_t* out, const int* predicate, unsigned mask) {
  const int lane = threadIdx.x;
  if ((mask >> lane & 1) == 0) return;
  out[lane] = __ballot_sync(mask, predicate[lane]);
  out[32 + lane] = __any_sync(mask, predicate[lane]);
  out[64 + lane] = __all_sync(mask, predicate[lane]);
}

template <class T>
__global__ void atomics(T* memory, T* old, const T* value) {
  const int i = threadIdx.x;
  if (i == 0) old[0] = atomicAdd(memory + 0, value[0]);
  if (i == 1) old[1] = atomicExch(memory + 1, value[1]);
}

template <class T>
__global__ void compared_atomics(T* memory, T* old, const T* value) {
  const int i = threadIdx.x;
  if (i == 0) old[0] = atomicMin(memory + 0, value[0]);
  if (i == 1) old[1] = atomicMax(memory + 1, value[1]);
  if (i == 2) old[2] = atomicCAS(memory + 2, value[2], value[3]);
  if (i == 3) old[3] = atomicCAS(memory + 3, value[4], value[3]);
}

// Fills shared memory from `in` (16-bit elements, rows of 8, `pitch` elements apart).
__device__ void fill(uint16_t* tile, const uint16_t* in, int elements) {
  for (int i = threadIdx.x; i < elements; i += blockDim.x) tile[i] = in[i];
  __syncthreads();
}

enum Form { Straight, Transposed };
template <int kMatrices, Form kForm>
__global__ void load_matrices(uint32_t* out, const uint16_t* in, const int* row_offset, int elements) {
  uint16_t* tile = shared_memory<uint16_t>();
  fill(tile, in, elements);
  uint32_t registers[kMatrices];
  const uint16_t* row = tile + row_offset[threadIdx.x];
  if constexpr (kMatrices == 1 && kForm == Straight) ldmatrix_x1(registers, row);
  if constexpr (kMatrices == 2 && kForm == Straight) ldmatrix_x2(registers, row);
  if constexpr (kMatrices == 4 && kForm == Straight) ldmatrix_x4(registers, row);
  if constexpr (kMatrices == 1 && kForm == Transposed) ldmatrix_x1_trans(registers, row);
  if constexpr (kMatrices == 2 && kForm == Transposed) ldmatrix_x2_trans(registers, row);
  if constexpr (kMatrices == 4 && kForm == Transposed) ldmatrix_x4_trans(registers, row);
  for (int i = 0; i < kMatrices; ++i) out[threadIdx.x * kMatrices + i] = registers[i];
}

template <int kMatrices, Form kForm>
__global__ void store_matrices(uint16_t* out, const uint32_t* in, const int* row_offset, int elements) {
  uint16_t* tile = shared_memory<uint16_t>();
  for (int i = threadIdx.x; i < elements; i += blockDim.x) tile[i] = 0;
  __syncthreads();
  uint32_t registers[kMatrices];
  for (int i = 0; i < kMatrices; ++i) registers[i] = in[threadIdx.x * kMatrices + i];
  uint16_t* row = tile + row_offset[threadIdx.x];
  if constexpr (kMatrices == 1 && kForm == Straight) stmatrix_x1(row, registers);
  if constexpr (kMatrices == 2 && kForm == Straight) stmatrix_x2(row, registers);
  if constexpr (kMatrices == 4 && kForm == Straight) stmatrix_x4(row, registers);
  if constexpr (kMatrices == 1 && kForm == Transposed) stmatrix_x1_trans(row, registers);
  if constexpr (kMatrices == 2 && kForm == Transposed) stmatrix_x2_trans(row, registers);
  if constexpr (kMatrices == 4 && kForm == Transposed) stmatrix_x4_trans(row, registers);
  __syncthreads();
  for (int i = threadIdx.x; i < elements; i += blockDim.x) out[i] = tile[i];
}

// Every lane's registers of a, b and d, in this order of lanes; one warp.
template <class T, int kTiles>
__global__ void multiply(float* d, const uint32_t* a, const uint32_t* b) {
  const int lane = threadIdx.x;
  float sum[kTiles][4];
  uint32_t left[4], right[kTiles][2];
  for (int i = 0; i < 4; ++i) left[i] = a[4 * lane + i];
  for (int n = 0; n < kTiles; ++n) {
    for (int i = 0; i < 4; ++i) sum[n][i] = d[(n * 32 + lane) * 4 + i];
    for (int i = 0; i < 2; ++i) right[n][i] = b[(n * 32 + lane) * 2 + i];
  }
  if constexpr (kTiles == 1)
    mma_m16n8k16<T>(sum[0], left, right[0]);
  else
    mma_row<T>(sum, left, right);
  for (int n = 0; n < kTiles; ++n)
    for (int i = 0; i < 4; ++i) d[(n * 32 + lane) * 4 + i] = sum[n][i];
}

template <int kThreads>
__global__ void sum_block(float* out, const float* in) {
  out[threadIdx.x] = block_sum<kThreads>(in[threadIdx.x], shared_memory<float>());
}

template <class T, int N>
__global__ void copy_strided(T* out, const T* in, int stride) {
  Vec<T, N>::load(in + threadIdx.x * stride * N).store(out + threadIdx.x * N);
}

// Threads read shared memory `stride` vectors apart.
template <int N>
__global__ void read_shared(float* out, int stride, int floats) {
  float* tile = shared_memory<float>();
  for (int i = threadIdx.x; i < floats; i += blockDim.x) tile[i] = static_cast<float>(i);
  __syncthreads();
  const Vec<float, N> v = Vec<float, N>::load(tile + threadIdx.x * stride * N);
  if (v.element[0] < 0.0f) out[threadIdx.x] = v.element[0];
}

__global__ void divergent_copy(float* out, const float* in) {  // odd lanes loop longer than even ones
  for (unsigned i = 0; i < 2 + threadIdx.x % 2; ++i) out[i * 32 + threadIdx.x] = in[i * 32 + threadIdx.x];
}

__global__ void ordered_launches(float* out) {
  grid_dependency_wait();
  out[threadIdx.x] = 1.0f;
  grid_dependency_release();
}

// Each thread copies 16 bytes `turns` times, of which valid[turn, thread] are read. out and in [turns, threads, 4].
__global__ void copy_in_turns(float* out, const float* in, const int* valid, int turns) {
  float* tile = shared_memory<float>();
  for (int i = threadIdx.x; i < turns * blockDim.x; i += blockDim.x) async_copy<16>(tile + 4 * i, in + 4 * i, valid[i]);
  async_commit();
  async_wait<0>();
  for (int i = threadIdx.x; i < turns * blockDim.x; i += blockDim.x)
    Vec<float, 4>::load(tile + 4 * i).store(out + 4 * i);
}
