// attention: o = softmax(logit(q kᵀ)) v over grouped heads, each query over its own interval of keys.
//
// Query n sees the keys t with key_begin[n] <= t < key_end[n]. Every rule of every Gemma (causal, window, image spans,
// bidirectional, prefix, padding) is such an interval, and neither end falls from one query of a sequence to the next.
// So a tile of queries needs the keys from key_begin of its first to key_end of its last query, and no others are read;
// and all of it sees a tile of keys that lies between key_begin of its last and key_end of its first: no element test.
// The rows of a tile are (query, head of the group) pairs: keys are read once for all heads that share them. Tiles of
// keys start at multiples of kBlockK, so a row's bits depend on its own keys only: not on kBlockQ, on the batch, or on
// how a prompt is cut into chunks.
//
// In order: what a block is given, loads of tiles, the main loop with its two products and the mask, the epilogue, the
// kernel, and the kernel that merges partial results. Suffixes: _smem lies in shared memory, _rmem in registers.
//
//   shapes    q, o [N, H, D] packed tokens; k, v [B, T, KH, D]; lse [N, H]; key_begin, key_end [N]; bias [B, H, S, T];
//             any strides, last axis contiguous; head h reads kv head h / (H / KH)
//   types     T in {bf16, half}; bias in {float, bf16, half}; logits, max, sum, accumulator, lse fp32
//   constant  none
//   template  D in {64, 128, 256}; kBlockQ rows, kBlockK keys of a tile; kPairs of k and v tiles in flight, 1 or 2;
//             Logit in {Plain, SoftCap, Bias<T>, SoftCapBias<T>}
//   launch    grid (KH, tiles), block attention_threads(D, kBlockQ), dynamic smem
//             (kBlockQ + 2 · kPairs · kBlockK) · D · sizeof(T) + kBlockQ · sizeof(TileRow)
//   numerics  p rounded to T before p · v, the row sum is of unrounded p; o divided and rounded once; a row that sees
//             no key gives 0 and lse -inf; keys between those of a sequence are finite, with a bias their scores, too
//   cost      4 · D flops per row and key of a tile; q and o moved once, k and v once per tile of rows
//   source    FlashAttention-2, arXiv:2307.08691, algorithm 1; rows rescaled late as in FlashAttention-4
#include <async_copy.cuh>
#include <memory.cuh>
#include <mma.cuh>
#include <platform.cuh>

#include "common/logit.cuh"
#include "common/softmax.cuh"
#include "common/tile.cuh"
#include "common/vec.cuh"

// Params, WorkTile, MergeTile and LogitFactors are filled by Python, which reads their members here by name.

struct Strides {  // in elements
  int64_t batch, token, head;
};
struct BiasStrides {
  int64_t batch, head, query;
};
struct Params {
  Strides q, o, k, v;
  BiasStrides bias;
  int heads_per_group, kv_heads;
};

// One block's tile: rows [first_row, first_row + rows) of the (query, head of the group) pairs of a sequence × keys
// [key_begin, key_end). partial: its slot among the partial results, or -1 if no other block has keys of these rows.
struct WorkTile {
  int batch, first_token, first_row, rows, key_begin, key_end, partial;
};

// Rows whose keys several blocks share: their partial results are in slots [first_partial, first_partial + partials).
struct MergeTile {
  int first_token, first_row, rows, first_partial, partials;
};

// One row of a tile: query of the sequence, head of the group, and the keys it sees of those of the block.
struct TileRow {
  int query, head, key_begin, key_count;

  __device__ __forceinline__ bool sees(int t) const {
    return static_cast<unsigned>(t - key_begin) < static_cast<unsigned>(key_count);
  }
};

// Pointers to results. With a partial slot a block writes partial_o and partial_softmax, else o and, unless null, lse.
template <class T>
struct Results {
  T* o;
  float *lse, *partial_o, *partial_softmax;
};

