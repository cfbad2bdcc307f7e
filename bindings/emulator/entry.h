// Describes one kernel instance to the runtime. The generated translation unit is: the .cu file, then
// EMULATOR_KERNEL(instance).
#pragma once
#include <type_traits>
#include <utility>

#include "abi.h"
#ifndef EMULATOR_CUDA  // CUDA's own headers have 16-bit types of their own
#include <float16.cuh>
#endif

namespace emulator {

template <class T>
constexpr const char* type_name() {
  if constexpr (ElementName<T>::kName != nullptr)
    return ElementName<T>::kName;
  else if constexpr (std::is_same_v<T, float>)
    return "float32";
  else if constexpr (std::is_same_v<T, double>)
    return "float64";
  else if constexpr (std::is_same_v<T, bool>)
    return "bool";
  else if constexpr (std::is_integral_v<T>) {
    constexpr const char* names[2][4] = {{"uint8", "uint16", "uint32", "uint64"}, {"int8", "int16", "int32", "int64"}};
    return names[std::is_signed_v<T>][sizeof(T) == 1 ? 0 : sizeof(T) == 2 ? 1 : sizeof(T) == 4 ? 2 : 3];
  } else if constexpr (std::is_void_v<T>)
    return "void";
  else
    return "struct";
}

template <class T>
constexpr Parameter parameter() {
  if constexpr (std::is_pointer_v<T>) {
    using Element = std::remove_pointer_t<T>;
    return {Parameter::kPointer, std::is_const_v<Element>, sizeof(T),
            type_name<std::remove_cv_t<std::remove_all_extents_t<Element>>>()};
  } else {
    constexpr auto kind = std::is_floating_point_v<T> ? Parameter::kFloat
                          : !std::is_integral_v<T>    ? Parameter::kStruct
                          : std::is_signed_v<T>       ? Parameter::kSigned
                                                      : Parameter::kUnsigned;
    static_assert(std::is_trivially_copyable_v<T>, "a kernel argument is copied byte by byte");
    return {kind, false, sizeof(T), type_name<T>()};
  }
}

template <auto kFunction>
struct Entry;

template <class... Args, void (*kFunction)(Args...)>
struct Entry<kFunction> {
  static constexpr unsigned kCount = sizeof...(Args);
  static constexpr Parameter kParameters[kCount + 1] = {parameter<std::remove_cv_t<Args>>()..., Parameter{}};

  template <std::size_t... kIndex>
  __attribute__((no_sanitize("thread"))) static void call(const void* const* arguments,
                                                          std::index_sequence<kIndex...>) {
    kFunction(*static_cast<const std::remove_cv_t<Args>*>(arguments[kIndex])...);
  }
  __attribute__((no_sanitize("thread"))) static void invoke(const void* const* arguments) {
    call(arguments, std::make_index_sequence<kCount>());
  }
};

}  // namespace emulator

#define EMULATOR_KERNEL(...)                                                                                    \
  EMULATOR_API const emulator::Kernel emulator_kernel = {emulator::kAbi, emulator::Entry<&__VA_ARGS__>::kCount, \
                                                         emulator::Entry<&__VA_ARGS__>::kParameters,            \
                                                         &emulator::Entry<&__VA_ARGS__>::invoke};
