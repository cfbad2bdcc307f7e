// linear: y = x wᵀ, a matrix product on tensor cores, with an epilogue fused in.
//   shapes    y [M, N] contiguous   x [M, K], rows x_stride apart   w [N, K] ([2 N, K] with GeGlu: gate, then up), rows
//             w_stride apart; K and both strides are multiples of 8   residual [M, N] contiguous
//             partial [tiles, splits, kBlockM kBlockN] and arrived [tiles], of zeros: used if splits > 1
//   types     T in {bf16, half}; Out in {T, float}; products exact, sums and partial fp32
//   constant  w
//   template  kBlockM × kBlockN of a block's tile of x wᵀ; kStages steps of kBlockK in shared memory; kVec elements of
//             y per store, divides N; Epilogue: Store; GeGlu: y = gelu(x gateᵀ) · (x upᵀ) (Out = T); Residual: y =
//             residual + x wᵀ (Out = T); SoftCap: y = cap · tanh(x wᵀ / cap) (Out = float)
//   launch    grid (ceil(M / kBlockM) · ceil(N / columns), splits), block linear_threads(kBlockM), dynamic smem the
//             larger of kStages · (kBlockM + kBlockN) · kBlockK · sizeof(T) and kBlockM · kBlockN · sizeof(Out) bytes.
//             columns: kBlockN, half of it with GeGlu. splits: 1 or ceil(K / (split_steps · kBlockK))
//   numerics  each element sums its products in steps of 16 along K (inside a step as the tensor core does), anew for
//             each split_steps · kBlockK of K, and then these sums in their order, whether or not blocks share them:
//             a row's bits depend neither on M nor on the tile nor on splits. The product is rounded to Out, as without
//             an epilogue; the epilogue rounds once more, to the bits that geglu, an addition and softcap would give
//   cost      2 M N K flops; x is read by ceil(N / columns) blocks and w by ceil(M / kBlockM), mostly from L2; with
//             splits > 1 partial is written and read once. arrived is zero again afterwards
//   source    the multistage pipeline of CUTLASS 2 for sm_80, with one barrier per step; the last block adds up as in
//             threadFenceReduction of NVIDIA's CUDA samples
#include <async_copy.cuh>
#include <float16.cuh>
#include <mma.cuh>
#include <platform.cuh>

#include "common/gelu.cuh"
#include "common/tile.cuh"
#include "common/vec.cuh"

enum Epilogue { Store, GeGlu, Residual, SoftCap };

// Filled by Python, which reads the members here by name. Strides in elements.
struct Params {
  int64_t x_stride, w_stride;
  int M, N, K, split_steps;
  float cap;
};

constexpr int kBlockK = 64;         // 128 bytes: a row of a tile touches every bank once
constexpr int kWarpsN = 4;          // warps side by side; each has all rows of the tile, or 64 of them
constexpr int kTilesPerGroup = 16;  // tiles of rows that share a pass over w

__device__ constexpr int warp_rows(int block_rows) { return block_rows < 64 ? block_rows : 64; }
__device__ constexpr int linear_threads(int block_rows) { return block_rows / warp_rows(block_rows) * kWarpsN * 32; }

// Starts copying a tile [kRows, kBlockK]; rows from `rows` on and elements from `columns` on are zero.
template <int kRows, int kThreads, class T>
__device__ __forceinline__ void load_tile(T* tile, const T* source, int64_t stride, int rows, int columns) {
  constexpr int kChunks = kBlockK / kChunk;
#pragma unroll
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const bool exists = row < rows && chunk * kChunk < columns;
    async_copy<16>(tile + swizzled_offset<kBlockK>(row, chunk),
                   exists ? source + row * stride + chunk * kChunk : source, exists ? 16 : 0);
  }
}

// Tile of y that a block computes. Row tiles of a group run fastest, so that concurrent blocks share rows of w in L2.
struct OutputTile {
  int m, n;

  __device__ __forceinline__ OutputTile(int index, int tiles_m, int tiles_n) {
    const int group = index / (kTilesPerGroup * tiles_n), first = group * kTilesPerGroup;
    const int rows = min(kTilesPerGroup, tiles_m - first), rest = index - first * tiles_n;
    m = first + rest % rows;
    n = rest / rows;
  }
};

// Accumulators of a warp's part [kTilesM · kMmaM, kTilesN · kMmaN] of a tile.
template <int kTilesM, int kTilesN>
struct Sums {
  static constexpr int kQuads = kTilesM * kTilesN;
  float fragment[kTilesM][kTilesN][4] = {};

