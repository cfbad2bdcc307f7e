// Tensor cores (sm_80 and up): m16n8k16 products and the matrix moves that feed them.
#pragma once
#include <float16.cuh>
#include <platform.cuh>

// Loads 8 × 8 matrices of 16-bit elements: lane 8 i + r gives the address of row r of matrix i; registers[i] of lane l
// gets elements 2 (l % 4) and the next of row l / 4 of matrix i (of its transpose in the _trans forms).
__forceinline__ void ldmatrix_x1(uint32_t (&registers)[1], const void* row) {
  emulator_ldmatrix(registers, row, 1, false);
}
__forceinline__ void ldmatrix_x2(uint32_t (&registers)[2], const void* row) {
  emulator_ldmatrix(registers, row, 2, false);
}
__forceinline__ void ldmatrix_x4(uint32_t (&registers)[4], const void* row) {
  emulator_ldmatrix(registers, row, 4, false);
}
__forceinline__ void ldmatrix_x1_trans(uint32_t (&registers)[1], const void* row) {
  emulator_ldmatrix(registers, row, 1, true);
}
__forceinline__ void ldmatrix_x2_trans(uint32_t (&registers)[2], const void* row) {
  emulator_ldmatrix(registers, row, 2, true);
}
__forceinline__ void ldmatrix_x4_trans(uint32_t (&registers)[4], const void* row) {
  emulator_ldmatrix(registers, row, 4, true);
}

// The inverse of ldmatrix (sm_90 and up).
__forceinline__ void stmatrix_x1(void* row, const uint32_t (&registers)[1]) {
  emulator_stmatrix(registers, row, 1, false);
}
__forceinline__ void stmatrix_x2(void* row, const uint32_t (&registers)[2]) {
  emulator_stmatrix(registers, row, 2, false);
}
__forceinline__ void stmatrix_x4(void* row, const uint32_t (&registers)[4]) {
  emulator_stmatrix(registers, row, 4, false);
}
__forceinline__ void stmatrix_x1_trans(void* row, const uint32_t (&registers)[1]) {
  emulator_stmatrix(registers, row, 1, true);
}
__forceinline__ void stmatrix_x2_trans(void* row, const uint32_t (&registers)[2]) {
  emulator_stmatrix(registers, row, 2, true);
}
__forceinline__ void stmatrix_x4_trans(void* row, const uint32_t (&registers)[4]) {
  emulator_stmatrix(registers, row, 4, true);
}

template <class T>
constexpr bool emulator_is_bf16 = false;
template <>
constexpr bool emulator_is_bf16<bf16> = true;

// d += a · b: a is 16 × 16, b is 16 × 8 (T in bf16, half), d is 16 × 8 in float; fragments of this lane.
template <class T>
__forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator_mma(d, a, b, 1, emulator_is_bf16<T>);
}
// d[first + n] += a · b[n]: one 16 × 16 tile of a against kTiles neighbouring 16 × 8 tiles of b.
template <class T, int kTilesN, int kTiles>
__forceinline__ void mma_row(float (&d)[kTilesN][4], const uint32_t (&a)[4], const uint32_t (&b)[kTiles][2],
                             int first = 0) {
  emulator_mma(&d[first][0], a, &b[0][0], kTiles, emulator_is_bf16<T>);
}