// 4 warps of 16 or 32 rows each; with D = 256 the accumulators of 16 rows fill a warp's registers.
__device__ constexpr int attention_threads(int D, int kBlockQ) { return D > 128 ? 2 * kBlockQ : 128; }

// First row of a thread's warp, which has kTilesM fragments of kMmaM rows.
template <int kTilesM>
__device__ __forceinline__ int first_row(int thread) {
  return thread / 32 * (kMmaM * kTilesM);
}

template <int kThreads, int kBlockQ>
__device__ __forceinline__ void describe_rows(TileRow* rows_smem, const WorkTile& work, const int* key_begin,
                                              const int* key_end, int heads) {
  for (int r = threadIdx.x; r < kBlockQ; r += kThreads) {
    const int packed = work.first_row + min(r, work.rows - 1);  // rows past the last repeat it: no range changes
    TileRow row = {packed / heads, packed % heads, 0, 0};
    row.key_begin = max(key_begin[work.first_token + row.query], work.key_begin);
    row.key_count = max(min(key_end[work.first_token + row.query], work.key_end) - row.key_begin, 0);
    store_vector(rows_smem + r, row);
  }
}

// Starts loading Q [kBlockQ, D]; rows from `rows` on are zero. The caller commits.
template <int kThreads, int kBlockQ, int D, class T>
__device__ __forceinline__ void load_queries(T* Q_smem, const T* q, const TileRow* rows_smem, int rows,
                                             const Strides& strides) {
  constexpr int kChunks = D / kChunk;
#pragma unroll 4
  for (int r = threadIdx.x / kChunks; r < kBlockQ; r += kThreads / kChunks) {
    const int chunk = threadIdx.x % kChunks;
    const T* source = q + rows_smem[r].query * strides.token + rows_smem[r].head * strides.head + kChunk * chunk;
    async_copy<16>(Q_smem + swizzled_offset<D>(r, chunk), source, r < rows ? 16 : 0);
  }
}

// The tiles K0 V0 K1 V1 ... [kBlockK, D] of one sequence and kv head, in a ring of kPairs pairs in shared memory.
template <class T, int D, int kBlockK, int kPairs, int kThreads>
struct KeyValueStream {
  enum Kind { K, V };
  T* KV_smem;
  const T *k, *v;
  const Params& params;
  const int& batch;        // in global memory: loaded at each use, since pointers made of it would stay in registers
  int key_begin, key_end;  // other keys are not read and count as zero, since 0 · NaN would not be 0

  // Tile of the keys from t on, a multiple of kBlockK.
  __device__ __forceinline__ T* tile(Kind kind, int t) const {
    return KV_smem + (t / kBlockK % kPairs * 2 + kind) * (kBlockK * D);
  }

  // Starts loading the keys from t on. The caller commits.
  template <Kind kKind>
  __device__ __forceinline__ void load(int t) const {
    constexpr int kChunks = D / kChunk, kRowsAtOnce = kThreads / kChunks;
    if (t >= key_end) return;
    const Strides& strides = kKind == K ? params.k : params.v;
    const int thread = reload_tid(), row = thread / kChunks, chunk = thread % kChunks;
    const T* source = (kKind == K ? k : v) + batch * strides.batch + blockIdx.x * strides.head +
                      (t + row) * strides.token + kChunk * chunk;
    T* target = tile(kKind, t);
#pragma unroll
    for (int r = 0; r < kBlockK; r += kRowsAtOnce) {
      const bool is_read = t + row + r >= key_begin && t + row + r < key_end;
      async_copy<16>(target + swizzled_offset<D>(row + r, chunk), source, is_read ? 16 : 0);
      source += kRowsAtOnce * strides.token;
    }
  }

  // Waits for the tile of the keys from t on. Its predecessor in the stream is then free, and is filled with the tile
  // 2 · kPairs - 1 places later.
  template <Kind kKind>
  __device__ __forceinline__ const T* next(int t) const {
    async_wait<2 * kPairs - 2>();
    __syncthreads();  // every thread's part of the tile has landed, and every warp has read the predecessor
    if constexpr (kKind == K)
      load<V>(t + (kPairs - 1) * kBlockK);
    else
      load<K>(t + kPairs * kBlockK);
    async_commit();
    return tile(kKind, t);
  }
};

