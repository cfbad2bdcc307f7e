// The elements that each lane reads of a tile numbered row by row. Comes after common/tile.cuh.

template <int D>
__global__ void tile_offsets(int* offset) {  // [rows of the grid, D / 8]
  offset[blockIdx.x * (D / 8) + threadIdx.x] = swizzled_offset<D>(blockIdx.x, threadIdx.x);
}

template <int D, class T>
__device__ T* numbered_tile(int rows) {
  T* tile = shared_memory<T>();
  for (int i = threadIdx.x; i < rows * D; i += blockDim.x)
    tile[swizzled_offset<D>(i / D, i % D / 8) + i % 8].bits = static_cast<uint16_t>(i);
  __syncthreads();
  return tile;
}

template <class T, int D>
__global__ void a_fragments(uint32_t* out) {  // [D / 16, 32, 4]
  const T* tile = numbered_tile<D, T>(16);
  for (int column = 0; column < D; column += 16) {
    uint32_t a[4];
    load_a(a, tile, swizzled_offset_16_rows<D>(threadIdx.x), column);
    for (int i = 0; i < 4; ++i) out[(column / 16 * 32 + threadIdx.x) * 4 + i] = a[i];
  }
}

template <class T, int D, int kTiles>
__global__ void b_row_fragments(uint32_t* out) {  // [D / 16, 32, kTiles, 2]
  const T* tile = numbered_tile<D, T>(8 * kTiles);
  for (int column = 0; column < D; column += 16) {
    uint32_t b[kTiles][2];
    load_b_rows<D>(b, tile, swizzled_offset_8_rows<D>(threadIdx.x), column);
    for (int n = 0; n < kTiles; ++n)
      for (int i = 0; i < 2; ++i) out[((column / 16 * 32 + threadIdx.x) * kTiles + n) * 2 + i] = b[n][i];
  }
}

template <class T, int D, int kTiles>
__global__ void b_column_fragments(uint32_t* out) {  // [D / (8 kTiles), 32, kTiles, 2]
  const T* tile = numbered_tile<D, T>(16);
  for (int column = 0; column < D; column += 8 * kTiles) {
    uint32_t b[kTiles][2];
    load_b_columns(b, tile, swizzled_offset_16_rows<D>(threadIdx.x), column);
    for (int n = 0; n < kTiles; ++n)
      for (int i = 0; i < 2; ++i) out[((column / (8 * kTiles) * 32 + threadIdx.x) * kTiles + n) * 2 + i] = b[n][i];
  }
}
