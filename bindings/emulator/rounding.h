// Products of 16-bit matrices with the rounding of a GPU's tensor cores.
#pragma once
#include "matrix.h"

namespace emulator {

// c += a · b in the first `columns` columns with the rounding of `mode`, which is not kFast. What lies beyond them may
// be computed, too, up to a multiple of 16. For each group of products (8 on Ampere, 16 on Hopper) a tensor core
//   1. multiplies exactly and does not normalise: a product has the sum of its factors' exponents,
//   2. drops, towards zero, what lies below 2^-24 (2^-25 on Hopper) of the largest exponent among products and c,
//   3. adds what is left exactly,
//   4. and drops, towards zero, what float32 has no place for. From 2^128 on the result is infinite, never -0.
// Subnormal numbers count with the least exponent of their format, products of zero not at all, and a c of zero as
// 2^-132 (2^-133). NaN is 0x7fffffff.
void multiply_rounding(MmaRounding mode, bool is_bf16, int columns, float (*c)[MmaTile::kColumns],
                       const float (*a)[MmaTile::kDepth], const float (*b)[MmaTile::kColumns]);

}  // namespace emulator
