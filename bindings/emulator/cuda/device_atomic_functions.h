// Atomic functions with CUDA's overloads, and those of a block's and a system's scope.
#pragma once
#include "cuda_runtime.h"

template <>
constexpr emulator::Number emulator_number<long long>() {
  return emulator::Number::kInt64;
}
template <>
constexpr emulator::Number emulator_number<double>() {
  return emulator::Number::kDouble;
}
template <>
constexpr emulator::Number emulator_number<unsigned short>() {
  return emulator::Number::kUnsigned16;
}

template <class T>
__forceinline__ T emulator_atomic_scoped(emulator::Atomic op, T* address, T value, T compare, emulator::Scope scope,
                                         emulator::Order order = emulator::Order::kRelaxed) {
  uint64_t bits = 0, compare_bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  __builtin_memcpy(&compare_bits, &compare, sizeof(T));
  bits = emulator_atomic(op, emulator_number<T>(), address, bits, compare_bits, scope, order);
#ifdef EMULATOR_CHECKED
  bits = emulator_atomic_result(bits, address);
#endif
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}

// One operation in the three scopes; only atomicCAS compares. The value's type is given, so that atomicAdd(&sum, 1)
// adds 1.0f to a float.
#define EMULATOR_ATOMIC(name, op, type)                                                                   \
  __forceinline__ type name(type* address, type value) {                                                  \
    return emulator_atomic_scoped(emulator::Atomic::op, address, value, value, emulator::Scope::kDevice); \
  }                                                                                                       \
  __forceinline__ type name##_block(type* address, type value) {                                          \
    return emulator_atomic_scoped(emulator::Atomic::op, address, value, value, emulator::Scope::kBlock);  \
  }                                                                                                       \
  __forceinline__ type name##_system(type* address, type value) {                                         \
    return emulator_atomic_scoped(emulator::Atomic::op, address, value, value, emulator::Scope::kSystem); \
  }
#define EMULATOR_ATOMIC_CAS(type)                                                              \
  __forceinline__ type atomicCAS(type* address, type compare, type value) {                    \
    return emulator_atomic_scoped(emulator::Atomic::kCompareExchange, address, value, compare, \
                                  emulator::Scope::kDevice);                                   \
  }                                                                                            \
  __forceinline__ type atomicCAS_block(type* address, type compare, type value) {              \
    return emulator_atomic_scoped(emulator::Atomic::kCompareExchange, address, value, compare, \
                                  emulator::Scope::kBlock);                                    \
  }                                                                                            \
  __forceinline__ type atomicCAS_system(type* address, type compare, type value) {             \
    return emulator_atomic_scoped(emulator::Atomic::kCompareExchange, address, value, compare, \
                                  emulator::Scope::kSystem);                                   \
  }
#define EMULATOR_ATOMIC_INTEGER(type)    \
  EMULATOR_ATOMIC(atomicMin, kMin, type) \
  EMULATOR_ATOMIC(atomicMax, kMax, type) \
  EMULATOR_ATOMIC(atomicAnd, kAnd, type) \
  EMULATOR_ATOMIC(atomicOr, kOr, type)   \
  EMULATOR_ATOMIC(atomicXor, kXor, type)
EMULATOR_ATOMIC_INTEGER(int)
EMULATOR_ATOMIC_INTEGER(unsigned)
EMULATOR_ATOMIC_INTEGER(long long)
EMULATOR_ATOMIC_INTEGER(unsigned long long)
EMULATOR_ATOMIC(atomicAdd, kAdd, int)
EMULATOR_ATOMIC(atomicAdd, kAdd, unsigned)
EMULATOR_ATOMIC(atomicAdd, kAdd, unsigned long long)
EMULATOR_ATOMIC(atomicAdd, kAdd, float)
EMULATOR_ATOMIC(atomicAdd, kAdd, double)
EMULATOR_ATOMIC(atomicInc, kIncrement, unsigned)
EMULATOR_ATOMIC(atomicDec, kDecrement, unsigned)
EMULATOR_ATOMIC(atomicExch, kExchange, int)
EMULATOR_ATOMIC(atomicExch, kExchange, unsigned)
EMULATOR_ATOMIC(atomicExch, kExchange, unsigned long long)
EMULATOR_ATOMIC(atomicExch, kExchange, float)
EMULATOR_ATOMIC_CAS(int)
EMULATOR_ATOMIC_CAS(unsigned)
EMULATOR_ATOMIC_CAS(unsigned long long)
EMULATOR_ATOMIC_CAS(unsigned short)
#undef EMULATOR_ATOMIC_INTEGER
#undef EMULATOR_ATOMIC_CAS

#define EMULATOR_ATOMIC_SUB(suffix)                                                         \
  __forceinline__ int atomicSub##suffix(int* address, int value) {                          \
    return atomicAdd##suffix(address, static_cast<int>(0u - static_cast<unsigned>(value))); \
  }                                                                                         \
  __forceinline__ unsigned atomicSub##suffix(unsigned* address, unsigned value) {           \
    return atomicAdd##suffix(address, 0u - value);                                          \
  }
EMULATOR_ATOMIC_SUB()
EMULATOR_ATOMIC_SUB(_block)
EMULATOR_ATOMIC_SUB(_system)
#undef EMULATOR_ATOMIC_SUB