  // Calls f(row, column, pair) for each pair of neighbours, of that row and first column in the warp's part.
  template <class F>
  __device__ __forceinline__ void each_element_pair(F f) {
    const int lane = threadIdx.x % 32;
    each_pair<kTilesM, kTilesN>([&](int m, int n, int half) {
      f(accumulator_row(m, half, lane), accumulator_column(n, lane), &fragment[m][n][2 * half]);
    });
  }

  // Calls f(row, quad, first, second) for each two pairs of a row, 4 floats of each lane; `quad` numbers them.
  template <class F>
  __device__ __forceinline__ void each_quad(F f) {
    const int lane = threadIdx.x % 32;
    each_pair<kTilesM, kTilesN / 2>([&](int m, int n, int half) {
      f(accumulator_row(m, half, lane), m * kTilesN + 2 * n + half, &fragment[m][2 * n][2 * half],
        &fragment[m][2 * n + 1][2 * half]);
    });
  }

  // Adds `part` and sets it to zero.
  __device__ __forceinline__ void take(Sums& part) {
    each_pair<kTilesM, kTilesN>([&](int m, int n, int half) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        fragment[m][n][i] += part.fragment[m][n][i];
        part.fragment[m][n][i] = 0.0f;
      }
    });
  }
};

// Adds the sums of all blocks that share a tile, in the order of K, in the last of these blocks to arrive; returns true
// there and false in the others. partial [splits, kSize]: of this tile, in the order in which warps hold the sums, so
// that a warp moves 16 bytes of each lane at once. Rows of the warp's part from `rows` on are neither stored nor
// loaded.
template <int kSize, class S>
__device__ __forceinline__ bool gather(S& sums, float* partial, int* arrived, int rows) {
  constexpr int kQuad = 4;
  const int at = (threadIdx.x / 32 * S::kQuads * 32 + threadIdx.x % 32) * kQuad;
  float* own = partial + blockIdx.y * kSize + at;
  sums.each_quad([&](int row, int quad, const float* first, const float* second) {
    if (row < rows) Vec<float, kQuad>{first[0], first[1], second[0], second[1]}.store(own + quad * 32 * kQuad);
  });
  int* is_last = shared_memory<int>();
  __syncthreads();  // the block's sums are written, and every warp has read the stages
  if (threadIdx.x == 0) {
    __threadfence();
    *is_last = atomicAdd(arrived, 1) == static_cast<int>(gridDim.y) - 1;
    if (*is_last) atomicExch(arrived, 0);
    __threadfence();
  }
  __syncthreads();  // is_last is known, and sums of other blocks are visible
  if (!*is_last) return false;
  sums.each_quad([&](int row, int quad, float* first, float* second) {
    first[0] = first[1] = second[0] = second[1] = 0.0f;
    if (row >= rows) return;
    const float* from = partial + at + quad * 32 * kQuad;
#pragma unroll 4
    for (int split = 0; split < static_cast<int>(gridDim.y); ++split) {
      const auto part = Vec<float, kQuad>::load(from + split * kSize);
      first[0] += part.element[0], first[1] += part.element[1];
      second[0] += part.element[2], second[1] += part.element[3];
    }
  });
  return true;
}

