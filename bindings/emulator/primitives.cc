// What a kernel library calls: every primitive of abi.h, on the fiber that calls it.
#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <type_traits>

#include "abi.h"
#include "atomics.h"
#include "matrix.h"
#include "text.h"
#include "worker.h"

// Where the kernel called the primitive: the address after the call.
#define CALL_SITE reinterpret_cast<std::uintptr_t>(__builtin_return_address(0))

namespace emulator {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;

struct ShuffleOperands {
  std::uint32_t value, result;
  int argument;
  unsigned width;
};

// The lane that shfl.sync reads from, by the PTX ISA's definition; the lane itself where that is out of its segment.
unsigned shuffle_source(Shuffle op, unsigned lane, int argument, unsigned width) {
  const unsigned segment = kWarpSize - width, b = static_cast<unsigned>(argument) & 31u;
  const unsigned first = lane & segment, last = first | (~segment & 31u);
  switch (op) {
    case Shuffle::kUp:
      return static_cast<int>(lane - b) >= static_cast<int>(first) ? lane - b : lane;
    case Shuffle::kDown:
      return lane + b <= last ? lane + b : lane;
    case Shuffle::kXor:
      return (lane ^ b) <= last ? lane ^ b : lane;
    default:
      return first | (b & ~segment & 31u);
  }
}

struct MatrixOperands {
  std::uint32_t* registers;
  unsigned char* row;
};

// A finite x other than 0, moved by `ulps` units in its last place away from 0.
float off_by(float x, int ulps) {
  std::int32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  constexpr std::int32_t kInfinity = 0x7f800000;  // what lies beyond the largest float
  const std::int32_t magnitude = std::clamp((bits & 0x7fffffff) + ulps, 0, kInfinity);
  std::memcpy(&x, &magnitude, sizeof(magnitude));
  return std::copysign(x, bits < 0 ? -1.0f : 1.0f);
}

float flush(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

}  // namespace
}  // namespace emulator

using namespace emulator;

Dim3 emulator_thread_idx() noexcept { return current_fiber()->thread_idx; }
Dim3 emulator_block_idx() noexcept { return current_fiber()->worker->block_idx; }
Dim3 emulator_block_dim() noexcept { return current_fiber()->worker->launch->block; }
Dim3 emulator_grid_dim() noexcept { return current_fiber()->worker->launch->grid; }
unsigned char* emulator_shared() noexcept {
  const Worker& worker = *current_fiber()->worker;
  return worker.shared + worker.launch->shared_layout->bytes();
}

void emulator_sync_block() {
  Fiber& self = *current_fiber();
  self.worker->sync_block(self, CALL_SITE);
}

void emulator_fence(Scope scope) {
  Fiber& self = *current_fiber();
  if (self.worker->checked) self.worker->fence(self, scope);
}

void emulator_sync_warp(unsigned mask) {
  Fiber& self = *current_fiber();
  Worker& worker = *self.worker;
  worker.meet(self, Primitive::kSyncWarp, mask, nullptr, CALL_SITE, [&](Warp& warp) {
    if (worker.checked) worker.clocks().join_warp(warp, warp.taking_part);
  });
}

void emulator_grid_wait() {
  Fiber& self = *current_fiber();
  if (self.worker->checked) self.worker->grid_wait(self);
}

void emulator_grid_release() {
  Fiber& self = *current_fiber();
  if (self.worker->checked) self.worker->grid_release(self);
}

void emulator_named_barrier(int id, int threads, bool wait) {
  Fiber& self = *current_fiber();
  self.worker->named_barrier(self, id, threads, wait, CALL_SITE);
}

