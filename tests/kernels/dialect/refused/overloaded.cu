__global__ void overloaded(float* out) { out[0] = 1; }
__global__ void overloaded(int* out) { out[0] = 1; }
