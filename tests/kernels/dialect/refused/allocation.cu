__global__ void allocates(int* out) {
  int* memory = static_cast<int*>(malloc(4));
  *memory = 1;
  out[0] = *memory;
}
