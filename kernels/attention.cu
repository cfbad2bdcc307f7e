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
//   shapes    q, o [N, H, D] packed tokens; k, v [B, T, KH, D]; lse [N, H]; key_begin, key_end [N]; bias [B, H, S, T];
//             any strides, last axis contiguous; head h reads kv head h / (H / KH)
//   types     T in {bf16, half}; bias in {float, bf16, half}; logits, max, sum, accumulator, lse fp32
//   constant  none
//   template  D in {64, 128, 256}; kBlockQ rows, kBlockK keys of a tile; kPairs of k and v tiles in flight, 1 or 2;
//             Logit in {Plain, SoftCap, Bias<T>, SoftCapBias<T>}
//   launch    grid (KH, tiles), block attention_threads(D, kBlockQ), dynamic smem
//             (kBlockQ + 2 · kPairs · kBlockK) · D · sizeof(T) + kBlockQ · sizeof(Row)
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

struct Strides {  // in elements
  int64_t batch, token, head;
};
struct Problem {
  Strides q, o, k, v;
  int64_t bias_batch, bias_head, bias_query;
  int heads_per_group, kv_heads;
};

// What one block does: rows [first_row, first_row + rows) of the (query, head of the group) pairs of a sequence over
// the keys [key_begin, key_end). partial: where the result goes if other blocks have the rest of the keys, else -1.
struct Work {
  static constexpr int kFields = 7;
  int batch, first_token, first_row, rows, key_begin, key_end, partial;

  __device__ __forceinline__ Work(const int* field)
      : batch(field[0]),
        first_token(field[1]),
        first_row(field[2]),
        rows(field[3]),
        key_begin(field[4]),
        key_end(field[5]),
        partial(field[6]) {}
};

// A row of the tile: which query of its sequence, which head of its group, which of the block's keys it sees.
struct Row {
  int query, head, key_begin, key_count;

  __device__ __forceinline__ bool sees(int t) const {
    return static_cast<unsigned>(t - key_begin) < static_cast<unsigned>(key_count);
  }
};

// 4 warps, each with 16 or 32 rows; of D = 256 the accumulators of 16 rows fill a warp's registers.
__device__ constexpr int attention_threads(int D, int kBlockQ) { return D > 128 ? 2 * kBlockQ : 128; }

// The first row of a thread's warp, which has kTiles tiles of 16 rows.
template <int kTiles>
__device__ __forceinline__ int first_row(int thread) {
  return thread / 32 * (16 * kTiles);
}

// The tiles k0 v0 k1 v1 ... of one sequence and kv head on their way through kPairs pairs of places in shared memory.
template <class T, int D, int kBlockK, int kPairs, int kThreads>
struct KeyValueStream {
  enum Kind { K, V };
  T* places;
  const T *k, *v;
  const Problem& problem;
  const int& batch;        // read where it is needed: pointers that depend on it would fill registers all along
  int key_begin, key_end;  // other keys are never read: they count as zero, since 0 · NaN would not be 0

  // Of the keys from t on, a multiple of kBlockK.
  __device__ __forceinline__ T* place(Kind kind, int t) const {
    return places + (t / kBlockK % kPairs * 2 + kind) * (kBlockK * D);
  }

  // Starts loading the keys from t on. The caller commits.
  template <Kind kKind>
  __device__ __forceinline__ void load(int t) const {
    constexpr int kChunks = D / 8, kRowsAtOnce = kThreads / kChunks;
    if (t >= key_end) return;
    const Strides& strides = kKind == K ? problem.k : problem.v;
    const int thread = fresh_thread_index(), row = thread / kChunks, chunk = thread % kChunks;
    const T* source = (kKind == K ? k : v) + batch * strides.batch + blockIdx.x * strides.head +
                      (t + row) * strides.token + 8 * chunk;
    T* tile = place(kKind, t);
#pragma unroll
    for (int r = 0; r < kBlockK; r += kRowsAtOnce) {
      const bool is_read = t + row + r >= key_begin && t + row + r < key_end;
      async_copy<16>(tile + tile_offset<D>(row + r, chunk), source, is_read ? 16 : 0);
      source += kRowsAtOnce * strides.token;
    }
  }

  // The tile of the keys from t on, once it is complete; its predecessor in the stream gives its place to the tile that
  // comes 2 · kPairs - 1 later.
  template <Kind kKind>
  __device__ __forceinline__ const T* next(int t) const {
    async_wait<2 * kPairs - 2>();
    __syncthreads();  // every thread's part has landed; and nobody reads the predecessor any more
    if constexpr (kKind == K)
      load<V>(t + (kPairs - 1) * kBlockK);
    else
      load<K>(t + kPairs * kBlockK);
    async_commit();
    return place(kKind, t);
  }
};

