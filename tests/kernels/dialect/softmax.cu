#include <math_constants.h>
#include <cfloat>

// One row per block: out = softmax(in) over C columns, in dynamic shared memory.
extern "C" __global__ void softmax_forward(float* out, const float* inp, int N, int C) {
  extern __shared__ float shared[];
  int idx = blockIdx.x;
  int tid = threadIdx.x;
  int block_size = blockDim.x;
  const float* x = inp + idx * C;
  float maxval = -CUDART_INF_F;
  for (int i = tid; i < C; i += block_size) maxval = fmaxf(maxval, x[i]);
  shared[tid] = maxval;
  __syncthreads();
  for (int stride = block_size / 2; stride >= 1; stride /= 2) {
    if (tid < stride) shared[tid] = fmaxf(shared[tid], shared[tid + stride]);
    __syncthreads();
  }
  float offset = shared[0];
  __syncthreads();
  float sumval = 0.0f;
  for (int i = tid; i < C; i += block_size) {
    float e = expf(x[i] - offset);
    out[idx * C + i] = e;
    sumval += e;
  }
  shared[tid] = sumval;
  __syncthreads();
  for (int stride = block_size / 2; stride >= 1; stride /= 2) {
    if (tid < stride) shared[tid] += shared[tid + stride];
    __syncthreads();
  }
  float sum = shared[0];
  for (int i = tid; i < C; i += block_size) out[idx * C + i] /= sum;
}

struct __align__(8) MD {
  float m;
  float d;
};

__device__ __forceinline__ MD reduce_md_op(MD a, MD b) {
  bool a_bigger = (a.m > b.m);
  MD bigger_m = a_bigger ? a : b;
  MD smaller_m = a_bigger ? b : a;
  MD res;
  res.d = bigger_m.d + smaller_m.d * __expf(smaller_m.m - bigger_m.m);
  res.m = bigger_m.m;
  return res;
}

// Maximum and sum in one pass.
template <int THREADBLOCK_SIZE>
__launch_bounds__(THREADBLOCK_SIZE) __global__
    void online_softmax(const float* __restrict x, float* __restrict y, int V) {
  int thread_id = threadIdx.x;
  int vector_id = blockIdx.x;
  x += vector_id * V;
  y += vector_id * V;
  __shared__ MD pairs[THREADBLOCK_SIZE];
  __shared__ MD md_total;
  MD md_partial;
  md_partial.m = -FLT_MAX;
  md_partial.d = 0.0F;
  for (int elem_id = thread_id; elem_id < V; elem_id += THREADBLOCK_SIZE) {
    MD new_elem;
    new_elem.m = x[elem_id];
    new_elem.d = 1.0F;
    md_partial = reduce_md_op(md_partial, new_elem);
  }
  pairs[thread_id] = md_partial;
  __syncthreads();
  if (thread_id == 0) {
    MD md = pairs[0];
    for (int i = 1; i < THREADBLOCK_SIZE; ++i) md = reduce_md_op(md, pairs[i]);
    md_total = md;
  }
  __syncthreads();
  float d_total_inverse = __fdividef(1.0F, md_total.d);
  for (int elem_id = thread_id; elem_id < V; elem_id += THREADBLOCK_SIZE)
    y[elem_id] = __expf(x[elem_id] - md_total.m) * d_total_inverse;
}
