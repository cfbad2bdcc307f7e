// What CuTe says of the instructions that kernels use, a line each: "FILE | KEY | KEY ... | VALUE", values in CuTe's
// notation. write_layouts.py compiles this and makes JSON of it.
#define CUTE_SM90_EXTENDED_MMA_SHAPES_ENABLED
#include <cutlass/version.h>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/copy_traits_sm90.hpp>
#include <cute/atom/mma_atom.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>

#include <cstdarg>
#include <cstdio>
#include <utility>

using namespace cute;
using SM90::GMMA::Major;
using T = bfloat16_t;

void begin(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::printf(" | ");
}
template <class Value>
void value(const Value& printable) {
  print(printable);
  std::printf("\n");
}
template <class Function, class Offset, class Inner>
void value(const ComposedLayout<Function, Offset, Inner>& layout) {
  print(layout.layout_a());
  std::printf(" o ");
  value(layout.layout_b());
}

template <class Operation>
void show_mma(const char* key, const char* trait) {
  using Traits = MMA_Traits<Operation>;
  begin("mma | %s | traits", key), std::printf("%s\n", trait);
  begin("mma | %s | a", key), value(typename Traits::ALayout{});
  begin("mma | %s | b", key), value(typename Traits::BLayout{});
  begin("mma | %s | c", key), value(typename Traits::CLayout{});
}

template <class Operation>
void show_move(const char* key, const char* trait) {
  using Traits = Copy_Traits<Operation>;
  begin("matrix_moves | %s | traits", key), std::printf("%s\n", trait);
  begin("matrix_moves | %s | source", key), value(typename Traits::SrcLayout{});
  begin("matrix_moves | %s | destination", key), value(typename Traits::DstLayout{});
}

// Where each 16 bytes of 8 rows of 128 go.
template <int kBits>
void show_swizzle(const char* key) {
  begin("swizzle | %s | function", key), value(Swizzle<kBits, 4, 3>{});
  begin("swizzle | %s | of_16_bytes", key);
  for (int address = 0; address < 1024; address += 16)
    std::printf(address == 0 ? "(%d" : ",%d", static_cast<int>(Swizzle<kBits, 4, 3>{}(address)));
  std::printf(")\n");
}

template <int N>
void show_wgmma_shape() {
  using Operation = decltype(SM90::GMMA::ss_op_selector<T, T, float, Shape<_64, Int<N>, _16>>());
  using Traits = MMA_Traits<Operation>;
  static_assert(size<1>(typename Traits::Shape_MNK{}) == N);
  begin("wgmma | shared b | %d", N), value(typename Traits::BLayout{});
  begin("wgmma | accumulator | %d", N), value(typename Traits::CLayout{});
}
template <int... kEighths>
void show_wgmma_shapes(std::integer_sequence<int, kEighths...>) {
  (show_wgmma_shape<8 * (kEighths + 1)>(), ...);
}

template <class Operation, class Atom, class Rows>
void show_tile(const char* major, const char* swizzle, Atom, Rows rows, bool is_a) {
  const auto layout = tile_to_shape(Atom{}, make_shape(rows, _64{}));
  const auto tile = make_tensor(make_smem_ptr(static_cast<T*>(nullptr)), layout);
  const auto mma = make_tiled_mma(Operation{}).get_thread_slice(0);
  begin("wgmma | tile | %s | %s | %d | layout", major, swizzle, static_cast<int>(rows)), value(layout);
  // The descriptors that begin at a tile of address 0, for each 16 of k.
  const auto show = [&](const auto& fragment) {
    begin("wgmma | tile | %s | %s | %d | descriptors", major, swizzle, static_cast<int>(rows));
    for (int k = 0; k < size<2>(fragment); ++k)
      std::printf(k == 0 ? "(%llu" : ",%llu", static_cast<unsigned long long>(fragment(0, 0, k).desc_));
    std::printf(")\n");
  };
  if (is_a)
    show(mma.make_fragment_A(mma.partition_A(tile)));
  else
    show(mma.make_fragment_B(mma.partition_B(tile)));
}

