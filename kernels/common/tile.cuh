// Tiles of 16-bit elements in shared memory, and the fragments of mma.m16n8k16 that a warp holds in registers.
#pragma once
#include <mma.cuh>

constexpr int kMmaM = 16, kMmaN = 8, kMmaK = 16;  // A [M, K], B [K, N], accumulators [M, N]
constexpr int kChunk = 8;                         // elements of 16 bytes: what cp.async and a lane of ldmatrix move

// Offset of 16-byte chunk `chunk` in row `row` of a tile [rows, D], under the 128-byte swizzle: 8 rows of one chunk
// column (ldmatrix, accumulator stores) and 8 chunks of one row (copies) each touch all 32 banks once.
template <int D>
__device__ __forceinline__ int swizzled_offset(int row, int chunk) {
  static_assert(D % 64 == 0, "a row is a multiple of 128 bytes");
  return row * D + ((chunk ^ (row & 7)) << 3);
}

// Swizzled offset `chunks` to the right. Requires (chunk & chunks) == 0 for the chunk of `offset`. A constant `chunks`
// costs one XOR plus an immediate, so that a lane reads a whole tile from one offset.
__device__ __forceinline__ int advance_swizzled(int offset, int chunks) {
  return (offset ^ ((chunks & 7) << 3)) + ((chunks & ~7) << 3);
}

// Offset of the row that a lane addresses for one A fragment, or for two B fragments of 16 rows, loaded transposed.
template <int D>
__device__ __forceinline__ int swizzled_offset_16_rows(int lane) {
  return swizzled_offset<D>(lane % 16, lane / 16);
}
// Offset of the row that a lane addresses for two B fragments of the transposed tile, 8 rows each.
template <int D>
__device__ __forceinline__ int swizzled_offset_8_rows(int lane) {
  return swizzled_offset<D>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

// The loaders recompute their addresses from `offset` in each iteration of a loop: kept live, they fill registers.

// A fragment [kMmaM, kMmaK]: the first 16 rows of the tile, columns from `column` on. offset: ..._16_rows.
template <class T>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const T* tile, int offset, int column) {
  offset = value_barrier(offset);
  ldmatrix_x4(a, tile + advance_swizzled(offset, column / kChunk));
}

// B fragments [kMmaK, kTiles · kMmaN] of tileᵀ: the first kTiles · 8 rows of the tile, columns from `column` on.
// offset: ..._8_rows.
template <int D, class T, int kTiles>
__device__ __forceinline__ void load_b_rows(uint32_t (&b)[kTiles][2], const T* tile, int offset, int column) {
  static_assert(kTiles % 2 == 0, "one ldmatrix loads two fragments");
  offset = value_barrier(offset);
#pragma unroll
  for (int n = 0; n < kTiles; n += 2) {
    uint32_t pair[4];
    ldmatrix_x4(pair, tile + kMmaN * n * D + advance_swizzled(offset, column / kChunk));
    b[n][0] = pair[0], b[n][1] = pair[1], b[n + 1][0] = pair[2], b[n + 1][1] = pair[3];
  }
}

// B fragments [kMmaK, kTiles · kMmaN] of the tile itself: its first 16 rows, columns from `column` on. offset:
// ..._16_rows.
template <class T, int kTiles>
__device__ __forceinline__ void load_b_columns(uint32_t (&b)[kTiles][2], const T* tile, int offset, int column) {
  static_assert(kTiles % 2 == 0, "one ldmatrix loads two fragments");
  offset = value_barrier(offset);
#pragma unroll
  for (int n = 0; n < kTiles; n += 2) {
    uint32_t pair[4];
    ldmatrix_x4_trans(pair, tile + advance_swizzled(offset, column / kChunk + n));
    b[n][0] = pair[0], b[n][1] = pair[1], b[n + 1][0] = pair[2], b[n + 1][1] = pair[3];
  }
}

// Accumulators [kTilesM][kTilesN][4] of a warp: elements 2 half and 2 half + 1 of fragment (m, n) are neighbours in row
// accumulator_row(m, half, lane), from accumulator_column(n, lane) on.
__device__ __forceinline__ int accumulator_row(int m, int half, int lane) { return kMmaM * m + 8 * half + lane / 4; }
__device__ __forceinline__ int accumulator_column(int n, int lane) { return kMmaN * n + lane % 4 * 2; }

// Calls f(m, n, half) for each pair of neighbouring accumulators of this lane.
template <int kTilesM, int kTilesN, class F>
__device__ __forceinline__ void each_pair(F f) {
#pragma unroll
  for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
    for (int n = 0; n < kTilesN; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) f(m, n, half);
    }
  }
}

// Calls f(m, half) for each row of accumulators that this lane holds a part of.
template <int kTilesM, class F>
__device__ __forceinline__ void each_row(F f) {
  each_pair<kTilesM, 1>([&](int m, int, int half) { f(m, half); });
}
