#include <mma.h>

__global__ void wmma(float* out) { out[0] = 0; }
