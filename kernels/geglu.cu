// geglu: y = gelu(gate) · up with the tanh form of gelu, element by element.
//   shapes    y [N, F] contiguous   gate, up [N, F], rows gate_stride and up_stride apart: the halves of one product
//             [N, 2 F], or two arrays
//   types     T in {bf16, half}; computed in fp32
//   constant  none
//   template  kVec elements per access, divides F and both strides
//   launch    grid (ceil(N · F / (kVec · kThreads))), block kThreads
//   numerics  gelu_tanh of common/gelu.cuh is off by 2^-21 at most, which is far below T. y is rounded once
//   cost      reads gate and up once, writes y once
//   source    Shazeer, arXiv:2002.05202; Hendrycks and Gimpel, arXiv:1606.08415
#include <float16.cuh>
#include <platform.cuh>

#include "common/gelu.cuh"
#include "common/vec.cuh"

constexpr int kThreads = 256;

template <class T, int kVec>
__global__ void __launch_bounds__(kThreads)
    geglu(T* __restrict__ y, const T* gate, const T* up, int N, int F, int64_t gate_stride, int64_t up_stride) {
  grid_dependency_wait();
  grid_dependency_release();
  using V = Vec<T, kVec>;
  const unsigned vectors_per_row = F / kVec, index = blockIdx.x * kThreads + threadIdx.x;
  const unsigned row = index / vectors_per_row, column = (index - row * vectors_per_row) * kVec;
  if (row >= N) return;
  V g = V::load(gate + row * gate_stride + column);
  const V u = V::load(up + row * up_stride + column);
#pragma unroll
  for (int i = 0; i < kVec; ++i)
    g.element[i] = from_float<T>(gelu_tanh(to_float(g.element[i])) * to_float(u.element[i]));
  g.store(y + static_cast<int64_t>(index) * kVec);
}
