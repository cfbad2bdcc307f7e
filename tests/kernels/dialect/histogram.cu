#define BINS 256

__global__ void histogram(unsigned int* bins, const unsigned char* data, int n) {
  __shared__ unsigned int local[BINS];
  for (int i = threadIdx.x; i < BINS; i += blockDim.x) local[i] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x) atomicAdd(&local[data[i]], 1);
  __syncthreads();
  for (int i = threadIdx.x; i < BINS; i += blockDim.x)
    if (local[i] != 0) atomicAdd(&bins[i], local[i]);
}

// One atomic per distinct value in a warp.
__global__ void histogram_match(int* bins, const int* data, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  unsigned int mask = __ballot_sync(0xffffffff, i < n);
  if (i < n) {
    unsigned int peers = __match_any_sync(mask, data[i]);
    int leader = __ffs(peers) - 1;
    if ((threadIdx.x & 31) == leader) atomicAdd(bins + data[i], __popc(peers));
  }
}
