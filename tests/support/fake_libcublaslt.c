// A libcublasLt.so.13 of the functions that we call, so that the real nvmath-python can be tested without a GPU. Memory
// is the host's; products are of bfloat16 to float32 only.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { kSuccess = 0, kInvalidValue = 7, kNotSupported = 15, kBFloat16 = 14, kFloat32 = 0, kAlgorithm = 0x1234 };

typedef struct {
  int type;
  uint64_t rows, columns;
  int64_t stride;
} Layout;

typedef struct {
  int compute_type, scale_type, transposed;
} Operation;

typedef struct {
  uint64_t workspace;
  uint32_t reduction, alignment[4];
} Preference;

typedef struct {
  uint64_t data[8];
} Algorithm;

typedef struct {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
} Result;

int alive;          // handles that are not destroyed
void* last_stream;  // of the last product

const char* cublasLtGetStatusName(int status) { return status == kNotSupported ? "CUBLAS_STATUS_NOT_SUPPORTED" : "?"; }
const char* cublasLtGetStatusString(int status) { return status == kNotSupported ? "not supported" : "?"; }
size_t cublasLtGetVersion(void) { return 130100; }

static int make(void** place, size_t size) { return ++alive, *place = calloc(1, size), kSuccess; }
static int destroy(void* thing) { return --alive, free(thing), kSuccess; }

int cublasLtCreate(void** handle) { return make(handle, 1); }
int cublasLtDestroy(void* handle) { return destroy(handle); }
int cublasLtMatmulDescDestroy(void* operation) { return destroy(operation); }
int cublasLtMatrixLayoutDestroy(void* layout) { return destroy(layout); }
int cublasLtMatmulPreferenceDestroy(void* preference) { return destroy(preference); }
int cublasLtMatmulPreferenceCreate(void** preference) { return make(preference, sizeof(Preference)); }

int cublasLtMatmulDescCreate(void** place, int compute_type, int scale_type) {
  make(place, sizeof(Operation));
  *(Operation*)*place = (Operation){compute_type, scale_type, 0};
  return kSuccess;
}

int cublasLtMatrixLayoutCreate(void** place, int type, uint64_t rows, uint64_t columns, int64_t stride) {
  make(place, sizeof(Layout));
  *(Layout*)*place = (Layout){type, rows, columns, stride};
  return kSuccess;
}

int cublasLtMatmulDescSetAttribute(Operation* operation, int attribute, const void* data, size_t size) {
  if (attribute != 3 || size != 4) return kInvalidValue;
  return memcpy(&operation->transposed, data, size), kSuccess;
}

int cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, const void* data, size_t size) {
  void* place = attribute == 1   ? (void*)&preference->workspace
                : attribute == 3 ? (void*)&preference->reduction
                                 : (void*)&preference->alignment[attribute - 5];
  if (attribute < 1 || attribute == 2 || attribute == 4 || attribute > 8 || size != (attribute == 1 ? 8 : 4))
    return kInvalidValue;
  return memcpy(place, data, size), kSuccess;
}

int cublasLtMatmulAlgoCheck(void* handle, const Operation* operation, const Layout* a, const Layout* b, const Layout* c,
                            const Layout* d, const Algorithm* algorithm, Result* result) {
  (void)handle, (void)c;
  const int fits = a->rows == b->rows && d->rows == a->columns && d->columns == b->columns;
  if (!fits || operation->compute_type != 68 || operation->scale_type != kFloat32 || operation->transposed != 1)
    return kInvalidValue;
  if (a->type != kBFloat16 || b->type != kBFloat16 || d->type != kFloat32 || algorithm->data[0] != kAlgorithm)
    return kNotSupported;
  return memset(result, 0, sizeof(Result)), kSuccess;
}

int cublasLtMatmulAlgoGetHeuristic(void* handle, const Operation* operation, const Layout* a, const Layout* b,
                                   const Layout* c, const Layout* d, const Preference* preference, int requested,
                                   Result* results, int* found) {
  const Algorithm algorithm = {{kAlgorithm}};
  for (int i = 0; i < 4; ++i)
    if (preference->alignment[i] != 16) return kInvalidValue;
  if (requested < 1 || preference->workspace != 32 << 20 || preference->reduction != 2) return kInvalidValue;
  const int status = cublasLtMatmulAlgoCheck(handle, operation, a, b, c, d, &algorithm, results);
  results->algorithm = algorithm;
  return *found = 1, status;
}

static float widen(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  return memcpy(&value, &wide, 4), value;
}

int cublasLtMatmul(void* handle, const Operation* operation, const float* alpha, const uint16_t* a,
                   const Layout* a_layout, const uint16_t* b, const Layout* b_layout, const float* beta, const float* c,
                   const Layout* c_layout, float* d, const Layout* d_layout, const Algorithm* algorithm,
                   void* workspace, size_t workspace_bytes, void* stream) {
  Result result;
  const int status =
      cublasLtMatmulAlgoCheck(handle, operation, a_layout, b_layout, c_layout, d_layout, algorithm, &result);
  if (status != kSuccess || *alpha != 1.0f || *beta != 0.0f || c != d) return status ? status : kInvalidValue;
  ((char*)workspace)[0] = ((char*)workspace)[workspace_bytes - 1] = 1;
  last_stream = stream;
  for (uint64_t column = 0; column < d_layout->columns; ++column)
    for (uint64_t row = 0; row < d_layout->rows; ++row) {
      float sum = 0.0f;
      for (uint64_t k = 0; k < a_layout->rows; ++k)
        sum += widen(a[row * a_layout->stride + k]) * widen(b[column * b_layout->stride + k]);
      d[column * d_layout->stride + row] = sum;
    }
  return kSuccess;
}
