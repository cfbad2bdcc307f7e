// Loads and stores with a cache hint, which here are loads and stores.
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

#define EMULATOR_NO_ALLOCATION "memory cannot be allocated in a kernel here: pass an array as an argument"
#define malloc EMULATOR_REFUSE(EMULATOR_NO_ALLOCATION) malloc
