// Twins of copies by memcpy, memset and assignment of structs; see twins_barriers.cu. The names are the host
// compiler's, so that NVRTC compiles all twins but these.
#include <platform.cuh>

struct Point {
  float x, y, z;
};

// Written by memcpy, read by elements.
__global__ void ok_memcpy_in(float* out, const float* in) {
  Point* points = shared_memory<Point>();
  const Point mine = {in[threadIdx.x], 0.0f, 1.0f};
  __builtin_memcpy(points + threadIdx.x, &mine, sizeof(Point));
  __syncthreads();
  out[threadIdx.x] = points[63 - threadIdx.x].x * points[63 - threadIdx.x].z;
}

__global__ void memcpy_in_read_early(float* out, const float* in) {
  Point* points = shared_memory<Point>();
  const Point mine = {in[threadIdx.x], 0.0f, 1.0f};
  __builtin_memcpy(points + threadIdx.x, &mine, sizeof(Point));  // bug: memcpy_in_read_early
  out[threadIdx.x] = points[63 - threadIdx.x].x;                 // bug: memcpy_in_read_early
}

// Written by elements, read by memcpy.
__global__ void ok_memcpy_out(float* out, const float* in) {
  Point* points = shared_memory<Point>();
  points[threadIdx.x].x = in[threadIdx.x];
  points[threadIdx.x].y = points[threadIdx.x].z = 1.0f;
  __syncthreads();
  Point other;
  __builtin_memcpy(&other, points + (63 - threadIdx.x), sizeof(Point));
  out[threadIdx.x] = other.x * other.y * other.z;
}

__global__ void memcpy_out_early(float* out, const float* in) {
  Point* points = shared_memory<Point>();
  points[threadIdx.x].y = points[threadIdx.x].z = 1.0f;
  __syncthreads();
  points[threadIdx.x].x = in[threadIdx.x];  // bug: memcpy_out_early
  Point other;
  __builtin_memcpy(&other, points + (63 - threadIdx.x), sizeof(Point));  // bug: memcpy_out_early
  out[threadIdx.x] = other.x * other.y * other.z;
}

// From global to shared memory, with a length that the compiler does not know.
__global__ void ok_memcpy_of_length(float* out, const float* in, int bytes) {
  float* tile = shared_memory<float>();
  if (threadIdx.x < 16) __builtin_memcpy(tile + 4 * threadIdx.x, in + 4 * threadIdx.x, static_cast<unsigned>(bytes));
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

// One vector's worth too much: it reaches into what the next thread copies.
__global__ void memcpy_too_long(float* out, const float* in, int bytes) {
  float* tile = shared_memory<float>();
  const unsigned begin = 4 * threadIdx.x, length = static_cast<unsigned>(bytes) + 4;
  if (threadIdx.x < 15) __builtin_memcpy(tile + begin, in + begin, length);  // bug: memcpy_too_long
  __syncthreads();
  out[threadIdx.x] = threadIdx.x > 3 ? tile[63 - threadIdx.x] : 0.0f;
}

__global__ void ok_structs(float* out, const float* in) {
  Point* points = shared_memory<Point>();
  points[threadIdx.x] = Point{in[threadIdx.x], 0.0f, 1.0f};
  __syncthreads();
  const Point other = points[63 - threadIdx.x];
  out[threadIdx.x] = other.x * other.z + other.y;
}

__global__ void structs_read_early(float* out, const float* in) {
  Point* points = shared_memory<Point>();
  points[threadIdx.x] = Point{in[threadIdx.x], 0.0f, 1.0f};  // bug: structs_read_early
  const Point other = points[63 - threadIdx.x];              // bug: structs_read_early
  out[threadIdx.x] = other.x * other.z + other.y;            // bug: structs_read_early
}

// A row is cleared by one thread, with a length that the compiler does not know.
__global__ void ok_memset(float* out, const float* in, int n) {
  float* tile = shared_memory<float>();
  if (threadIdx.x == 0) __builtin_memset(tile, 0, static_cast<unsigned>(n) * sizeof(float));
  __syncthreads();
  atomicAdd(&tile[threadIdx.x], in[63 - threadIdx.x]);
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void memset_late(float* out, const float* in, int n) {
  float* tile = shared_memory<float>();
  if (threadIdx.x == 0) __builtin_memset(tile, 0, static_cast<unsigned>(n) * sizeof(float));  // bug: memset_late
  atomicAdd(&tile[threadIdx.x], in[63 - threadIdx.x]);                                        // bug: memset_late
  out[threadIdx.x] = tile[threadIdx.x];                                                       // bug: memset_late
}