std::uint32_t emulator_shuffle(Shuffle op, unsigned mask, std::uint32_t value, int argument, int width) {
  Fiber& self = *current_fiber();
  Worker& worker = *self.worker;
  const std::uintptr_t pc = CALL_SITE;
  const auto primitive = static_cast<Primitive>(static_cast<int>(Primitive::kShuffleIndex) + static_cast<int>(op));
  ShuffleOperands operands{value, value, argument, static_cast<unsigned>(width)};
  worker.meet(self, primitive, mask, &operands, pc, [&](Warp& warp) {
    for (unsigned rest = warp.taking_part; rest != 0; rest &= rest - 1) {
      const unsigned lane = static_cast<unsigned>(__builtin_ctz(rest));
      auto& reader = *static_cast<ShuffleOperands*>(warp.lanes[lane]->operands);
      const unsigned source = shuffle_source(op, lane, reader.argument, reader.width);
      if ((warp.taking_part >> source & 1u) != 0) {
        reader.result = static_cast<ShuffleOperands*>(warp.lanes[source]->operands)->value;
        continue;
      }
      Report report = worker.describe(*warp.lanes[lane], "divergence", pc);
      report.message = format("lane %u reads lane %u in %s with mask 0x%08x at {0}: that lane does not take part", lane,
                              source, name_of(primitive), mask);
      worker.fail(std::move(report));
    }
  });
  return operands.result;
}

std::uint32_t emulator_vote(Vote op, unsigned mask, bool predicate) {
  Fiber& self = *current_fiber();
  const auto primitive = static_cast<Primitive>(static_cast<int>(Primitive::kBallot) + static_cast<int>(op));
  std::uint32_t ballot = predicate;
  self.worker->meet(self, primitive, mask, &ballot, CALL_SITE, [&](Warp& warp) {
    const unsigned lanes = warp.taking_part;
    std::uint32_t votes = 0;
    for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      votes |= *static_cast<std::uint32_t*>(warp.lanes[lane]->operands) << lane;
    }
    const std::uint32_t result = op == Vote::kBallot ? votes : op == Vote::kAny ? votes != 0 : votes == lanes;
    for (unsigned rest = lanes; rest != 0; rest &= rest - 1)
      *static_cast<std::uint32_t*>(warp.lanes[__builtin_ctz(rest)]->operands) = result;
  });
  return ballot;
}

std::uint64_t emulator_atomic(Atomic op, Number type, void* address, std::uint64_t value, std::uint64_t compare,
                              Scope scope, Order order) {
  Fiber& self = *current_fiber();
  std::uint64_t old = 0;
  const bool reads = op != Atomic::kExchange && op != Atomic::kStore;
  self.worker->atomic(self, address, size_of(type), reads, scope, order, CALL_SITE, [&] {
    old = update_atomically(op, type, address, value, compare);
    return op != Atomic::kLoad && (op != Atomic::kCompareExchange || old == compare);
  });
  return old;
}

std::uint64_t emulator_atomic_result(std::uint64_t old, const void* address) noexcept {
  Fiber& self = *current_fiber();
  self.worker->use_result(self, address);
  return old;
}

namespace {

// Both directions of a matrix move. The lanes that give row addresses check their row before they meet.
template <class Move>
void move_matrices(Fiber& self, Primitive primitive, Access kind, std::uint32_t* registers, unsigned char* row,
                   int matrices, std::uintptr_t pc, Move&& move) {
  constexpr std::size_t kRowBytes = 16;
  self.primitive = primitive;
  self.pc = pc;
  if (self.lane < static_cast<unsigned>(matrices) * 8) {
    self.worker->require_aligned(self, row, kRowBytes, primitive, pc);
    self.worker->require_shared(self, kind, row, kRowBytes, pc);
    if (self.worker->checked) self.worker->access(self, kind, row, kRowBytes, pc);
  }
  MatrixOperands operands{registers, row};
  self.worker->meet(self, primitive, kAllLanes, &operands, pc, [&](Warp& warp) {
    MatrixOperands* lanes[kWarpSize];
    for (unsigned lane = 0; lane < kWarpSize; ++lane)
      lanes[lane] = static_cast<MatrixOperands*>(warp.lanes[lane]->operands);
    move(lanes);
  });
}

void require_full_warp(Fiber& self, Primitive primitive, std::uintptr_t pc) {
  if (self.warp->existing == kAllLanes) return;
  self.primitive = primitive;
  Report report = self.worker->describe(self, "divergence", pc);
  report.message = format("%s at {0} needs a warp of 32 threads, this one has %d", name_of(primitive),
                          __builtin_popcount(self.warp->existing));
  self.worker->fail(std::move(report));
}

}  // namespace

