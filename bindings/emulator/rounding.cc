#include "rounding.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulator {
namespace {

constexpr int kRows = MmaTile::kRows, kDepth = MmaTile::kDepth, kColumns = MmaTile::kColumns;
constexpr int kHalfSum = 8;  // products of which a sum surely fits in 32 bits
constexpr int kWidest = 16;  // columns of the widest vectors
constexpr int kNoExponent = -1000;
constexpr std::uint32_t kNan = 0x7fffffffu;
constexpr float kGreatest = 0x1.fffffep127f;  // of the finite numbers

struct TensorCore {
  int terms;          // products that are added at once
  int fraction_bits;  // kept below the largest exponent
  int zero_exponent;  // of an accumulator that is zero
};
constexpr TensorCore kAmpereCore{8, 24, -132}, kHopperCore{16, 25, -133};

struct Format {
  int fraction_bits, least_exponent;
};
constexpr Format kBf16Format{7, -126}, kHalfFormat{10, -14};

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

bool is_special(float x) { return !(std::fabs(x) <= kGreatest); }  // an infinity or NaN

// A number as (-1)^sign · significand · 2^(exponent - fraction bits of its format); sign is 0 or -1.
struct Parts {
  std::int32_t sign, significand, exponent;
};

Parts parts_of(float x, const Format& format) {
  const auto bits = bits_as<std::uint32_t>(x);
  const int field = static_cast<int>(bits >> 23 & 0xffu);
  const int exponent = std::max(field, 1) - 127, least = std::max(exponent, format.least_exponent);
  const std::uint32_t significand = (bits & 0x7fffffu) | (field != 0 ? 0x800000u : 0u);
  if (significand == 0) return {0, 0, kNoExponent};
  const int shift = 23 - format.fraction_bits + least - exponent;
  return {-static_cast<std::int32_t>(bits >> 31), static_cast<std::int32_t>(significand >> shift), least};
}

// The operands of a product, taken apart. Significands of a are shifted so that significand · significand has as many
// fraction bits as the tensor core keeps.
struct Operands {
  Parts a[kRows][kDepth];
  alignas(64) std::int32_t sign[kDepth][kColumns], significand[kDepth][kColumns], exponent[kDepth][kColumns];  // of b
  bool has_special_a[kRows], has_special_b;
  const TensorCore& core;
  int columns;

