// Twins of what the bytes are: bytes, bools, bits, halves and vectors in one word, words under another name. See
// twins_barriers.cu.
#include <platform.cuh>

#include "common/vec.cuh"

// --- bytes and bits: different bytes are different locations, different bits of a word are not ---

__global__ void ok_bools(int* out, const int* in) {
  bool* is_odd = shared_memory<bool>();
  is_odd[threadIdx.x] = in[threadIdx.x] % 2 != 0;
  __syncthreads();
  out[threadIdx.x] = is_odd[63 - threadIdx.x] ? 1 : 0;
}

__global__ void bools_read_early(int* out, const int* in) {
  bool* is_odd = shared_memory<bool>();
  is_odd[threadIdx.x] = in[threadIdx.x] % 2 != 0;       // bug: bools_read_early
  out[threadIdx.x] = is_odd[63 - threadIdx.x] ? 1 : 0;  // bug: bools_read_early
}

// Every thread its own byte of a word that all read afterwards.
__global__ void ok_bytes_of_words(int* out, const int* in) {
  uint8_t* bytes = shared_memory<uint8_t>();
  bytes[threadIdx.x] = static_cast<uint8_t>(in[threadIdx.x] % 2);
  __syncthreads();
  out[threadIdx.x] = shared_memory<int>()[threadIdx.x / 4] >> 8 * (threadIdx.x % 4) & 1;
}

// The byte is put into its word by reading and writing the word.
__global__ void bytes_through_words(int* out, const int* in) {
  unsigned* words = shared_memory<unsigned>();
  if (threadIdx.x < 16) words[threadIdx.x] = 0;
  __syncthreads();
  const unsigned byte = static_cast<unsigned>(in[threadIdx.x] % 2) << 8 * (threadIdx.x % 4);
  words[threadIdx.x / 4] |= byte;  // bug: bytes_through_words
  __syncthreads();
  out[threadIdx.x] = static_cast<int>(words[threadIdx.x / 4] >> 8 * (threadIdx.x % 4) & 1u);
}

// The same in global memory, in an array that the launch knows as one of ints.
__global__ void ok_bytes_of_global_words(int* out, const int* in, int* words) {
  uint8_t* bytes = reinterpret_cast<uint8_t*>(words);
  bytes[threadIdx.x] = static_cast<uint8_t>(in[threadIdx.x] % 2);
  __syncthreads();
  out[threadIdx.x] = words[threadIdx.x / 4] >> 8 * (threadIdx.x % 4) & 1;
}

// Byte and word overlap: a word is read while its bytes are written.
__global__ void global_words_read_early(int* out, const int* in, int* words) {
  uint8_t* bytes = reinterpret_cast<uint8_t*>(words);
  bytes[threadIdx.x] = static_cast<uint8_t>(in[threadIdx.x] % 2);          // bug: global_words_read_early
  out[threadIdx.x] = words[threadIdx.x / 4] >> 8 * (threadIdx.x % 4) & 1;  // bug: global_words_read_early
}

__global__ void bits_of_a_word(int* out, const int* in) {
  unsigned* bits = shared_memory<unsigned>();
  if (threadIdx.x < 2) bits[threadIdx.x] = 0;
  __syncthreads();
  if (in[threadIdx.x] % 2 != 0) bits[threadIdx.x / 32] |= 1u << threadIdx.x % 32;  // bug: bits_of_a_word
  __syncthreads();
  out[threadIdx.x] = static_cast<int>(bits[threadIdx.x / 32] >> threadIdx.x % 32 & 1u);
}

// A bit is added by an atomic operation, or all bits of a warp are written at once.
__global__ void ok_bits_added(int* out, const int* in) {
  unsigned* bits = shared_memory<unsigned>();
  if (threadIdx.x < 2) bits[threadIdx.x] = 0;
  __syncthreads();
  if (in[threadIdx.x] % 2 != 0) atomicAdd(&bits[threadIdx.x / 32], 1u << threadIdx.x % 32);
  __syncthreads();
  out[threadIdx.x] = static_cast<int>(bits[threadIdx.x / 32] >> threadIdx.x % 32 & 1u);
}

