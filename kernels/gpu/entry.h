// Writes the parameters of one kernel instance, as C++ sees them, into its cubin. The generated translation unit is:
// the .cu file, then DESCRIBE_PARAMETERS(instance). The launcher checks its arguments against the types it reads there.
#pragma once
#include <float16.cuh>
#include <platform.cuh>

struct ParameterRecord {
  char kind = 0;          // p pointer, i signed, u unsigned, f floating, s struct; 0 ends the list
  bool is_const = false;  // of the pointee
  char type[10] = {};     // element type of a pointer, else the type, as NumPy calls it
  uint32_t size = 0;      // of the parameter itself

  constexpr ParameterRecord() = default;
  __device__ constexpr ParameterRecord(char kind, bool is_const, const char* name, uint32_t size)
      : kind(kind), is_const(is_const), size(size) {
    for (int i = 0; name[i] != 0; ++i) type[i] = name[i];
  }
};

template <class T>
struct TypeTraits {
  static constexpr char kKind = 's';
  static constexpr const char* kName = "struct";
};

#define DESCRIBE_TYPE(cpp_type, kind, name)    \
  template <>                                  \
  struct TypeTraits<cpp_type> {                \
    static constexpr char kKind = kind;        \
    static constexpr const char* kName = name; \
  };
DESCRIBE_TYPE(void, 's', "void")
DESCRIBE_TYPE(bf16, 's', "bfloat16")
DESCRIBE_TYPE(half, 's', "float16")
DESCRIBE_TYPE(float, 'f', "float32")
DESCRIBE_TYPE(double, 'f', "float64")
DESCRIBE_TYPE(bool, 'u', "bool")
DESCRIBE_TYPE(char, 'i', "int8")
DESCRIBE_TYPE(signed char, 'i', "int8")
DESCRIBE_TYPE(short, 'i', "int16")
DESCRIBE_TYPE(int, 'i', "int32")
DESCRIBE_TYPE(long, 'i', sizeof(long) == 8 ? "int64" : "int32")
DESCRIBE_TYPE(long long, 'i', "int64")
DESCRIBE_TYPE(unsigned char, 'u', "uint8")
DESCRIBE_TYPE(unsigned short, 'u', "uint16")
DESCRIBE_TYPE(unsigned, 'u', "uint32")
DESCRIBE_TYPE(unsigned long, 'u', sizeof(long) == 8 ? "uint64" : "uint32")
DESCRIBE_TYPE(unsigned long long, 'u', "uint64")
#undef DESCRIBE_TYPE

template <class T>
struct TypeTraits<volatile T> : TypeTraits<T> {};

template <class T>
struct ParameterTraits {
  static constexpr ParameterRecord kRecord{TypeTraits<T>::kKind, false, TypeTraits<T>::kName, sizeof(T)};
};
template <class T>
struct ParameterTraits<T*> {
  static constexpr ParameterRecord kRecord{'p', false, TypeTraits<T>::kName, sizeof(T*)};
};
template <class T>
struct ParameterTraits<const T*> {
  static constexpr ParameterRecord kRecord{'p', true, TypeTraits<T>::kName, sizeof(T*)};
};

template <class Function>
struct ParameterList;
template <class... Parameters>
struct ParameterList<void (*)(Parameters...)> {
  ParameterRecord records[sizeof...(Parameters) + 1] = {ParameterTraits<Parameters>::kRecord..., {}};
};

#define DESCRIBE_PARAMETERS(...) __constant__ ParameterList<decltype(&__VA_ARGS__)> kernel_parameters;
