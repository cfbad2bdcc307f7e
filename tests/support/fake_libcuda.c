// A libcuda.so.1 that tells Python what a launch was given: cuda-bindings itself can then be tested. nvmath-python asks
// it for its version.
#include <stddef.h>
#include <string.h>

typedef struct {
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  void* attributes;
  unsigned attribute_count;
} LaunchConfig;

int (*on_launch)(const LaunchConfig*, void* function, void** parameters, void** extra);  // set by the test

static int launch(const LaunchConfig* config, void* function, void** parameters, void** extra) {
  return on_launch(config, function, parameters, extra);
}

int cuGetProcAddress_v2(const char* name, void** address, int version, unsigned long long flags, void* status) {
  (void)version, (void)flags, (void)status;
  *address = NULL;
  if (strcmp(name, "cuLaunchKernelEx") == 0) *address = (void*)launch;
  if (strcmp(name, "cuGetProcAddress") == 0) *address = (void*)cuGetProcAddress_v2;
  return 0;
}

int cuDriverGetVersion(int* version) {
  *version = 13000;
  return 0;
}