template <int kThreads, int kBlockQ>
__device__ __forceinline__ void describe_rows(Row* row_tile, const Work& work, const int* key_begin, const int* key_end,
                                              int heads) {
  for (int r = threadIdx.x; r < kBlockQ; r += kThreads) {
    const int packed = work.first_row + min(r, work.rows - 1);  // rows past the last repeat it: no range changes
    Row row = {packed / heads, packed % heads, 0, 0};
    row.key_begin = max(key_begin[work.first_token + row.query], work.key_begin);
    row.key_count = max(min(key_end[work.first_token + row.query], work.key_end) - row.key_begin, 0);
    store_vector(row_tile + r, row);
  }
}

template <int kThreads, int kBlockQ, int D, class T>
__device__ __forceinline__ void load_queries(T* q_tile, const T* q, const Row* row_tile, int rows,
                                             const Strides& strides) {
  constexpr int kChunks = D / 8;
#pragma unroll 4
  for (int r = threadIdx.x / kChunks; r < kBlockQ; r += kThreads / kChunks) {
    const int chunk = threadIdx.x % kChunks;
    const T* source = q + row_tile[r].query * strides.token + row_tile[r].head * strides.head + 8 * chunk;
    async_copy<16>(q_tile + tile_offset<D>(r, chunk), source, r < rows ? 16 : 0);
  }
}

// scores += q · kᵀ for the rows of this warp.
template <int D, class T, int kTiles, int kColumns>
__device__ __forceinline__ void multiply_keys(float (&scores)[kTiles][kColumns][4], const T* q_tile, const T* k_tile) {
  const int thread = fresh_thread_index(), q_place = place_in_16_rows<D>(thread % 32),
            k_place = place_in_8_rows<D>(thread % 32);
  q_tile += first_row<kTiles>(thread) * D;
#pragma unroll
  for (int d = 0; d < D; d += 16) {
    uint32_t a[kTiles][4], b[kColumns][2];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) load_a(a[m], q_tile + 16 * m * D, q_place, d);
    load_b_rows<D>(b, k_tile, k_place, d);
#pragma unroll
    for (int m = 0; m < kTiles; ++m) mma_row<T>(scores[m], a[m], b);
  }
}

// p rounded to T, as A fragments of 16 keys each: accumulators are laid out as the A operand, so p stays in its
// registers.
template <class T, int kTiles, int kColumns>
__device__ __forceinline__ void round_to_fragments(uint32_t (&a)[kTiles][kColumns / 2][4],
                                                   const float (&p)[kTiles][kColumns][4]) {
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        a[m][n / 2][n % 2 * 2 + half] = pack<T>(p[m][n][2 * half], p[m][n][2 * half + 1]);
}

// out += p · v.
template <int D, class T, int kTiles, int kSteps>
__device__ __forceinline__ void multiply_values(float (&out)[kTiles][D / 64][8][4],
                                                const uint32_t (&p)[kTiles][kSteps][4], const T* v_tile) {
  const int place = place_in_16_rows<D>(fresh_thread_index() % 32);
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int c = 0; c < D / 64; ++c) {
      uint32_t b[8][2];
      load_b_columns<D>(b, v_tile + 16 * s * D, place, 64 * c);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) mma_row<T>(out[m][c], p[m][s], b);
    }
  }
}

// Scores of keys from t on become logits; on an edge tile keys that a row does not see become -inf.
template <class Logit, int kTiles, int kColumns>
__device__ __forceinline__ void finish_logits(float (&scores)[kTiles][kColumns][4], const Logit& logit,
                                              const Row* row_tile, const typename Logit::Element* bias,
                                              const Problem& problem, int t, bool is_edge) {
  if (Logit::kIsScore && !is_edge) return;
  const int thread = fresh_thread_index(), lane = thread % 32;
  row_tile += first_row<kTiles>(thread);
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Row row = load_vector<Row>(row_tile + 16 * m + lane / 4 + 8 * half);
      const typename Logit::Element* bias_row = bias;
      if constexpr (Logit::kHasBias)
        bias_row += row.query * problem.bias_query + row.head * problem.bias_head + t + 2 * (lane % 4);
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int key = t + 8 * n + 2 * (lane % 4) + i;
          const bool is_seen = !is_edge || row.sees(key);
          float& score = scores[m][n][2 * half + i];
          if constexpr (Logit::kHasBias) {
            float added = -kInf;  // hides the key: a choice after the load would keep its predicate in a register
            if (is_seen) added = to_float(bias_row[8 * n + i]);
            score = logit.logit(score, added);
          } else {
            score = is_seen ? logit.logit(score, 0.0f) : -kInf;
          }
        }
      }
    }
  }
}