  Operands(const TensorCore& of, const Format& format, int used, const float (*left)[kDepth],
           const float (*right)[kColumns])
      : has_special_b(false), core(of), columns(used) {
    for (int row = 0; row < kRows; ++row) {
      has_special_a[row] = false;
      for (int k = 0; k < kDepth; ++k) {
        has_special_a[row] |= is_special(left[row][k]);
        a[row][k] = parts_of(left[row][k], format);
        a[row][k].significand <<= core.fraction_bits - 2 * format.fraction_bits;
      }
    }
    for (int k = 0; k < kDepth; ++k)
      for (int column = 0; column < columns; ++column) {
        has_special_b |= is_special(right[k][column]);
        const Parts parts = parts_of(right[k][column], format);
        sign[k][column] = parts.sign, significand[k][column] = parts.significand, exponent[k][column] = parts.exponent;
      }
  }
};

// One group of products in which infinities or NaN take part: as IEEE arithmetic has it.
float special_sum(float c, const float* a, const float (*b)[kColumns], int column, int terms) {
  double sum = c;
  for (int k = 0; k < terms; ++k) sum += static_cast<double>(a[k]) * b[k][column];
  return sum != sum ? bits_as<float>(kNan) : static_cast<float>(sum);
}
bool takes_part(float c, const float* a, const float (*b)[kColumns], int column, int terms) {
  bool result = is_special(c);
  for (int k = 0; k < terms; ++k) result |= is_special(a[k]) || is_special(b[k][column]);
  return result;
}

// Vectors of kCount 32-bit integers, and what their halves become.
template <int kBytes>
struct LaneTypes;
#define EMULATOR_LANES(kBytes)                                                                \
  template <>                                                                                 \
  struct LaneTypes<kBytes> {                                                                  \
    static constexpr int kCount = kBytes / 4;                                                 \
    typedef std::int32_t Ints __attribute__((vector_size(kBytes), may_alias));                \
    typedef std::int32_t HalfInts __attribute__((vector_size(kBytes / 2), may_alias));        \
    typedef float HalfFloats __attribute__((vector_size(kBytes / 2), may_alias, aligned(4))); \
    typedef double Doubles __attribute__((vector_size(kBytes)));                              \
    typedef std::int64_t Longs __attribute__((vector_size(kBytes)));                          \
  }
EMULATOR_LANES(16);
EMULATOR_LANES(32);
EMULATOR_LANES(64);

// Makes of the significands of terms, which are not negative, what is left of them `distance` places further right,
// with its sign. After 31 places nothing is left.
template <class Ints>
__attribute__((always_inline)) inline void align(Ints& term, const Ints& distance, const Ints& sign) {
  term = ((term >> (distance < 31 ? distance : Ints{} + 31)) ^ sign) - sign;
}

// c = (sums[0] + sums[1]) · 2^(tops - fraction bits) without what float has no place for; a sum has 33 bits, so doubles
// have them exactly. Returns whether a result is infinite.
template <class Lanes>
__attribute__((always_inline)) inline bool finish(float* c, const std::int32_t (&sums)[2][Lanes::kCount],
                                                  const std::int32_t (&tops)[Lanes::kCount], int fraction_bits) {
  using HalfInts = typename Lanes::HalfInts;
  using Doubles = typename Lanes::Doubles;
  using Longs = typename Lanes::Longs;
  constexpr std::int64_t kMagnitude = 0x7fffffffffffffff, kInFloat = ~std::int64_t{0x1fffffff},
                         kGreatestBits = 0x47efffffffffffff;  // the last double below 2^128
  Longs infinite = {};
  for (int i = 0; i < Lanes::kCount; i += Lanes::kCount / 2) {
    const HalfInts low = *reinterpret_cast<const HalfInts*>(&sums[0][i]),
                   high = *reinterpret_cast<const HalfInts*>(&sums[1][i]),
                   exponent = *reinterpret_cast<const HalfInts*>(&tops[i]) - fraction_bits;
    const Longs unit = __builtin_convertvector(exponent + 1023, Longs) << 52;
    const Doubles total =
        (__builtin_convertvector(low, Doubles) + __builtin_convertvector(high, Doubles)) * (Doubles)unit;
    const Doubles magnitude = (Doubles)((Longs)total & kMagnitude);
    const Doubles units = magnitude < 0x1p-126 ? total * 0x1p149 : Doubles{};  // of subnormal numbers; conversion drops
    const Doubles subnormal = __builtin_convertvector(__builtin_convertvector(units, HalfInts), Doubles) * 0x1p-149;
    const Doubles kept = magnitude < 0x1p-126 ? subnormal : (Doubles)((Longs)total & kInFloat);
    *reinterpret_cast<typename Lanes::HalfFloats*>(c + i) = __builtin_convertvector(kept, typename Lanes::HalfFloats);
    infinite |= kGreatestBits - (Longs)magnitude;  // negative where it is beyond
  }
  std::int64_t any = 0;
  for (int i = 0; i < Lanes::kCount / 2; ++i) any |= reinterpret_cast<const std::int64_t*>(&infinite)[i];
  return any < 0;
}

// One group of products of one row, from `first` on, for as many columns as Lanes has. Returns whether a sum is
// infinite.
template <class Lanes>
__attribute__((always_inline)) inline bool add_group(const Operands& from, int row, int first, int column, float* c) {
  using Ints = typename Lanes::Ints;
  constexpr int kStripe = Lanes::kCount;
  const TensorCore& core = from.core;
  const Parts* a = from.a[row];

  const Ints c_bits = *reinterpret_cast<const Ints*>(c), field = c_bits >> 23 & 0xff;
  Ints c_term = (c_bits & 0x7fffff) | (field > 0 ? Ints{} + 0x800000 : Ints{});
  const Ints c_exponent = c_term == 0 ? Ints{} + core.zero_exponent : (field > 1 ? field : Ints{} + 1) - 127;
  Ints top = c_exponent;
  for (int k = first; k < first + core.terms; ++k) {
    const Ints exponent = *reinterpret_cast<const Ints*>(&from.exponent[k][column]) + a[k].exponent;
    top = exponent > top ? exponent : top;
  }
  c_term <<= core.fraction_bits - 23;
  align(c_term, top - c_exponent, c_bits >> 31);

  alignas(64) std::int32_t sums[2][kStripe] = {}, tops[kStripe];
  for (int half = 0; half < core.terms / kHalfSum; ++half) {
    Ints sum = half == 0 ? c_term : Ints{};
#pragma GCC unroll 8
    for (int i = 0; i < kHalfSum; ++i) {
      const int k = first + half * kHalfSum + i;
      Ints term = *reinterpret_cast<const Ints*>(&from.significand[k][column]) * a[k].significand;
      align(term, top - *reinterpret_cast<const Ints*>(&from.exponent[k][column]) - a[k].exponent,
            *reinterpret_cast<const Ints*>(&from.sign[k][column]) ^ a[k].sign);
      sum += term;
    }
    *reinterpret_cast<Ints*>(sums[half]) = sum;
  }
  *reinterpret_cast<Ints*>(tops) = top;
  return finish<Lanes>(c, sums, tops, core.fraction_bits);
}

template <class Lanes>
__attribute__((always_inline)) inline void multiply_in(const Operands& from, float (*c)[kColumns],
                                                       const float (*a)[kDepth], const float (*b)[kColumns]) {
  constexpr int kStripe = Lanes::kCount;
  const int terms = from.core.terms;
  for (int row = 0; row < kRows; ++row) {
    bool has_special = from.has_special_a[row] || from.has_special_b;
    for (int column = 0; column < from.columns; ++column) has_special |= is_special(c[row][column]);
    for (int column = 0; column < from.columns; column += kStripe) {
      float* sums = &c[row][column];
      bool is_any_special = has_special;
      for (int first = 0; first < kDepth; first += terms) {
        float before[kStripe];
        std::memcpy(before, sums, sizeof(before));
        const bool is_special_now = add_group<Lanes>(from, row, first, column, sums);
        for (int i = 0; is_any_special && i < kStripe; ++i)
          if (takes_part(before[i], a[row] + first, b + first, column + i, terms))
            sums[i] = special_sum(before[i], a[row] + first, b + first, column + i, terms);
        is_any_special |= is_special_now;
      }
    }
  }
}

// In the widest vectors that the machine has; without AVX2 it has no shift by a vector of distances, and is slow.
using Multiply = void (*)(const Operands&, float (*)[kColumns], const float (*)[kDepth], const float (*)[kColumns]);
#define EMULATOR_MULTIPLY(name, kLanes, ...)                                                                     \
  __attribute__((optimize("O3"), __VA_ARGS__)) void name(const Operands& from, float (*c)[kColumns],             \
                                                         const float (*a)[kDepth], const float (*b)[kColumns]) { \
    multiply_in<kLanes>(from, c, a, b);                                                                          \
  }
EMULATOR_MULTIPLY(multiply_512, LaneTypes<64>, target("avx512f"))
EMULATOR_MULTIPLY(multiply_256, LaneTypes<32>, target("avx2,fma"))
EMULATOR_MULTIPLY(multiply_128, LaneTypes<16>, noinline)

Multiply widest() {
  if (__builtin_cpu_supports("avx512f")) return multiply_512;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? multiply_256 : multiply_128;
}
const Multiply multiply = widest();

}  // namespace

void multiply_rounding(MmaRounding mode, bool is_bf16, int columns, float (*c)[kColumns], const float (*a)[kDepth],
                       const float (*b)[kColumns]) {
  const TensorCore& core = mode == MmaRounding::kAmpere ? kAmpereCore : kHopperCore;
  const int used = (columns + kWidest - 1) / kWidest * kWidest;
  multiply(Operands(core, is_bf16 ? kBf16Format : kHalfFormat, used, a, b), c, a, b);
}

}  // namespace emulator
