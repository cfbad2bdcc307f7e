#include "atomics.h"

#include <cstring>
#include <type_traits>

namespace emulator {
namespace {

// 16-bit numbers: a sum of two is exact enough in float to be rounded once, to nearest even.
struct Half {
  std::uint16_t bits;
};
struct Bfloat16 {
  std::uint16_t bits;
};
template <class T>
struct Pair {
  T low, high;
};

float widen(Half x) {
  _Float16 value;
  std::memcpy(&value, &x, sizeof(value));
  return static_cast<float>(value);
}
float widen(Bfloat16 x) {
  const std::uint32_t bits = std::uint32_t{x.bits} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
void round_to(float x, Half& result) {
  const auto value = static_cast<_Float16>(x);
  std::memcpy(&result, &value, sizeof(value));
  if (x != x) result.bits = 0x7fff;
}
void round_to(float x, Bfloat16& result) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  result.bits = x != x ? 0x7fff : static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

template <class T>
T sum(T a, T b) {
  return a + b;
}
template <>
std::int32_t sum(std::int32_t a, std::int32_t b) {
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(a) + static_cast<std::uint32_t>(b));
}
template <>
std::int64_t sum(std::int64_t a, std::int64_t b) {
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(a) + static_cast<std::uint64_t>(b));
}
template <class T>
T rounded_sum(T a, T b) {
  T result;
  round_to(widen(a) + widen(b), result);
  return result;
}
template <>
Half sum(Half a, Half b) {
  return rounded_sum(a, b);
}
template <>
Bfloat16 sum(Bfloat16 a, Bfloat16 b) {
  return rounded_sum(a, b);
}
template <class T>
Pair<T> sum(Pair<T> a, Pair<T> b) {
  return {sum(a.low, b.low), sum(a.high, b.high)};
}

template <class T>
constexpr bool kIsNumber = std::is_arithmetic_v<T>;

template <class T>
T combine(Atomic op, T old, T value, T compare) {
  switch (op) {
    case Atomic::kAdd:
      return sum(old, value);
    case Atomic::kExchange:
    case Atomic::kStore:
      return value;
    case Atomic::kCompareExchange:
      return std::memcmp(&old, &compare, sizeof(T)) == 0 ? value : old;
    default:
      break;
  }
  if constexpr (kIsNumber<T>) {
    if (op == Atomic::kMin) return value < old ? value : old;
    if (op == Atomic::kMax) return value > old ? value : old;
  }
  if constexpr (std::is_integral_v<T>) {
    if (op == Atomic::kAnd) return static_cast<T>(old & value);
    if (op == Atomic::kOr) return static_cast<T>(old | value);
    if (op == Atomic::kXor) return static_cast<T>(old ^ value);
    if (op == Atomic::kIncrement) return static_cast<T>(old >= value ? 0 : old + 1);
    if (op == Atomic::kDecrement) return static_cast<T>(old == 0 || old > value ? value : old - 1);
  }
  return old;
}

template <class T>
std::uint64_t update(Atomic op, void* address, std::uint64_t value_bits, std::uint64_t compare_bits) {
  using Bits = std::conditional_t<sizeof(T) == 2, std::uint16_t,
                                  std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>>;
  T value, compare;
  std::memcpy(&value, &value_bits, sizeof(T));
  std::memcpy(&compare, &compare_bits, sizeof(T));
  auto* target = static_cast<Bits*>(address);
  Bits old_bits = __atomic_load_n(target, __ATOMIC_ACQUIRE);
  while (op != Atomic::kLoad) {
    T old;
    std::memcpy(&old, &old_bits, sizeof(T));
    const T next = combine(op, old, value, compare);
    Bits next_bits;
    std::memcpy(&next_bits, &next, sizeof(T));
    if (__atomic_compare_exchange_n(target, &old_bits, next_bits, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) break;
  }
  return old_bits;
}

}  // namespace

std::size_t size_of(Number type) {
  switch (type) {
    case Number::kUnsigned16:
    case Number::kHalf:
    case Number::kBfloat16:
      return 2;
    case Number::kUnsigned64:
    case Number::kInt64:
    case Number::kDouble:
      return 8;
    default:
      return 4;
  }
}

std::uint64_t update_atomically(Atomic op, Number type, void* address, std::uint64_t value, std::uint64_t compare) {
  switch (type) {
    case Number::kFloat:
      return update<float>(op, address, value, compare);
    case Number::kInt:
      return update<std::int32_t>(op, address, value, compare);
    case Number::kUnsigned:
      return update<std::uint32_t>(op, address, value, compare);
    case Number::kUnsigned64:
      return update<std::uint64_t>(op, address, value, compare);
    case Number::kInt64:
      return update<std::int64_t>(op, address, value, compare);
    case Number::kDouble:
      return update<double>(op, address, value, compare);
    case Number::kUnsigned16:
      return update<std::uint16_t>(op, address, value, compare);
    case Number::kHalf:
      return update<Half>(op, address, value, compare);
    case Number::kBfloat16:
      return update<Bfloat16>(op, address, value, compare);
    case Number::kHalfPair:
      return update<Pair<Half>>(op, address, value, compare);
    case Number::kBfloat16Pair:
      return update<Pair<Bfloat16>>(op, address, value, compare);
  }
  return 0;
}

}  // namespace emulator