template <int kTiles, int kChunks>
__device__ __forceinline__ void rescale(float (&out)[kTiles][kChunks][8][4], const float (&factor)[kTiles][2]) {
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) out[m][c][n][i] *= factor[m][i / 2];
}

// Rows of this warp, rounded, to o. They pass through the rows of q_tile that only this warp has read.
template <int D, class T, int kTiles>
__device__ __forceinline__ void store_output(T* o, T* q_tile, const float (&out)[kTiles][D / 64][8][4],
                                             const Row* row_tile, int first, int rows, const Strides& strides) {
  const int lane = threadIdx.x % 32;
  __syncwarp();  // the last ldmatrix of q
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
#pragma unroll
    for (int c = 0; c < D / 64; ++c)
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = first + 16 * m + lane / 4 + 8 * half;
          store_vector(q_tile + tile_offset<D>(row, 8 * c + n) + 2 * (lane % 4),
                       pack<T>(out[m][c][n][2 * half], out[m][c][n][2 * half + 1]));
        }
  __syncwarp();  // the rows are whole
  constexpr int kChunks = D / 8;
  for (int i = lane; i < 16 * kTiles * kChunks; i += 32) {
    const int row = first + i / kChunks, chunk = i % kChunks;
    if (row >= rows) break;
    T* target = o + row_tile[row].query * strides.token + row_tile[row].head * strides.head + 8 * chunk;
    Vec<T, 8>::load(q_tile + tile_offset<D>(row, chunk)).store(target);
  }
}

template <class T, int D, int kBlockQ, int kBlockK, int kPairs, class Logit>
__global__ void __launch_bounds__(attention_threads(D, kBlockQ), D > 128 ? 1 : 2)
    attention(T* o, float* lse, float* partial_o, float* partial_softmax, const T* q, const T* k, const T* v,
              const typename Logit::Element* bias, const int* key_begin, const int* key_end, const int* table,
              Problem problem, Logit logit) {
  grid_dependency_wait();
  grid_dependency_release();
  constexpr int kThreads = attention_threads(D, kBlockQ), kTiles = kBlockQ / (kThreads / 2), kColumns = kBlockK / 8;
  T* q_tile = shared_memory<T>();
  T* key_value_tiles = q_tile + kBlockQ * D;
  Row* row_tile = shared_memory<Row>((kBlockQ + 2 * kPairs * kBlockK) * D * sizeof(T));
  const int kv_head = blockIdx.x, heads = problem.heads_per_group;
  table += blockIdx.y * Work::kFields;
  const Work work(table);
  if (work.rows == 0) return;  // a table may be longer than there is work

  q += work.first_token * problem.q.token + kv_head * heads * problem.q.head;
  if constexpr (Logit::kHasBias) bias += work.batch * problem.bias_batch + kv_head * heads * problem.bias_head;
  using Stream = KeyValueStream<T, D, kBlockK, kPairs, kThreads>;
  const Stream stream{key_value_tiles, k, v, problem, table[0], work.key_begin, work.key_end};

  int t = work.key_begin / kBlockK * kBlockK;
  stream.template load<Stream::K>(t);
  describe_rows<kThreads, kBlockQ>(row_tile, work, key_begin, key_end, heads);
  __syncthreads();  // the rows are described
  load_queries<kThreads, kBlockQ, D>(q_tile, q, row_tile, work.rows, problem.q);
  async_commit();  // q and the first k tile
  if constexpr (kPairs == 2) {
    stream.template load<Stream::V>(t);
    async_commit();
    stream.template load<Stream::K>(t + kBlockK);
    async_commit();
  }

  float out[kTiles][D / 64][8][4] = {};
  OnlineSoftmax<kTiles> softmax;
  for (; t < work.key_end; t += kBlockK) {
    float scores[kTiles][kColumns][4] = {}, correction[kTiles][2];
    multiply_keys<D>(scores, q_tile, stream.template next<Stream::K>(t));
    const Row &top = row_tile[0], &bottom = row_tile[kBlockQ - 1];
    const bool is_edge = t < bottom.key_begin || t + kBlockK > top.key_begin + top.key_count;
    finish_logits(scores, logit, row_tile, bias, problem, t, is_edge);
    if (softmax.follow(scores, logit.exponent, correction)) rescale(out, correction);
    softmax.exponentiate(scores, logit.exponent);
    uint32_t p[kTiles][kColumns / 2][4];
    round_to_fragments<T>(p, scores);
    multiply_values<D>(out, p, stream.template next<Stream::V>(t));
  }
  async_wait<0>();
  __syncthreads();         // q has landed where there was no key: its place is used again
  const Work done(table);  // read again rather than kept in registers
  const int first = first_row<kTiles>(threadIdx.x), lane = threadIdx.x % 32;

  float inverse[kTiles][2];
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = quad_sum(softmax.sum[m][half]);
      inverse[m][half] = sum == 0.0f ? 0.0f : 1.0f / sum;
      const int r = first + 16 * m + lane / 4 + 8 * half;
      if (lane % 4 != 0 || r >= done.rows) continue;
      const int64_t token = done.first_token + row_tile[r].query, head = kv_head * heads + row_tile[r].head;
      if (done.partial >= 0)
        Vec<float, 2>{softmax.max[m][half], sum}.store(
            partial_softmax + 2 * ((static_cast<int64_t>(done.partial) * problem.kv_heads + kv_head) * kBlockQ + r));
      else if (lse != nullptr)
        lse[token * (problem.kv_heads * heads) + head] = log_sum_exp(softmax.max[m][half], sum, logit.exponent);
    }
  }
  rescale(out, inverse);
  if (done.partial < 0) {
    o += done.first_token * problem.o.token + kv_head * heads * problem.o.head;
    store_output<D>(o, q_tile, out, row_tile, first, done.rows, problem.o);
    return;
  }
  partial_o += (static_cast<int64_t>(done.partial) * problem.kv_heads + kv_head) * kBlockQ * D;