// S += Q Kᵀ, of this warp's rows.
template <int D, class T, int kTilesM, int kTilesN>
__device__ __forceinline__ void multiply_keys(float (&S_rmem)[kTilesM][kTilesN][4], const T* Q_smem, const T* K_smem) {
  const int thread = reload_tid(), q_offset = swizzled_offset_16_rows<D>(thread % 32),
            k_offset = swizzled_offset_8_rows<D>(thread % 32);
  Q_smem += first_row<kTilesM>(thread) * D;
#pragma unroll
  for (int d = 0; d < D; d += kMmaK) {
    uint32_t a[kTilesM][4], b[kTilesN][2];
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) load_a(a[m], Q_smem + kMmaM * m * D, q_offset, d);
    load_b_rows<D>(b, K_smem, k_offset, d);
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) mma_row<T>(S_rmem[m], a[m], b);
  }
}

// Mask: scores of the keys from t on become logits, and with is_edge -inf where a row does not see the key.
template <class Logit, int kTilesM, int kTilesN>
__device__ __forceinline__ void mask_logits(float (&S_rmem)[kTilesM][kTilesN][4], const Logit& logit,
                                            const TileRow* rows_smem, const typename Logit::Element* bias,
                                            const Params& params, int t, bool is_edge) {
  if (Logit::kIsScore && !is_edge) return;
  const int thread = reload_tid(), lane = thread % 32;
  rows_smem += first_row<kTilesM>(thread);
  each_row<kTilesM>([=, &S_rmem](int m, int half) {  // by value: by reference costs registers
    const TileRow row = load_vector<TileRow>(rows_smem + accumulator_row(m, half, lane));
    const typename Logit::Element* bias_row = bias;
    const int first_key = t + accumulator_column(0, lane);
    if constexpr (Logit::kHasBias) bias_row += row.query * params.bias.query + row.head * params.bias.head + first_key;
#pragma unroll
    for (int n = 0; n < kTilesN; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const bool is_seen = !is_edge || row.sees(first_key + kMmaN * n + i);
        float& score = S_rmem[m][n][2 * half + i];
        if constexpr (Logit::kHasBias) {
          float added = -kInf;  // hides the key: a choice after the load would keep its predicate in a register
          if (is_seen) added = to_float(bias_row[kMmaN * n + i]);
          score = logit.logit(score, added);
        } else {
          score = is_seen ? logit.logit(score, 0.0f) : -kInf;
        }
      }
    }
  });
}

// P rounded to T, as A fragments of kMmaK keys each: two accumulator fragments side by side have the layout of one A
// fragment, so no element changes its lane.
template <class T, int kTilesM, int kTilesN>
__device__ __forceinline__ void round_to_fragments(uint32_t (&a)[kTilesM][kTilesN / 2][4],
                                                   const float (&P_rmem)[kTilesM][kTilesN][4]) {
  each_pair<kTilesM, kTilesN>([&](int m, int n, int half) {
    a[m][n / 2][n % 2 * 2 + half] = pack<T>(P_rmem[m][n][2 * half], P_rmem[m][n][2 * half + 1]);
  });
}

// O += P V, of this warp's rows.
template <int D, class T, int kTilesM, int kSteps>
__device__ __forceinline__ void multiply_values(float (&O_rmem)[kTilesM][D / kMmaN][4],
                                                const uint32_t (&p)[kTilesM][kSteps][4], const T* V_smem) {
  constexpr int kTilesAtOnce = 8;  // B fragments of 64 columns in registers
  const int offset = swizzled_offset_16_rows<D>(reload_tid() % 32);
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int n = 0; n < D / kMmaN; n += kTilesAtOnce) {
      uint32_t b[kTilesAtOnce][2];
      load_b_columns(b, V_smem + kMmaK * s * D, offset, kMmaN * n);
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) mma_row<T>(O_rmem[m], p[m][s], b, n);
    }
  }
}

