// Twins of blocks that share global memory without meaning to, of atomic operations on memory of several kinds, and of
// memory that nobody has written. See twins_fences.cu.
#include <platform.cuh>

// --- shares that overlap ---

__global__ void ok_chunks(float* out, int n) {
  const int chunk = (n + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
  const int begin = static_cast<int>(blockIdx.x) * chunk, end = min(begin + chunk, n);
  for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += static_cast<int>(blockDim.x)) out[i] = 1.0f;
}

// Each chunk ends one element into the next one. That both write the same value makes it no less a race.
__global__ void chunks_overlap(float* out, int n) {
  const int chunk = (n + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
  const int begin = static_cast<int>(blockIdx.x) * chunk, end = min(begin + chunk + 1, n);
  for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += static_cast<int>(blockDim.x))
    out[i] = 1.0f;  // bug: chunks_overlap
}

__global__ void ok_stencil(float* out, const float* in, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  out[i] = (i > 0 ? in[i - 1] : 0.0f) + (i < n - 1 ? in[i + 1] : 0.0f);
}

// In place: a barrier keeps the block's own threads apart, but not the neighbours of the next block.
__global__ void stencil_in_place(float* out, const float* in, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  out[i] += in[0];  // bug: stencil_in_place
  __syncthreads();
  const float sum = (i > 0 ? out[i - 1] : 0.0f) + (i < n - 1 ? out[i + 1] : 0.0f);  // bug: stencil_in_place
  __syncthreads();
  out[i] = sum;  // bug: stencil_in_place
}

// Whoever finds a value says so. All write the same, which the model does not excuse.
__global__ void found_plainly(int* found, const float* in) {
  if (in[threadIdx.x] > 8.0f) *found = 1;  // bug: found_plainly
}

__global__ void ok_found(int* found, const float* in) {
  if (in[threadIdx.x] > 8.0f) atomicExch(found, 1);
}

// --- counts and sums between blocks ---

__global__ void ok_global_histogram(int* bins, const int* in) { atomicAdd(&bins[in[threadIdx.x]], 1); }

__global__ void global_histogram_plainly(int* bins, const int* in) {
  bins[in[threadIdx.x]] += 1;  // bug: global_histogram_plainly
}

// One block clears what all count in: nothing makes it the first.
__global__ void global_histogram_cleared_by_one(int* bins, const int* in) {
  if (blockIdx.x == 0 && threadIdx.x < 8) bins[threadIdx.x] = 0;  // bug: global_histogram_cleared_by_one
  __syncthreads();
  atomicAdd(&bins[in[threadIdx.x]], 1);  // bug: global_histogram_cleared_by_one
}

// The maximum is kept atomically, and skipped by a plain look where it would change nothing.
__global__ void maximum_looked_at_plainly(int* maximum, const int* in) {
  if (in[threadIdx.x] >= *maximum) atomicMax(maximum, in[threadIdx.x]);  // bug: maximum_looked_at_plainly
}

__global__ void ok_maximum(int* maximum, const int* in) {
  if (in[threadIdx.x] >= atomicMax(maximum, 0)) atomicMax(maximum, in[threadIdx.x]);
}

// Two counts in one word of 64 bits: all threads add to the word.
__global__ void ok_two_counts(unsigned long long* counts, const int* in) {
  atomicAdd(counts, in[threadIdx.x] % 2 != 0 ? 1ull << 32 : 1ull);
}

// Some add to one half by itself. Operations that overlap in part are not morally strong: a data race of mixed size.
__global__ void two_counts_in_halves(unsigned long long* counts, const int* in) {
  if (in[threadIdx.x] % 2 != 0)
    atomicAdd(counts, 1ull << 32);  // bug: two_counts_in_halves
  else
    atomicAdd(reinterpret_cast<unsigned*>(counts), 1u);  // bug: two_counts_in_halves
}

// --- within a block: an atomic flag, a barrier, a plain read ---

__global__ void ok_flag_after_barrier(int* out, const int* in) {
  int* flag = shared_memory<int>();
  if (threadIdx.x == 0) *flag = 0;
  __syncthreads();
  if (in[threadIdx.x] > 2) atomicExch(flag, 1);
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = *flag;
}

