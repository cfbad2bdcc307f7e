#include "matrix.h"

#include <cstring>

#include "rounding.h"

namespace emulator {
namespace {

constexpr int kM = MmaTile::kRows, kN = MmaTile::kWidth, kK = MmaTile::kDepth, kTilesAtOnce = MmaTile::kTiles,
              kColumns = MmaTile::kColumns;

float bits_to_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

template <bool kBf16>
float low(std::uint32_t pair) {
  if constexpr (kBf16)
    return bits_to_float(pair << 16);
  else
    return half_to_float(static_cast<std::uint16_t>(pair));
}
template <bool kBf16>
float high(std::uint32_t pair) {
  if constexpr (kBf16)
    return bits_to_float(pair & 0xffff0000u);
  else
    return half_to_float(static_cast<std::uint16_t>(pair >> 16));
}

// c[16][64] += a[16][16] · b[16][64] in vectors of kStripe floats. Same bits for all: a product of two 16-bit numbers
// is exact in float, so fused and separate rounding agree.
template <int kStripe>
__attribute__((always_inline)) inline void multiply_in(float (*__restrict__ c)[kColumns],
                                                       const float (*__restrict__ a)[kK],
                                                       const float (*__restrict__ b)[kColumns]) {
  constexpr int kRows = 4;
  typedef float Stripe __attribute__((vector_size(kStripe * sizeof(float)), may_alias));  // all arrays are aligned
  for (int row = 0; row < kM; row += kRows) {
    for (int column = 0; column < kColumns; column += 2 * kStripe) {
      Stripe sum[kRows][2];
      for (int i = 0; i < kRows; ++i)
        for (int j = 0; j < 2; ++j) sum[i][j] = *reinterpret_cast<Stripe*>(&c[row + i][column + j * kStripe]);
      for (int k = 0; k < kK; ++k) {
        const Stripe left = *reinterpret_cast<const Stripe*>(&b[k][column]);
        const Stripe right = *reinterpret_cast<const Stripe*>(&b[k][column + kStripe]);
        for (int i = 0; i < kRows; ++i) {
          sum[i][0] += left * a[row + i][k];
          sum[i][1] += right * a[row + i][k];
        }
      }
      for (int i = 0; i < kRows; ++i)
        for (int j = 0; j < 2; ++j) *reinterpret_cast<Stripe*>(&c[row + i][column + j * kStripe]) = sum[i][j];
    }
  }
}

// In the widest vectors that the machine has: wider ones would go through memory.
using Multiply = void (*)(float (*)[kColumns], const float (*)[kK], const float (*)[kColumns]);
#define EMULATOR_MULTIPLY(name, kStripe, ...)                                                        \
  __attribute__((optimize("O3"), __VA_ARGS__)) void name(float (*c)[kColumns], const float (*a)[kK], \
                                                         const float (*b)[kColumns]) {               \
    multiply_in<kStripe>(c, a, b);                                                                   \
  }
EMULATOR_MULTIPLY(multiply_512, 16, target("avx512f"))
EMULATOR_MULTIPLY(multiply_256, 8, target("avx2,fma"))
EMULATOR_MULTIPLY(multiply_128, 4, noinline)

Multiply widest() {
  if (__builtin_cpu_supports("avx512f")) return multiply_512;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? multiply_256 : multiply_128;
}
const Multiply multiply = widest();

template <bool kBf16>
void mma_typed(MmaOperands* const (&lanes)[32], MmaRounding rounding) {
  alignas(64) float a[kM][kK], b[kK][kColumns], c[kM][kColumns];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t value = lanes[lane]->a[i];
      const int row = group + 8 * (i % 2), k = pair + 8 * (i / 2);
      a[row][k] = low<kBf16>(value);
      a[row][k + 1] = high<kBf16>(value);
    }
  }
  const int tiles = lanes[0]->tiles;
  for (int first = 0; first < tiles; first += kTilesAtOnce) {
    const int count = tiles - first < kTilesAtOnce ? tiles - first : kTilesAtOnce;
    if (count < kTilesAtOnce) std::memset(b, 0, sizeof(b)), std::memset(c, 0, sizeof(c));
    for (int lane = 0; lane < 32; ++lane) {
      const int group = lane / 4, pair = 2 * (lane % 4);
      const std::uint32_t* registers = lanes[lane]->b + 2 * first;
      const float* d = lanes[lane]->d + 4 * first;
      for (int tile = 0; tile < count; ++tile) {
        for (int i = 0; i < 2; ++i) {
          const std::uint32_t value = registers[2 * tile + i];
          b[pair + 8 * i][8 * tile + group] = low<kBf16>(value);
          b[pair + 8 * i + 1][8 * tile + group] = high<kBf16>(value);
        }
        std::memcpy(&c[group][8 * tile + pair], d + 4 * tile, 8);
        std::memcpy(&c[group + 8][8 * tile + pair], d + 4 * tile + 2, 8);
      }
    }
    if (rounding == MmaRounding::kFast)
      multiply(c, a, b);
    else
      multiply_rounding(rounding, kBf16, kN * count, c, a, b);
    for (int lane = 0; lane < 32; ++lane) {
      const int group = lane / 4, pair = 2 * (lane % 4);
      float* d = lanes[lane]->d + 4 * first;
      for (int tile = 0; tile < count; ++tile) {
        std::memcpy(d + 4 * tile, &c[group][8 * tile + pair], 8);
        std::memcpy(d + 4 * tile + 2, &c[group + 8][8 * tile + pair], 8);
      }
    }
  }
}

}  // namespace

float half_to_float(std::uint16_t bits) {
  const std::uint32_t magnitude = bits & 0x7fffu, sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  constexpr float kRebias = 0x1p112f;  // the exponent biases differ by 112; the product also normalises subnormals
  const float value = bits_to_float(magnitude << 13) * kRebias;
  return sign != 0 ? -value : value;
}

void mma(MmaOperands* const (&lanes)[32], MmaRounding rounding) {
  if (lanes[0]->is_bf16)
    mma_typed<true>(lanes, rounding);
  else
    mma_typed<false>(lanes, rounding);
}

}  // namespace emulator
