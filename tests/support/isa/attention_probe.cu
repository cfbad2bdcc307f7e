// The rows and keys of the registers of attention. Comes after attention.cu; rows are those of two warps.

template <class T, int kColumns>
__global__ void rounded_fragments(uint32_t* out, const float* in) {  // [32, kColumns / 2, 4], [32, kColumns, 4]
  float p[1][kColumns][4];
  uint32_t a[1][kColumns / 2][4];
  for (int n = 0; n < kColumns; ++n)
    for (int i = 0; i < 4; ++i) p[0][n][i] = in[(threadIdx.x * kColumns + n) * 4 + i];
  round_to_fragments<T>(a, p);
  for (int n = 0; n < kColumns / 2; ++n)
    for (int i = 0; i < 4; ++i) out[(threadIdx.x * (kColumns / 2) + n) * 4 + i] = a[0][n][i];
}

__global__ void biased_scores(float* out, const float* bias) {  // [64, 8, 4], [32 rows, 64 keys]
  TileRow* rows = shared_memory<TileRow>();
  if (threadIdx.x < 32) store_vector(rows + threadIdx.x, TileRow{static_cast<int>(threadIdx.x), 0, 0, 64});
  __syncthreads();
  float scores[1][8][4] = {};
  Params params = {};
  params.bias.query = 64;
  mask_logits(scores, Bias<float>{1.0f, 1.0f, 1.0f}, rows, bias, params, 0, false);
  for (int n = 0; n < 8; ++n)
    for (int i = 0; i < 4; ++i) out[(threadIdx.x * 8 + n) * 4 + i] = scores[0][n][i];
}

__global__ void seen_scores(float* out, const int* begin, const int* count) {  // [64, 8, 4], [32], [32]
  TileRow* rows = shared_memory<TileRow>();
  if (threadIdx.x < 32) store_vector(rows + threadIdx.x, TileRow{0, 0, begin[threadIdx.x], count[threadIdx.x]});
  __syncthreads();
  float scores[1][8][4] = {};
  mask_logits(scores, Plain{1.0f, 1.0f, 1.0f}, rows, static_cast<const float*>(nullptr), Params{}, 64, true);
  for (int n = 0; n < 8; ++n)
    for (int i = 0; i < 4; ++i) out[(threadIdx.x * 8 + n) * 4 + i] = scores[0][n][i];
}

__global__ void row_maxima(float* out, const float* in) {  // [32, 2], [32, 8, 4]
  float scores[1][8][4], correction[1][2];
  for (int n = 0; n < 8; ++n)
    for (int i = 0; i < 4; ++i) scores[0][n][i] = in[(threadIdx.x * 8 + n) * 4 + i];
  OnlineSoftmax<1> softmax;
  softmax.update_max(scores, 1.0f, correction);
  for (int half = 0; half < 2; ++half) out[threadIdx.x * 2 + half] = softmax.max[0][half];
}

template <class T, int D>
__global__ void stored_output(T* o, const float* in) {  // [32, D], [64, D / 8, 4]
  T* tile = shared_memory<T>();
  TileRow* rows = shared_memory<TileRow>(32 * D * sizeof(T));
  if (threadIdx.x < 32) store_vector(rows + threadIdx.x, TileRow{static_cast<int>(threadIdx.x), 0, 0, 0});
  float out[1][D / 8][4];
  for (int n = 0; n < D / 8; ++n)
    for (int i = 0; i < 4; ++i) out[0][n][i] = in[(threadIdx.x * (D / 8) + n) * 4 + i];
  __syncthreads();
  store_output<D>(o, tile, out, rows, first_row<1>(threadIdx.x), 32, Strides{0, D, 0});
}