template <int kTilesM, int kTilesN>
__device__ __forceinline__ void rescale(float (&O_rmem)[kTilesM][kTilesN][4], const float (&factor)[kTilesM][2]) {
  each_pair<kTilesM, kTilesN>([&](int m, int n, int half) {
    O_rmem[m][n][2 * half] *= factor[m][half];
    O_rmem[m][n][2 * half + 1] *= factor[m][half];
  });
}

// O = Σ exp(logit - max) V over the keys [t, work.key_end), not yet divided by the row sums of `softmax`.
template <int D, int kBlockQ, int kBlockK, class T, class Stream, class Logit, int kTilesM>
__device__ __forceinline__ void main_loop(float (&O_rmem)[kTilesM][D / kMmaN][4], OnlineSoftmax<kTilesM>& softmax,
                                          const Stream& stream, const T* Q_smem, const TileRow* rows_smem, int t,
                                          const WorkTile& work, const typename Logit::Element* bias,
                                          const Params& params, const Logit& logit) {
  for (; t < work.key_end; t += kBlockK) {
    float S_rmem[kTilesM][kBlockK / kMmaN][4] = {}, correction[kTilesM][2];
    multiply_keys<D>(S_rmem, Q_smem, stream.template next<Stream::K>(t));  // S = Q Kᵀ [kBlockQ, kBlockK]
    const TileRow &top = rows_smem[0], &bottom = rows_smem[kBlockQ - 1];
    const bool is_edge = t < bottom.key_begin || t + kBlockK > top.key_begin + top.key_count;
    mask_logits(S_rmem, logit, rows_smem, bias, params, t, is_edge);  // S = logit(S) or -inf
    if (softmax.update_max(S_rmem, logit.exponent, correction)) rescale(O_rmem, correction);
    softmax.exponentiate(S_rmem, logit.exponent);  // P = exp(S - max), in place
    uint32_t p[kTilesM][kBlockK / kMmaK][4];
    round_to_fragments<T>(p, S_rmem);
    multiply_values<D>(O_rmem, p, stream.template next<Stream::V>(t));  // O += P V [kBlockQ, D]
  }
}

// Rows of this warp, rounded, to o: through O_smem, the rows of Q that no other warp reads, so that stores are whole
// rows.
template <int D, class T, int kTilesM>
__device__ __forceinline__ void store_output(T* o, T* O_smem, const float (&O_rmem)[kTilesM][D / kMmaN][4],
                                             const TileRow* rows_smem, int first, int rows, const Strides& strides) {
  const int lane = threadIdx.x % 32;
  __syncwarp();  // every lane has read its Q
  each_pair<kTilesM, D / kMmaN>([&](int m, int n, int half) {
    const int row = first + accumulator_row(m, half, lane);
    store_vector(O_smem + swizzled_offset<D>(row, n) + accumulator_column(0, lane),
                 pack<T>(O_rmem[m][n][2 * half], O_rmem[m][n][2 * half + 1]));
  });
  __syncwarp();  // the rows are whole
  constexpr int kChunks = D / kChunk;
  for (int i = lane; i < kMmaM * kTilesM * kChunks; i += 32) {
    const int row = first + i / kChunks, chunk = i % kChunks;
    if (row >= rows) break;
    T* target = o + rows_smem[row].query * strides.token + rows_smem[row].head * strides.head + kChunk * chunk;
    Vec<T, kChunk>::load(O_smem + swizzled_offset<D>(row, chunk)).store(target);
  }
}