__global__ void ok_bits_balloted(int* out, const int* in) {
  unsigned* bits = shared_memory<unsigned>();
  const unsigned votes = __ballot_sync(kFullMask, in[threadIdx.x] % 2);
  if (threadIdx.x % 32 == 0) bits[threadIdx.x / 32] = votes;
  __syncthreads();
  out[threadIdx.x] = static_cast<int>(bits[threadIdx.x / 32] >> threadIdx.x % 32 & 1u);
}

// --- halves and vectors ---

__global__ void ok_halves(float* out, const float* in) {
  bf16* tile = shared_memory<bf16>();
  tile[threadIdx.x] = from_float<bf16>(in[threadIdx.x]);
  __syncthreads();
  out[threadIdx.x] = to_float(tile[63 - threadIdx.x]);
}

// The odd half is put beside the even one by writing the whole pair.
__global__ void halves_as_pairs(float* out, const float* in) {
  bf16* tile = shared_memory<bf16>();
  unsigned* pairs = shared_memory<unsigned>();
  if (threadIdx.x % 2 == 0) tile[threadIdx.x] = from_float<bf16>(in[threadIdx.x]);  // bug: halves_as_pairs
  if (threadIdx.x % 2 != 0)
    pairs[threadIdx.x / 2] = bit_cast<unsigned>(in[threadIdx.x]) & 0xffff0000u;  // bug: halves_as_pairs
  __syncthreads();
  out[threadIdx.x] = to_float(tile[63 - threadIdx.x]);
}

__global__ void ok_vectors(float* out, const float* in) {
  float* tile = shared_memory<float>();
  if (threadIdx.x < 16) Vec<float, 4>::load(in + 4 * threadIdx.x).store(tile + 4 * threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

// Written by vectors, read by elements: only the vector's own thread has its four in order.
__global__ void vectors_read_early(float* out, const float* in) {
  float* tile = shared_memory<float>();
  if (threadIdx.x < 16)
    Vec<float, 4>::load(in + 4 * threadIdx.x).store(tile + 4 * threadIdx.x);  // bug: vectors_read_early
  out[threadIdx.x] = tile[63 - threadIdx.x];                                  // bug: vectors_read_early
}

// The last vector covers the elements of the tail as well.
__global__ void vectors_over_tail(float* out, const float* in) {
  if (threadIdx.x < 16)
    Vec<float, 4>::load(in + 60 - 4 * threadIdx.x).store(out + 60 - 4 * threadIdx.x);  // bug: vectors_over_tail
  else if (threadIdx.x < 18)
    out[44 + threadIdx.x] = in[44 + threadIdx.x];  // bug: vectors_over_tail
}

__global__ void ok_vectors_then_tail(float* out, const float* in) {
  if (threadIdx.x < 15)
    Vec<float, 4>::load(in + 4 * threadIdx.x).store(out + 4 * threadIdx.x);
  else if (threadIdx.x < 19)
    out[45 + threadIdx.x] = in[45 + threadIdx.x];
}

// Rows of eight whose columns are swizzled by the row: a warp writes four rows and reads columns of all eight.
__global__ void swizzled_syncwarp(float* out, const float* in) {
  float* tile = shared_memory<float>();
  const unsigned row = threadIdx.x / 8, column = threadIdx.x % 8;
  tile[8 * row + (column ^ row)] = in[threadIdx.x];  // bug: swizzled_syncwarp
  __syncwarp();
  out[threadIdx.x] = tile[8 * column + (row ^ column)];  // bug: swizzled_syncwarp
}

__global__ void ok_swizzled(float* out, const float* in) {
  float* tile = shared_memory<float>();
  const unsigned row = threadIdx.x / 8, column = threadIdx.x % 8;
  tile[8 * row + (column ^ row)] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[8 * column + (row ^ column)];
}

// --- memory under another name ---

union Word {
  float value;
  unsigned bits;
};

__global__ void ok_union(float* out, const float* in) {
  Word* words = shared_memory<Word>();
  words[threadIdx.x].value = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = bit_cast<float>(words[63 - threadIdx.x].bits);
}

__global__ void union_read_early(float* out, const float* in) {
  Word* words = shared_memory<Word>();
  words[threadIdx.x].value = in[threadIdx.x];                        // bug: union_read_early
  out[threadIdx.x] = bit_cast<float>(words[63 - threadIdx.x].bits);  // bug: union_read_early
}
