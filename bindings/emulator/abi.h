// What a kernel library and the runtime share. A kernel library is one .cu file compiled by the host compiler for one
// instance; it links against the extension module for the functions declared here.
#pragma once
#include <cstdarg>
#include <cstddef>
#include <cstdint>

#define EMULATOR_API extern "C" __attribute__((visibility("default")))

namespace emulator {

constexpr unsigned kAbi = 2;

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

// One kernel parameter as C++ declares it.
struct Parameter {
  enum Kind : int { kPointer, kSigned, kUnsigned, kFloat, kStruct } kind;
  bool is_const;     // of the pointee
  unsigned size;     // of the parameter itself
  const char* type;  // element type of a pointer, else the type: "bf16", "half", "float32", "int32", "struct", ...
};

// What NumPy calls an element of an array of T, for types that are no arithmetic ones; nullptr for others.
template <class T>
struct ElementName {
  static constexpr const char* kName = nullptr;
};

// What a kernel library exports as `emulator_kernel`.
struct Kernel {
  unsigned abi;
  unsigned parameter_count;
  const Parameter* parameters;
  void (*invoke)(const void* const* arguments);  // calls the kernel, for the current thread, with the values pointed to
};

enum class Shuffle : int { kIndex, kUp, kDown, kXor };
enum class Vote : int { kBallot, kAny, kAll };
enum class BlockVote : int { kCount, kAnd, kOr };
enum class Exchange : int { kMatchAny, kMatchAll, kReduce };
enum class Atomic : int {
  kAdd,
  kMin,
  kMax,
  kExchange,
  kCompareExchange,
  kAnd,
  kOr,
  kXor,
  kIncrement,  // old >= value ? 0 : old + 1
  kDecrement,  // old == 0 || old > value ? value : old - 1
  kLoad,
  kStore
};
enum class Number : int {
  kFloat,
  kInt,
  kUnsigned,
  kUnsigned64,
  kInt64,
  kDouble,
  kUnsigned16,
  kHalf,
  kBfloat16,
  kHalfPair,
  kBfloat16Pair
};
// Among whom an atomic operation or a fence is one, and what it orders besides.
enum class Scope : int { kBlock, kDevice, kSystem };
enum class Order : int { kRelaxed, kAcquire, kRelease, kAcquireRelease, kSequential };

}  // namespace emulator

EMULATOR_API __attribute__((const)) emulator::Dim3 emulator_thread_idx() noexcept;
EMULATOR_API __attribute__((const)) emulator::Dim3 emulator_block_idx() noexcept;
EMULATOR_API __attribute__((const)) emulator::Dim3 emulator_block_dim() noexcept;
EMULATOR_API __attribute__((const)) emulator::Dim3 emulator_grid_dim() noexcept;
EMULATOR_API __attribute__((const)) unsigned char* emulator_shared() noexcept;

EMULATOR_API void emulator_sync_block();
EMULATOR_API void emulator_fence(emulator::Scope scope);
EMULATOR_API void emulator_sync_warp(unsigned mask);
EMULATOR_API void emulator_grid_wait();     // griddepcontrol.wait
EMULATOR_API void emulator_grid_release();  // griddepcontrol.launch_dependents
EMULATOR_API void emulator_named_barrier(int id, int threads, bool wait);
EMULATOR_API std::uint32_t emulator_shuffle(emulator::Shuffle op, unsigned mask, std::uint32_t value, int argument,
                                            int width);
EMULATOR_API std::uint32_t emulator_vote(emulator::Vote op, unsigned mask, bool predicate);
EMULATOR_API std::uint64_t emulator_atomic(emulator::Atomic op, emulator::Number type, void* address,
                                           std::uint64_t value, std::uint64_t compare, emulator::Scope scope,
                                           emulator::Order order);
// `old`, which the latest atomic operation at `address` returned. Called where a checked kernel uses it: the compiler
// drops the call where it does not.
EMULATOR_API __attribute__((pure)) std::uint64_t emulator_atomic_result(std::uint64_t old,
                                                                        const void* address) noexcept;

// The lanes of `mask` meet; each gets the values of all, values[lane], and who they are: lanes that have exited are not
// among them.
EMULATOR_API unsigned emulator_exchange(emulator::Exchange what, unsigned mask, std::uint64_t value,
                                        std::uint64_t* values);
EMULATOR_API int emulator_sync_block_vote(emulator::BlockVote op, bool predicate);  // __syncthreads_count, _and, _or
EMULATOR_API unsigned emulator_active_mask();
EMULATOR_API void emulator_yield();           // lets every other thread of the block go on first
EMULATOR_API std::uint64_t emulator_clock();  // rises with each call of the thread
// Where a __shared__ variable lies, by what the linker knows of it: module 0 is `extern __shared__`.
EMULATOR_API __attribute__((const)) unsigned char* emulator_shared_variable(std::uint64_t module,
                                                                            std::uint64_t offset) noexcept;

EMULATOR_API void emulator_ldmatrix(std::uint32_t* registers, const void* row, int matrices, bool transpose);
EMULATOR_API void emulator_stmatrix(const std::uint32_t* registers, void* row, int matrices, bool transpose);
// d[n] += a · b[n] for n < tiles: d is float[tiles][4], a is 4 registers, b is [tiles][2] registers, all of this lane.
EMULATOR_API void emulator_mma(float* d, const std::uint32_t* a, const std::uint32_t* b, int tiles, bool is_bf16);

EMULATOR_API void emulator_async_copy(void* shared, const void* global, int bytes, int valid_bytes);
EMULATOR_API void emulator_async_commit();
EMULATOR_API void emulator_async_wait(int groups_left);

EMULATOR_API void emulator_load(void* registers, const void* address, int bytes);   // one aligned vector access
EMULATOR_API void emulator_store(void* address, const void* registers, int bytes);  // one aligned vector access

EMULATOR_API float emulator_exp2_approx(float x);
EMULATOR_API float emulator_tanh_approx(float x);
EMULATOR_API float emulator_rsqrt_approx(float x);
EMULATOR_API float emulator_reciprocal_approx(float x);
// What a function of CUDA's math library gives that is off by `ulps` units in the last place at worst.
EMULATOR_API float emulator_library_result(double exact, int ulps);
// The same for one that is off by `error` at worst.
EMULATOR_API float emulator_library_result_within(double exact, double error);

EMULATOR_API void emulator_print(const char* format, ...) __attribute__((format(printf, 1, 2)));
EMULATOR_API void emulator_trap() __attribute__((noreturn));
EMULATOR_API void emulator_assertion_failed(const char* expression) __attribute__((noreturn));