// Divides O by the row sums and stores the block's tile of results.
template <int D, int kBlockQ, class T, int kTilesM>
__device__ __forceinline__ void epilogue(const Results<T>& results, float (&O_rmem)[kTilesM][D / kMmaN][4],
                                         const OnlineSoftmax<kTilesM>& softmax, T* O_smem, const TileRow* rows_smem,
                                         const WorkTile& work, const Params& params, float exponent) {
  const int first = first_row<kTilesM>(threadIdx.x), lane = threadIdx.x % 32;
  const int kv_head = blockIdx.x, heads = params.heads_per_group;
  float inverse[kTilesM][2];
  each_row<kTilesM>([&](int m, int half) {
    const float sum = quad_sum(softmax.sum[m][half]);
    inverse[m][half] = sum == 0.0f ? 0.0f : 1.0f / sum;
    const int r = first + accumulator_row(m, half, lane);
    if (lane % 4 != 0 || r >= work.rows) return;
    const int64_t token = work.first_token + rows_smem[r].query, head = kv_head * heads + rows_smem[r].head;
    if (work.partial >= 0)
      Vec<float, 2>{softmax.max[m][half], sum}.store(
          results.partial_softmax +
          2 * ((static_cast<int64_t>(work.partial) * params.kv_heads + kv_head) * kBlockQ + r));
    else if (results.lse != nullptr)
      results.lse[token * (params.kv_heads * heads) + head] = log_sum_exp(softmax.max[m][half], sum, exponent);
  });
  rescale(O_rmem, inverse);
  if (work.partial < 0) {
    T* o = results.o + work.first_token * params.o.token + kv_head * heads * params.o.head;
    store_output<D>(o, O_smem, O_rmem, rows_smem, first, work.rows, params.o);
    return;
  }
  float* partial_o = results.partial_o + (static_cast<int64_t>(work.partial) * params.kv_heads + kv_head) * kBlockQ * D;
  each_pair<kTilesM, D / kMmaN>([&](int m, int n, int half) {
    const int r = first + accumulator_row(m, half, lane);
    const Vec<float, 2> pair = {O_rmem[m][n][2 * half], O_rmem[m][n][2 * half + 1]};
    if (r < work.rows) pair.store(partial_o + r * D + accumulator_column(n, lane));
  });
}

// work_tiles: WorkTile [blocks of a kv head].
template <class T, int D, int kBlockQ, int kBlockK, int kPairs, class Logit>
__global__ void __launch_bounds__(attention_threads(D, kBlockQ), D > 128 ? 1 : 2)
    attention(T* o, float* lse, float* partial_o, float* partial_softmax, const T* q, const T* k, const T* v,
              const typename Logit::Element* bias, const int* key_begin, const int* key_end, const int* work_tiles,
              Params params, Logit logit) {
  grid_dependency_wait();
  grid_dependency_release();
  constexpr int kThreads = attention_threads(D, kBlockQ), kTilesM = kBlockQ / (kThreads / 2);
  T* Q_smem = shared_memory<T>();
  T* KV_smem = Q_smem + kBlockQ * D;
  TileRow* rows_smem = shared_memory<TileRow>((kBlockQ + 2 * kPairs * kBlockK) * D * sizeof(T));
  const int kv_head = blockIdx.x, heads = params.heads_per_group;
  const WorkTile* work_tile = reinterpret_cast<const WorkTile*>(work_tiles) + blockIdx.y;
  const WorkTile work = *work_tile;
  if (work.rows == 0) return;  // a table may be longer than its work

  q += work.first_token * params.q.token + kv_head * heads * params.q.head;
  if constexpr (Logit::kHasBias) bias += work.batch * params.bias.batch + kv_head * heads * params.bias.head;
  using Stream = KeyValueStream<T, D, kBlockK, kPairs, kThreads>;
  const Stream stream{KV_smem, k, v, params, work_tile->batch, work.key_begin, work.key_end};

  const int t = work.key_begin / kBlockK * kBlockK;
  stream.template load<Stream::K>(t);
  describe_rows<kThreads, kBlockQ>(rows_smem, work, key_begin, key_end, heads);
  __syncthreads();  // the rows are described
  load_queries<kThreads, kBlockQ, D>(Q_smem, q, rows_smem, work.rows, params.q);
  async_commit();  // Q and the first K tile
  if constexpr (kPairs == 2) {
    stream.template load<Stream::V>(t);
    async_commit();
    stream.template load<Stream::K>(t + kBlockK);
    async_commit();
  }

  float O_rmem[kTilesM][D / kMmaN][4] = {};
  OnlineSoftmax<kTilesM> softmax;
  main_loop<D, kBlockQ, kBlockK>(O_rmem, softmax, stream, Q_smem, rows_smem, t, work, bias, params, logit);
  async_wait<0>();
  __syncthreads();  // even if no key tile ran: Q has landed, and Q_smem is reused for the output
  // Loaded again rather than kept in registers during the main loop.
  const WorkTile reloaded = *work_tile;
  epilogue<D, kBlockQ>(Results<T>{o, lse, partial_o, partial_softmax}, O_rmem, softmax, Q_smem, rows_smem, reloaded,
                       params, logit.exponent);
}