__global__ void flag_without_barrier(int* out, const int* in) {
  int* flag = shared_memory<int>();
  if (threadIdx.x == 0) *flag = 0;
  __syncthreads();
  if (in[threadIdx.x] > 2) atomicExch(flag, 1);        // bug: flag_without_barrier
  out[blockIdx.x * blockDim.x + threadIdx.x] = *flag;  // bug: flag_without_barrier
}

// Nobody has given the count a first value. An atomic operation reads as well.
__global__ void shared_count_unwritten(int* out, const int* in) {
  int* count = shared_memory<int>();
  if (in[threadIdx.x] > 2) atomicAdd(count, 1);  // bug: shared_count_unwritten
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = *count > 0 ? 1 : 0;  // bug: shared_count_unwritten
}

__global__ void ok_shared_count(int* out, const int* in) {
  int* count = shared_memory<int>();
  if (threadIdx.x == 0) *count = 0;
  __syncthreads();
  if (in[threadIdx.x] > 2) atomicAdd(count, 1);
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = *count > 0 ? 1 : 0;
}

// An exchange whose result nobody wants gives a first value as a store does.
__global__ void ok_shared_count_exchanged(int* out, const int* in) {
  int* count = shared_memory<int>();
  if (threadIdx.x == 0) atomicExch(count, 0);
  __syncthreads();
  if (in[threadIdx.x] > 2) atomicAdd(count, 1);
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = *count > 0 ? 1 : 0;
}

// --- global memory that nobody has written: `scratch` is fresh ---

template <class T>
__global__ void reads_unwritten(T* out, T* scratch) {
  if (threadIdx.x < 48) scratch[threadIdx.x] = static_cast<T>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = scratch[63 - threadIdx.x];  // bug: reads_unwritten
}

template <class T>
__global__ void ok_reads_written(T* out, T* scratch) {
  scratch[threadIdx.x] = static_cast<T>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = scratch[63 - threadIdx.x];
}

__global__ void counts_in_unwritten(int* out, int* scratch) {
  atomicAdd(&scratch[threadIdx.x % 8], 1);  // bug: counts_in_unwritten
  __syncthreads();
  out[threadIdx.x] = scratch[threadIdx.x % 8];  // bug: counts_in_unwritten
}

__global__ void ok_counts_in_cleared(int* out, int* scratch) {
  if (threadIdx.x < 8) scratch[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&scratch[threadIdx.x % 8], 1);
  __syncthreads();
  out[threadIdx.x] = scratch[threadIdx.x % 8];
}

// What marks unwritten memory is a value that a kernel may write as well.
template <class T>
__global__ void ok_writes_any_value(T* out, T* scratch, int value) {
  scratch[threadIdx.x] = static_cast<T>(value);
  __syncthreads();
  out[threadIdx.x] = scratch[63 - threadIdx.x];
}

// Rows of 8 in a tile of 9 columns: the padding is nobody's to read.
__global__ void reads_padding(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x / 8 * 9 + threadIdx.x % 8] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x + threadIdx.x / 9];  // bug: reads_padding
}

__global__ void ok_reads_around_padding(float* out, const float* in) {
  float* tile = shared_memory<float>();
  tile[threadIdx.x / 8 * 9 + threadIdx.x % 8] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x + threadIdx.x / 8];
}

// --- registers: no check sees them, but the result must not be what the programmer hoped for ---

__global__ void register_unset(float* out, const float* in, int n) {
  float x;
  if (static_cast<int>(threadIdx.x) < n) x = in[threadIdx.x];
  out[threadIdx.x] = x;  // bug: register_unset
}

__global__ void sum_unset(float* out, const float* in, int n) {
  float sum;
  for (int i = 0; i < n; ++i) sum += in[i];
  out[threadIdx.x] = sum;  // bug: sum_unset
}

__global__ void ok_register_set(float* out, const float* in, int n) {
  float x = 0.0f;
  if (static_cast<int>(threadIdx.x) < n) x = in[threadIdx.x];
  out[threadIdx.x] = x;
}

__global__ void ok_sum_set(float* out, const float* in, int n) {
  float sum = 0.0f;
  for (int i = 0; i < n; ++i) sum += in[i];
  out[threadIdx.x] = sum;
}
