// Tiles of 16-bit elements in shared memory, and the mma fragments that are read from them.
#pragma once
#include <mma.cuh>

// Where 16-byte chunk `chunk` of a row of D elements lies. Chunks are permuted inside each 128 bytes, so that 8 rows of
// one chunk column (ldmatrix, accumulator stores) and 8 chunks of one row (copies) each touch all 32 banks once.
template <int D>
__device__ __forceinline__ int tile_offset(int row, int chunk) {
  static_assert(D % 64 == 0, "a row is a multiple of 128 bytes");
  return row * D + ((chunk ^ (row & 7)) << 3);
}

// The place `chunks` chunks to the right of one whose own chunk has none of the bits of `chunks`: with constant
// `chunks`, all that a lane reads of a tile is one of few exclusive ors and a constant away from its first place.
__device__ __forceinline__ int moved_right(int place, int chunks) {
  return (place ^ ((chunks & 7) << 3)) + ((chunks & ~7) << 3);
}

// Where a lane reads its row for an A fragment, or for two B fragments of neighbouring columns (transposed as they
// load).
template <int D>
__device__ __forceinline__ int place_in_16_rows(int lane) {
  return tile_offset<D>(lane % 16, lane / 16);
}
// Where a lane reads its row for two B fragments of the tile's transpose, 8 rows each.
template <int D>
__device__ __forceinline__ int place_in_8_rows(int lane) {
  return tile_offset<D>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
}

// A fragment: the first 16 rows of the tile, 16 columns from `column` on. place: in_16_rows.
template <class T>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], const T* tile, int place, int column) {
  place = opaque(place);
  ldmatrix_x4(a, tile + moved_right(place, column / 8));
}

// B fragments of tileᵀ: n runs over the first kTiles · 8 rows, k over 16 columns from `column` on. place: in_8_rows.
template <int D, class T, int kTiles>
__device__ __forceinline__ void load_b_rows(uint32_t (&b)[kTiles][2], const T* tile, int place, int column) {
  place = opaque(place);
#pragma unroll
  for (int n = 0; n < kTiles; n += 2) {
    uint32_t pair[4];
    ldmatrix_x4(pair, tile + 8 * n * D + moved_right(place, column / 8));
    b[n][0] = pair[0], b[n][1] = pair[1], b[n + 1][0] = pair[2], b[n + 1][1] = pair[3];
  }
}

// B fragments of the tile itself: k runs over the first 16 rows, n over kTiles · 8 columns from `column` on. place:
// in_16_rows.
template <int D, class T, int kTiles>
__device__ __forceinline__ void load_b_columns(uint32_t (&b)[kTiles][2], const T* tile, int place, int column) {
  place = opaque(place);
#pragma unroll
  for (int n = 0; n < kTiles; n += 2) {
    uint32_t pair[4];
    ldmatrix_x4_trans(pair, tile + moved_right(place, column / 8 + n));
    b[n][0] = pair[0], b[n][1] = pair[1], b[n + 1][0] = pair[2], b[n + 1][1] = pair[3];
  }
}
