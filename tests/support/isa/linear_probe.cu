// The elements that each lane reads of tiles numbered row by row, and those that sums are for. Comes after linear.cu.

__global__ void linear_offsets(int* offset, const uint16_t* source) {  // [rows, kBlockK / kChunk], [rows, kBlockK]
  uint16_t* tile = shared_memory<uint16_t>();
  load_tile<64, 32>(tile, source, kBlockK, 64, kBlockK);
  async_commit();
  async_wait<0>();
  __syncthreads();
  for (int i = threadIdx.x; i < 64 * kBlockK; i += 32)
    if (tile[i] % kChunk == 0) offset[tile[i] / kChunk] = i;
}

template <class T, int kTiles>
__global__ void linear_fragments(uint32_t* x_out, uint32_t* w_out) {  // [2, 4, 32, 4], [4, 32, kTiles, 2]
  T* tile = shared_memory<T>();
  for (int i = threadIdx.x; i < 8 * kTiles * kBlockK; i += blockDim.x)
    tile[swizzled_offset<kBlockK>(i / kBlockK, i % kBlockK / kChunk) + i % kChunk].bits = static_cast<uint16_t>(i);
  __syncthreads();
  const int lane = threadIdx.x;
  for (int column = 0; column < kBlockK; column += 16) {
    for (int row = 0; row < 32; row += 16) {
      uint32_t a[4];
      load_a(a, tile + row * kBlockK, swizzled_offset_16_rows<kBlockK>(lane), column);
      for (int i = 0; i < 4; ++i) x_out[((row / 16 * 4 + column / 16) * 32 + lane) * 4 + i] = a[i];
    }
    uint32_t b[kTiles][2];
    load_b_rows<kBlockK>(b, tile, swizzled_offset_8_rows<kBlockK>(lane), column);
    for (int n = 0; n < kTiles; ++n)
      for (int i = 0; i < 2; ++i) w_out[((column / 16 * 32 + lane) * kTiles + n) * 2 + i] = b[n][i];
  }
}

// in [kTilesM, kTilesN, 32, 4]: the sums of each lane. by_pair, by_quad [16 kTilesM, 8 kTilesN]. each_quad names no
// columns, so that the quads of a row stand in the order of their numbers.
template <int kTilesM, int kTilesN>
__global__ void placed_sums(float* by_pair, float* by_quad, const float* in) {
  Sums<kTilesM, kTilesN> sums;
  for (int m = 0; m < kTilesM; ++m)
    for (int n = 0; n < kTilesN; ++n)
      for (int i = 0; i < 4; ++i) sums.fragment[m][n][i] = in[((m * kTilesN + n) * 32 + threadIdx.x) * 4 + i];
  sums.each_element_pair([&](int row, int column, const float* pair) {
    by_pair[row * 8 * kTilesN + column] = pair[0];
    by_pair[row * 8 * kTilesN + column + 1] = pair[1];
  });
  sums.each_quad([&](int row, int quad, const float* first, const float* second) {
    float* to = by_quad + row * 8 * kTilesN + quad % kTilesN / 2 * 16 + threadIdx.x % 4 * 4;
    to[0] = first[0], to[1] = first[1], to[2] = second[0], to[3] = second[1];
  });
}