template <Major kMajor, class Atom>
void show_atom(const char* major, const char* swizzle, Atom atom) {
  begin("wgmma | atom | %s | %s", major, swizzle), value(atom);
  show_tile<SM90_64x64x16_F32BF16BF16_SS<kMajor, kMajor>>(major, swizzle, atom, _64{}, true);
  show_tile<SM90_64x128x16_F32BF16BF16_SS<kMajor, kMajor>>(major, swizzle, atom, _128{}, false);
  show_tile<SM90_64x256x16_F32BF16BF16_SS<kMajor, kMajor>>(major, swizzle, atom, _256{}, false);
}

int main() {
  begin("version"), std::printf("%d.%d.%d\n", CUTLASS_MAJOR, CUTLASS_MINOR, CUTLASS_PATCH);

  show_mma<SM80_16x8x16_F32BF16BF16F32_TN>("m16n8k16 bf16", "SM80_16x8x16_F32BF16BF16F32_TN");
  show_mma<SM80_16x8x16_F32F16F16F32_TN>("m16n8k16 f16", "SM80_16x8x16_F32F16F16F32_TN");

#define SHOW_MOVE(key, Operation) show_move<Operation>(key, #Operation)
  SHOW_MOVE("ldmatrix x1", SM75_U32x1_LDSM_N);
  SHOW_MOVE("ldmatrix x2", SM75_U32x2_LDSM_N);
  SHOW_MOVE("ldmatrix x4", SM75_U32x4_LDSM_N);
  SHOW_MOVE("ldmatrix x1 trans", SM75_U16x2_LDSM_T);
  SHOW_MOVE("ldmatrix x2 trans", SM75_U16x4_LDSM_T);
  SHOW_MOVE("ldmatrix x4 trans", SM75_U16x8_LDSM_T);
  SHOW_MOVE("stmatrix x1", SM90_U32x1_STSM_N);
  SHOW_MOVE("stmatrix x2", SM90_U32x2_STSM_N);
  SHOW_MOVE("stmatrix x4", SM90_U32x4_STSM_N);
  SHOW_MOVE("stmatrix x1 trans", SM90_U16x2_STSM_T);
  SHOW_MOVE("stmatrix x2 trans", SM90_U16x4_STSM_T);
  SHOW_MOVE("stmatrix x4 trans", SM90_U16x8_STSM_T);

  show_swizzle<1>("32 bytes");
  show_swizzle<2>("64 bytes");
  show_swizzle<3>("128 bytes");

  using InRegisters = MMA_Traits<SM90_64x64x16_F32BF16BF16_RS<Major::K, Major::K>>;
  begin("wgmma | register a"), value(InRegisters::ALayout{});
  begin("wgmma | shared a"), value(MMA_Traits<SM90_64x64x16_F32BF16BF16_SS<Major::K, Major::K>>::ALayout{});
  show_wgmma_shapes(std::make_integer_sequence<int, 32>{});

  show_atom<Major::K>("K", "none", SM90::GMMA::Layout_K_INTER_Atom<T>{});
  show_atom<Major::K>("K", "32 bytes", SM90::GMMA::Layout_K_SW32_Atom<T>{});
  show_atom<Major::K>("K", "64 bytes", SM90::GMMA::Layout_K_SW64_Atom<T>{});
  show_atom<Major::K>("K", "128 bytes", SM90::GMMA::Layout_K_SW128_Atom<T>{});
  show_atom<Major::MN>("MN", "none", SM90::GMMA::Layout_MN_INTER_Atom<T>{});
  show_atom<Major::MN>("MN", "32 bytes", SM90::GMMA::Layout_MN_SW32_Atom<T>{});
  show_atom<Major::MN>("MN", "64 bytes", SM90::GMMA::Layout_MN_SW64_Atom<T>{});
  show_atom<Major::MN>("MN", "128 bytes", SM90::GMMA::Layout_MN_SW128_Atom<T>{});
}
