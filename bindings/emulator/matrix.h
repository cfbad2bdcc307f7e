// The arithmetic of mma.sync m16n8k16 on fragments laid out over the lanes of a warp as the PTX ISA says.
#pragma once
#include <cstdint>

namespace emulator {

// One lane's registers.
struct MmaOperands {
  float* d;
  const std::uint32_t* a;
  const std::uint32_t* b;
  int tiles;
  bool is_bf16;
};

// What is multiplied at once: 16 rows of a, and several tiles of b side by side.
struct MmaTile {
  static constexpr int kRows = 16, kDepth = 16, kWidth = 8, kTiles = 8, kColumns = kTiles * kWidth;
};

// How sums are rounded: kFast adds the 16 exact products of an element to d in order of k, in float. The others are
// what GPUs were measured to do, see rounding.h.
enum class MmaRounding : int { kFast, kAmpere, kHopper };

// d += a · b for the 32 lanes of a warp and every tile of b.
void mma(MmaOperands* const (&lanes)[32], MmaRounding rounding);

float half_to_float(std::uint16_t bits);

}  // namespace emulator