template <class T, class Out, int kBlockM, int kBlockN, int kStages, int kVec, Epilogue kEpilogue>
__global__ void __launch_bounds__(linear_threads(kBlockM), 1)
    linear(Out* __restrict__ y, const T* x, const T* __restrict__ w, const Out* residual, float* partial, int* arrived,
           Params params) {
  grid_dependency_wait();
  grid_dependency_release();
  constexpr int kThreads = linear_threads(kBlockM), kWarpM = warp_rows(kBlockM), kWarpN = kBlockN / kWarpsN;
  constexpr int kTilesM = kWarpM / kMmaM, kTilesN = kWarpN / kMmaN, kStage = (kBlockM + kBlockN) * kBlockK;
  constexpr int kParts = kEpilogue == GeGlu ? 2 : 1, kColumns = kBlockN / kParts;  // of w, and of y in a tile
  const int M = params.M, N = params.N, K = params.K, split_steps = params.split_steps;
  T* stages = shared_memory<T>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warp_m = warp / kWarpsN * kWarpM, warp_n = warp % kWarpsN * kWarpN;
  const int tiles_n = (N + kColumns - 1) / kColumns;
  const OutputTile tile(blockIdx.x, (M + kBlockM - 1) / kBlockM, tiles_n);
  const int first_m = tile.m * kBlockM, first_n = tile.n * kColumns;
  const int first_k = gridDim.y == 1 ? 0 : blockIdx.y * split_steps * kBlockK;
  const int depth = gridDim.y == 1 ? K : min(K - first_k, split_steps * kBlockK);
  x += first_m * params.x_stride + first_k;
  w += first_n * params.w_stride + first_k;

  // A stage: x [kBlockM, kBlockK], then w [kBlockN, kBlockK], with GeGlu half of it gate and half up.
  const auto load = [&](int step) {
    T* stage = stages + step % kStages * kStage;
    const int k = step * kBlockK;
    if (k < depth) {
      load_tile<kBlockM, kThreads>(stage, x + k, params.x_stride, M - first_m, depth - k);
#pragma unroll
      for (int part = 0; part < kParts; ++part)
        load_tile<kColumns, kThreads>(stage + (kBlockM + part * kColumns) * kBlockK, w + part * N * params.w_stride + k,
                                      params.w_stride, N - first_n, depth - k);
    }
    async_commit();  // an empty group, too, so that the groups count the steps
  };
  for (int step = 0; step < kStages - 1; ++step) load(step);

  const int x_offset = swizzled_offset_16_rows<kBlockK>(lane), w_offset = swizzled_offset_8_rows<kBlockK>(lane);
  Sums<kTilesM, kTilesN> sums, split;
  int steps_left = split_steps;
  for (int step = 0; step * kBlockK < depth; ++step) {
    async_wait<kStages - 2>();
    __syncthreads();  // the step's tiles have landed, and every warp has read the stage that is overwritten next
    load(step + kStages - 1);
    const T* x_smem = stages + step % kStages * kStage + warp_m * kBlockK;
    const T* w_smem = stages + step % kStages * kStage + (kBlockM + warp_n) * kBlockK;
#pragma unroll
    for (int k = 0; k < kBlockK; k += kMmaK) {  // split += x wᵀ [kWarpM, kWarpN]
      uint32_t b[kTilesN][2];
      load_b_rows<kBlockK>(b, w_smem, w_offset, k);
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
        uint32_t a[4];
        load_a(a, x_smem + kMmaM * m * kBlockK, x_offset, k);
        mma_row<T>(split.fragment[m], a, b);
      }
    }
    if (--steps_left == 0) {
      sums.take(split);
      steps_left = split_steps;
    }
  }
  sums.take(split);

  async_wait<0>();  // also of empty groups: no copy may land in the memory that is reused below
  if (gridDim.y > 1) {
    partial += static_cast<int64_t>(blockIdx.x) * gridDim.y * (kBlockM * kBlockN);
    if (!gather<kBlockM * kBlockN>(sums, partial, arrived + blockIdx.x, M - first_m - warp_m)) return;
  }
  __syncthreads();  // every warp has read the stages and is_last, whose memory now takes the tile of the output
  // Tile [kBlockM, kBlockN] of Out, its 16-byte chunks swizzled so that the rows of a fragment, which are stored
  // together, meet in no bank.
  Out* out_smem = shared_memory<Out>();
  constexpr int kElements = 16 / sizeof(Out);
  const auto out_offset = [&](int row, int column) {
    return row * kBlockN + ((column / kElements) ^ (row * (sizeof(Out) / 2) & 7)) * kElements + column % kElements;
  };
  sums.each_element_pair([&](int row, int column, const float* pair) {
    const Vec<Out, 2> rounded = {from_float<Out>(pair[0]), from_float<Out>(pair[1])};
    rounded.store(out_smem + out_offset(warp_m + row, warp_n + column));
  });
  __syncthreads();  // the tile is whole
  using V = Vec<Out, kVec>;
  constexpr int kVectors = kColumns / kVec;
  for (int i = threadIdx.x; i < kBlockM * kVectors; i += kThreads) {
    const int row = i / kVectors, column = i % kVectors * kVec;
    if (first_m + row >= M || first_n + column >= N) continue;
    const int64_t at = static_cast<int64_t>(first_m + row) * N + first_n + column;
    V v = V::load(out_smem + out_offset(row, column)), other;
    if constexpr (kEpilogue == GeGlu) other = V::load(out_smem + out_offset(row, kColumns + column));
    if constexpr (kEpilogue == Residual) other = V::load(residual + at);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const float z = to_float(v.element[j]);
      if constexpr (kEpilogue == GeGlu) v.element[j] = from_float<Out>(gelu_tanh(z) * to_float(other.element[j]));
      if constexpr (kEpilogue == Residual) v.element[j] = from_float<Out>(to_float(other.element[j]) + z);
      if constexpr (kEpilogue == SoftCap) v.element[j] = from_float<Out>(params.cap * tanhf(z / params.cap));
    }
    v.store(y + at);
  }
}
