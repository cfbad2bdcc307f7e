// A fiber: one CUDA thread, running on a stack of its own inside a host thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "abi.h"
#include "order.h"

namespace emulator {

constexpr unsigned kWarpSize = 32;
constexpr unsigned kMaxThreads = 1024;
// Size and alignment of a fiber's region: a guard page, the stack, the Fiber. Any address in it leads to the Fiber.
constexpr std::size_t kRegionBytes = 64 * 1024;
constexpr std::size_t kGuardBytes = 4096;

class Worker;
struct Warp;

enum class Primitive : std::uint8_t {
  kNone,
  kSyncThreads,
  kNamedBarrier,
  kSyncWarp,
  kShuffleIndex,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kBallot,
  kAny,
  kAll,
  kLdmatrix,
  kLdmatrixTrans,
  kStmatrix,
  kStmatrixTrans,
  kMma,
  kAsyncCopy,
  kAsyncWait,
  kAtomic,
  kLoad,
  kStore,
  kLogFull,
  kYield,
  kMatchAny,
  kMatchAll,
  kReduce,
  kActiveMask,
};
const char* name_of(Primitive primitive);

struct AsyncCopy {
  unsigned char* shared;
  const unsigned char* global;
  std::uint8_t bytes, valid_bytes;
  std::uint32_t group;
  std::uintptr_t pc;
};

struct MemoryAccess {
  std::uintptr_t address;
  std::uint32_t pc;     // relative to the kernel library
  std::uint16_t bytes;  // 0: the lane asks for nothing at this instruction
  bool is_write;
};

// An atomic operation whose result the kernel has not used yet.
struct AtomicResult {
  std::uintptr_t address;
  const AtomicVariable* variable;
  std::size_t seen;
  Scope scope;
  bool is_acquire;
  Stamp when;
  AtomicTouch touch;
};

struct Fiber {
  Dim3 thread_idx;
  unsigned thread = 0, lane = 0;
  Worker* worker = nullptr;
  Warp* warp = nullptr;
  void* stack_pointer = nullptr;
  bool exited = false;

  // What the fiber waits for, or is inside of: the primitive, its mask or barrier id, where the kernel called it.
  Primitive primitive = Primitive::kNone;
  unsigned key = 0;
  std::uintptr_t pc = 0;
  void* operands = nullptr;
  bool completes = false;  // the lanes that it waits for have exited: it does the work of the collective

  unsigned block_votes = 0;       // how many of the block's voting barriers this thread has reached
  std::uint64_t clock_reads = 0;  // calls of clock64()

  std::vector<AsyncCopy> copies;
  std::size_t copies_done = 0;
  std::uint32_t open_group = 0;

  std::uint32_t clock = 1;  // counts this thread's warp syncs, named barriers and fences in the block
  unsigned atomics = 0;     // how many it has run
  std::vector<AtomicResult> results;
  std::vector<MemoryAccess> log;
};

// Regions lie at multiples of 64 KiB, so equal offsets in them would compete for the same cache sets; each region's
// Fiber, and the stack that grows down from it, is shifted by the region's number.
inline std::uintptr_t fiber_offset(std::uintptr_t region) {
  constexpr std::size_t kStagger = 192, kSteps = 32;
  constexpr std::size_t kTop = (kRegionBytes - sizeof(Fiber) - kStagger * kSteps) & ~std::size_t{63};
  return kTop + ((region / kRegionBytes) % kSteps) * kStagger;
}
inline std::uintptr_t region_of(std::uintptr_t address) { return address & ~(kRegionBytes - 1); }
inline Fiber* fiber_at(std::uintptr_t address) {
  const std::uintptr_t region = region_of(address);
  return reinterpret_cast<Fiber*>(region + fiber_offset(region));
}
// The fiber that runs this code. Only called on a fiber's stack.
__attribute__((always_inline)) inline Fiber* current_fiber() {
  std::uintptr_t stack_pointer;
  asm("movq %%rsp, %0" : "=r"(stack_pointer));
  return fiber_at(stack_pointer);
}

__attribute__((always_inline)) inline bool on_own_stack(const void* address) {
  std::uintptr_t stack_pointer;
  asm("movq %%rsp, %0" : "=r"(stack_pointer));
  return region_of(stack_pointer ^ reinterpret_cast<std::uintptr_t>(address)) == 0;
}

// The regions of one worker's fibers, reused from block to block and launch to launch.
class FiberArena {
 public:
  FiberArena() = default;
  FiberArena(const FiberArena&) = delete;
  ~FiberArena();
  void reserve(unsigned count);
  Fiber& operator[](unsigned index) { return *fibers_[index]; }
  bool contains(std::uintptr_t address) const { return address - begin_ < fibers_.size() * kRegionBytes; }
  // Makes `fiber` start in `entry` at the next switch to it.
  static void prepare(Fiber& fiber, void (*entry)());

 private:
  void release();
  std::vector<Fiber*> fibers_;
  std::uintptr_t begin_ = 0;
  void* mapping_ = nullptr;
  std::size_t mapped_bytes_ = 0;
};

// Saves the running context's stack pointer to *save and continues the context whose stack pointer is `load`.
extern "C" void emulator_switch(void** save, void* load);
// Continues the context whose stack pointer is `load`, forgetting the running one.
extern "C" void emulator_resume(void* load);

}  // namespace emulator