#pragma unroll
  for (int m = 0; m < kTiles; ++m)
#pragma unroll
    for (int c = 0; c < D / 64; ++c)
#pragma unroll
      for (int n = 0; n < 8; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int r = first + 16 * m + lane / 4 + 8 * half;
          const Vec<float, 2> pair = {out[m][c][n][2 * half], out[m][c][n][2 * half + 1]};
          if (r < done.rows) pair.store(partial_o + r * D + 64 * c + 8 * n + 2 * (lane % 4));
        }
}

// attention_merge: o and lse of the rows whose keys several blocks shared, from their partial results in order.
//   shapes    partial_o [partials, KH, kBlockQ, D], partial_softmax [partials, KH, kBlockQ, 2]: max and sum of a row;
//             table [tiles, 5]: first_token, first_row, rows, first partial, partials
//   template  D; kBlockQ as of attention
//   launch    grid (KH, tiles), block a multiple of 32; a warp does a row at a time
//   numerics  o = sum of weight_i · o_i over the sum of weight_i = sum_i · exp2(exponent · (max_i - max)), in fp32,
//             rounded once
template <class T, int D, int kBlockQ>
__global__ void attention_merge(T* o, float* lse, const float* partial_o, const float* partial_softmax,
                                const int* table, Problem problem, float exponent) {
  grid_dependency_wait();
  grid_dependency_release();
  constexpr int kVec = D < 128 ? 2 : 4, kVecs = D / 32 / kVec;  // of a lane
  const int *field = table + blockIdx.y * 5, lane = threadIdx.x % 32, kv_head = blockIdx.x,
            heads = problem.heads_per_group;
  const int64_t part_stride = static_cast<int64_t>(problem.kv_heads) * kBlockQ;
  for (int r = threadIdx.x / 32; r < field[2]; r += blockDim.x / 32) {
    const int64_t first_part = field[3] * part_stride + kv_head * kBlockQ + r;
    float top = -kInf, weights = 0.0f, sum[kVecs][kVec] = {};
    for (int i = 0; i < field[4]; ++i) top = fmaxf(top, partial_softmax[2 * (first_part + i * part_stride)]);
    for (int i = 0; i < field[4]; ++i) {
      const int64_t part = first_part + i * part_stride;
      const auto [part_max, part_sum] = Vec<float, 2>::load(partial_softmax + 2 * part).element;
      if (part_max == -kInf) continue;  // saw no key; and if no part did, the row is 0
      const float weight = exp2_approx((part_max - top) * exponent) * part_sum;
      weights += weight;
#pragma unroll
      for (int j = 0; j < kVecs; ++j) {
        const auto values = Vec<float, kVec>::load(partial_o + part * D + (32 * j + lane) * kVec);
#pragma unroll
        for (int c = 0; c < kVec; ++c) sum[j][c] = fmaf(weight, values.element[c], sum[j][c]);
      }
    }
    const int64_t token = field[0] + (field[1] + r) / heads, head = kv_head * heads + (field[1] + r) % heads;
    const float inverse = weights == 0.0f ? 0.0f : 1.0f / weights;
#pragma unroll
    for (int j = 0; j < kVecs; ++j) {
      Vec<T, kVec> values;
#pragma unroll
      for (int c = 0; c < kVec; ++c) values.element[c] = from_float<T>(sum[j][c] * inverse);
      values.store(o + token * problem.o.token + head * problem.o.head + (32 * j + lane) * kVec);
    }
    if (lse != nullptr && lane == 0)
      lse[token * (problem.kv_heads * heads) + head] = log_sum_exp(top, weights, exponent);
  }
}