void emulator_ldmatrix(std::uint32_t* registers, const void* row, int matrices, bool transpose) {
  Fiber& self = *current_fiber();
  const std::uintptr_t pc = CALL_SITE;
  const Primitive primitive = transpose ? Primitive::kLdmatrixTrans : Primitive::kLdmatrix;
  require_full_warp(self, primitive, pc);
  auto* source = static_cast<unsigned char*>(const_cast<void*>(row));
  move_matrices(self, primitive, Access::kRead, registers, source, matrices, pc,
                [&](MatrixOperands* const(&lanes)[kWarpSize]) {
                  for (int matrix = 0; matrix < matrices; ++matrix) {
                    const unsigned char* rows[8];
                    for (int i = 0; i < 8; ++i) rows[i] = lanes[8 * matrix + i]->row;
                    for (int lane = 0; lane < 32; ++lane) {
                      const int major = lane / 4, minor = 2 * (lane % 4);
                      std::uint16_t pair[2];
                      for (int half = 0; half < 2; ++half) {
                        const int from_row = transpose ? minor + half : major;
                        const int from_column = transpose ? major : minor + half;
                        std::memcpy(pair + half, rows[from_row] + 2 * from_column, 2);
                      }
                      std::memcpy(lanes[lane]->registers + matrix, pair, 4);
                    }
                  }
                });
}

void emulator_stmatrix(const std::uint32_t* registers, void* row, int matrices, bool transpose) {
  Fiber& self = *current_fiber();
  const std::uintptr_t pc = CALL_SITE;
  const Primitive primitive = transpose ? Primitive::kStmatrixTrans : Primitive::kStmatrix;
  require_full_warp(self, primitive, pc);
  move_matrices(self, primitive, Access::kWrite, const_cast<std::uint32_t*>(registers),
                static_cast<unsigned char*>(row), matrices, pc, [&](MatrixOperands* const(&lanes)[kWarpSize]) {
                  for (int matrix = 0; matrix < matrices; ++matrix)
                    for (int lane = 0; lane < 32; ++lane) {
                      const int major = lane / 4, minor = 2 * (lane % 4);
                      std::uint16_t pair[2];
                      std::memcpy(pair, lanes[lane]->registers + matrix, 4);
                      for (int half = 0; half < 2; ++half) {
                        const int to_row = transpose ? minor + half : major,
                                  to_column = transpose ? major : minor + half;
                        std::memcpy(lanes[8 * matrix + to_row]->row + 2 * to_column, pair + half, 2);
                      }
                    }
                });
}

void emulator_mma(float* d, const std::uint32_t* a, const std::uint32_t* b, int tiles, bool is_bf16) {
  Fiber& self = *current_fiber();
  Worker& worker = *self.worker;
  const std::uintptr_t pc = CALL_SITE;
  require_full_warp(self, Primitive::kMma, pc);
  MmaOperands operands{d, a, b, tiles, is_bf16};
  worker.meet(self, Primitive::kMma, kAllLanes, &operands, pc, [&](Warp& warp) {
    MmaOperands* lanes[kWarpSize];
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      lanes[lane] = static_cast<MmaOperands*>(warp.lanes[lane]->operands);
      if (lanes[lane]->tiles == tiles && lanes[lane]->is_bf16 == is_bf16) continue;
      Report report = worker.describe(self, "divergence", pc);
      report.message = format("lanes %u and %u run different forms of mma at {0}", lane, self.lane);
      worker.fail(std::move(report));
    }
    mma(lanes, worker.launch->mma);
    worker.counters.mma += static_cast<std::uint64_t>(tiles);
  });
}