// attention_merge: o and lse of the rows whose keys several blocks shared, from their partial results in order.
//   shapes    partial_o [partials, KH, kBlockQ, D], partial_softmax [partials, KH, kBlockQ, 2]: max and sum of a row;
//             merge_tiles: MergeTile [tiles]
//   template  D; kBlockQ as of attention
//   launch    grid (KH, tiles), block a multiple of 32; a warp does a row at a time
//   numerics  o = sum of weight_i · o_i over the sum of weight_i = sum_i · exp2(exponent · (max_i - max)), in fp32,
//             rounded once
template <class T, int D, int kBlockQ>
__global__ void attention_merge(T* o, float* lse, const float* partial_o, const float* partial_softmax,
                                const int* merge_tiles, Params params, float exponent) {
  grid_dependency_wait();
  grid_dependency_release();
  constexpr int kVec = D < 128 ? 2 : 4, kVecs = D / 32 / kVec;  // of a lane
  const int lane = threadIdx.x % 32, kv_head = blockIdx.x, heads = params.heads_per_group;
  const MergeTile& tile = reinterpret_cast<const MergeTile*>(merge_tiles)[blockIdx.y];
  const int64_t part_stride = static_cast<int64_t>(params.kv_heads) * kBlockQ;
  for (int r = threadIdx.x / 32; r < tile.rows; r += blockDim.x / 32) {
    const int64_t first_part = tile.first_partial * part_stride + kv_head * kBlockQ + r;
    float top = -kInf, weights = 0.0f, sum[kVecs][kVec] = {};
    for (int i = 0; i < tile.partials; ++i) top = fmaxf(top, partial_softmax[2 * (first_part + i * part_stride)]);
    for (int i = 0; i < tile.partials; ++i) {
      const int64_t part = first_part + i * part_stride;
      const auto [part_max, part_sum] = Vec<float, 2>::load(partial_softmax + 2 * part).element;
      if (part_max == -kInf) continue;  // this part saw no key; if none did, the row is 0
      const float weight = exp2_approx((part_max - top) * exponent) * part_sum;
      weights += weight;
#pragma unroll
      for (int j = 0; j < kVecs; ++j) {
        const auto values = Vec<float, kVec>::load(partial_o + part * D + (32 * j + lane) * kVec);
#pragma unroll
        for (int c = 0; c < kVec; ++c) sum[j][c] = fmaf(weight, values.element[c], sum[j][c]);
      }
    }
    const int packed = tile.first_row + r;
    const int64_t token = tile.first_token + packed / heads, head = kv_head * heads + packed % heads;
    const float inverse = weights == 0.0f ? 0.0f : 1.0f / weights;
#pragma unroll
    for (int j = 0; j < kVecs; ++j) {
      Vec<T, kVec> values;
#pragma unroll
      for (int c = 0; c < kVec; ++c) values.element[c] = from_float<T>(sum[j][c] * inverse);
      values.store(o + token * params.o.token + head * params.o.head + (32 * j + lane) * kVec);
    }
    if (lse != nullptr && lane == 0)
      lse[token * (params.kv_heads * heads) + head] = log_sum_exp(top, weights, exponent);
  }
}
