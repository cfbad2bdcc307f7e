// Loads and stores with a cache hint, which here are loads and stores, and memory functions.
#pragma once
#include "cuda_runtime.h"

#define EMULATOR_LOAD(name)                  \
  template <class T>                         \
  __forceinline__ T name(const T* address) { \
    return *address;                         \
  }
EMULATOR_LOAD(__ldg)
EMULATOR_LOAD(__ldca)
EMULATOR_LOAD(__ldcg)
EMULATOR_LOAD(__ldcs)
EMULATOR_LOAD(__ldlu)
EMULATOR_LOAD(__ldcv)
#undef EMULATOR_LOAD

template <class T>
struct EmulatorSame {
  using Type = T;
};
#define EMULATOR_STORE(name)                                                    \
  template <class T>                                                            \
  __forceinline__ void name(T* address, typename EmulatorSame<T>::Type value) { \
    *address = value;                                                           \
  }
EMULATOR_STORE(__stwb)
EMULATOR_STORE(__stcg)
EMULATOR_STORE(__stcs)
EMULATOR_STORE(__stwt)
#undef EMULATOR_STORE

// A length that the compiler knows is a few accesses to it; another is one that only the runtime sees.
__forceinline__ void* emulator_memcpy(void* target, const void* source, size_t bytes) {
  if (__builtin_constant_p(bytes) && bytes <= 16)
    __builtin_memcpy(target, source, bytes);
  else
    emulator_copy_bytes(target, source, bytes);
  return target;
}
__forceinline__ void* emulator_memset(void* target, int value, size_t bytes) {
  emulator_fill_bytes(target, value, bytes);
  return target;
}
namespace std {
using ::emulator_memcpy;
using ::emulator_memset;
}  // namespace std
#define memcpy emulator_memcpy
#define memset emulator_memset

#define EMULATOR_NO_ALLOCATION "memory cannot be allocated in a kernel here: pass an array as an argument"
#define malloc EMULATOR_REFUSE(EMULATOR_NO_ALLOCATION) malloc