void emulator_async_copy(void* shared, const void* global, int bytes, int valid_bytes) {
  Fiber& self = *current_fiber();
  self.worker->async_copy(self, shared, global, bytes, valid_bytes, CALL_SITE);
}

void emulator_async_commit() { ++current_fiber()->open_group; }

void emulator_async_wait(int groups_left) {
  Fiber& self = *current_fiber();
  self.worker->async_wait(self, static_cast<unsigned>(groups_left), CALL_SITE);
}

void emulator_load(void* registers, const void* address, int bytes) {
  Fiber& self = *current_fiber();
  const std::uintptr_t pc = CALL_SITE;
  const auto size = static_cast<std::size_t>(bytes);
  self.worker->require_aligned(self, address, size, Primitive::kLoad, pc);
  if (!on_own_stack(address)) self.worker->access(self, Access::kRead, address, size, pc);
  std::memcpy(registers, address, size);
}

void emulator_store(void* address, const void* registers, int bytes) {
  Fiber& self = *current_fiber();
  const std::uintptr_t pc = CALL_SITE;
  const auto size = static_cast<std::size_t>(bytes);
  self.worker->require_aligned(self, address, size, Primitive::kStore, pc);
  if (!on_own_stack(address)) self.worker->access(self, Access::kWrite, address, size, pc);
  std::memcpy(address, registers, size);
}

float emulator_exp2_approx(float x) {
  const float argument = flush(x);
  const float exact = flush(static_cast<float>(std::exp2(static_cast<double>(argument))));
  if (argument == 0.0f || exact == 0.0f || !std::isfinite(exact)) return exact;
  return flush(off_by(exact, current_fiber()->worker->launch->exp2_ulps));
}

float emulator_tanh_approx(float x) {
  if (x == 0.0f || std::isinf(x) || std::fpclassify(x) == FP_SUBNORMAL)
    return std::isinf(x) ? std::copysign(1.0f, x) : x;
  const float y = static_cast<float>(std::tanh(static_cast<double>(x))) * current_fiber()->worker->launch->tanh_factor;
  return y > 1.0f ? 1.0f : y < -1.0f ? -1.0f : y;
}

float emulator_rsqrt_approx(float x) {
  const double argument = flush(x);
  if (argument == 0.0 || std::isinf(x)) return static_cast<float>(1.0 / std::sqrt(argument));
  return static_cast<float>(1.0 / std::sqrt(argument) * current_fiber()->worker->launch->rsqrt_factor);
}

float emulator_reciprocal_approx(float x) {
  const double exact = 1.0 / flush(x);
  return flush(static_cast<float>(exact * current_fiber()->worker->launch->reciprocal_factor));
}

float emulator_library_result(double exact, int ulps) {
  const float rounded = static_cast<float>(exact);
  if (rounded == exact || !std::isfinite(rounded)) return rounded;
  return off_by(rounded, current_fiber()->worker->launch->library_sign * ulps);
}

float emulator_library_result_within(double exact, double error) {
  const float rounded = static_cast<float>(exact);
  if (!std::isfinite(rounded)) return rounded;
  return static_cast<float>(exact + current_fiber()->worker->launch->library_sign * error);
}

void emulator_print(const char* pattern, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(text, sizeof(text), pattern, arguments);
  va_end(arguments);
  current_fiber()->worker->print(text);
}

void emulator_trap() {
  Fiber& self = *current_fiber();
  Report report = self.worker->describe(self, "trap", CALL_SITE);
  report.message = format("thread %u calls __trap at {0}", self.thread);
  self.worker->fail(std::move(report));
}

void emulator_assertion_failed(const char* expression) {
  Fiber& self = *current_fiber();
  Report report = self.worker->describe(self, "assertion", CALL_SITE);
  std::string words = expression;  // a report's text has places in braces
  for (const char* brace : {"{", "}"})
    for (std::size_t i = words.find(brace); i != std::string::npos; i = words.find(brace, i + 2))
      words.insert(i, brace);
  report.message = format("thread %u fails assert(%s) at {0}", self.thread, words.c_str());
  self.worker->fail(std::move(report));
}
