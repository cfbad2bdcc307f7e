__managed__ int total;

__global__ void managed(int* out) { out[0] = total; }
