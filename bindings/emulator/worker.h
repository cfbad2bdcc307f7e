// One host thread of a launch. It runs blocks one after another, the threads of a block as fibers.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "clocks.h"
#include "fiber.h"
#include "launch.h"
#include "shadow.h"
#include "traffic.h"

namespace emulator {

// Lanes that wait for each other in one collective.
struct Gathering {
  unsigned mask = 0, arrived = 0;
  Primitive primitive = Primitive::kNone;
  std::uintptr_t pc = 0;
};

struct Warp {
  std::array<Fiber*, kWarpSize> lanes{};
  unsigned index = 0;
  unsigned existing = 0;  // lanes that the block has
  unsigned runnable = 0;  // ready, and not the running one
  unsigned log_full = 0;  // waiting for their access logs to be evaluated
  unsigned idle = 0;      // in __activemask or __nanosleep: go on when nobody else can
  unsigned gatherings = 0;
  std::array<Gathering, kWarpSize> gathering{};
};

struct BlockBarrier {
  unsigned arrived = 0;
  const Fiber* first = nullptr;
};

struct NamedBarrier {
  unsigned arrived = 0, expected = 0;
  std::vector<unsigned> waiting;  // threads
  std::vector<std::uint16_t> clocks;
};

class Worker {
 public:
  Worker() = default;
  ~Worker();
  Worker(const Worker&) = delete;

  void begin(Launch& launch);
  void run();  // until no block is left

  // --- called on a fiber ---
  // The lanes of `mask` meet. The last to arrive calls work(warp) and runs on; the others become runnable.
  template <class Work>
  void meet(Fiber& self, Primitive primitive, unsigned mask, void* operands, std::uintptr_t pc, Work&& work);
  void sync_block(Fiber& self, std::uintptr_t pc);
  // sync_block; the number of the block's threads that came with a true predicate.
  unsigned sync_block_vote(Fiber& self, bool predicate, std::uintptr_t pc);
  // Lanes that come to this call while no other thread of the block can go on.
  unsigned active_mask(Fiber& self, std::uintptr_t pc);
  void yield(Fiber& self, std::uintptr_t pc);
  void named_barrier(Fiber& self, int id, int threads, bool wait, std::uintptr_t pc);
  void async_copy(Fiber& self, void* shared, const void* global, int bytes, int valid_bytes, std::uintptr_t pc);
  void async_wait(Fiber& self, unsigned groups_left, std::uintptr_t pc);
  // Checks, stamps and logs one access of a checked launch.
  void access(Fiber& self, Access kind, const void* address, std::size_t bytes, std::uintptr_t pc);
  void fence(Fiber& self);  // __threadfence
  // An atomic operation at `address` publishes what a fence released, then takes over what others published there.
  void publish(Fiber& self, std::uintptr_t address);
  void take_over(Fiber& self, std::uintptr_t address);
  void require_aligned(Fiber& self, const void* address, std::size_t bytes, Primitive primitive, std::uintptr_t pc) {
    if ((reinterpret_cast<std::uintptr_t>(address) & (bytes - 1)) != 0)
      report_misaligned(self, address, bytes, primitive, pc);
  }
  // Matrix moves and the targets of asynchronous copies are shared memory, never anything else.
  void require_shared(Fiber& self, Access kind, const void* address, std::size_t bytes, std::uintptr_t pc) {
    const std::uintptr_t offset = reinterpret_cast<std::uintptr_t>(address) - reinterpret_cast<std::uintptr_t>(shared);
    if (offset >= launch->shared_bytes || bytes > launch->shared_bytes - offset)
      report_not_shared(self, kind, address, bytes, pc);
  }
  // An access between __shared__ variables, told when the warp's accesses are counted.
  [[noreturn]] void report_between_variables(Fiber& self, const MemoryAccess& access);
  void print(const char* text) { printed_ += text; }
  Clocks& clocks() { return clocks_; }
  Report describe(Fiber& self, const char* kind, std::uintptr_t pc) const;
  [[noreturn]] void fail(Report report);
  [[noreturn]] void exit(Fiber& self);

  // --- called by the signal handler ---
  bool owns(std::uintptr_t address) const { return arena_.contains(address); }
  // Notes the fault and returns the stack pointer with which run() continues.
  void* note_fault(int signal, std::uintptr_t address, std::uintptr_t pc, std::uintptr_t stack_pointer);

  Launch* launch = nullptr;
  Dim3 block_idx;
  unsigned char* shared = nullptr;  // __shared__ variables first, then the launch's dynamic shared memory
  Counters counters;
  bool checked = false;
  std::atomic<bool> running{false};

 private:
  void run_block(std::uint64_t block);
  void wait(Fiber& self);        // until someone makes self runnable
  void reschedule(Fiber& self);  // lets another fiber go first, in a random schedule
  Fiber* pick();
  void release_idle();
  unsigned random_lanes();  // each with probability 1/2
  void make_runnable(Warp& warp, unsigned lanes);
  [[noreturn]] void report_deadlock(Fiber& self);
  [[noreturn]] void report_misaligned(Fiber& self, const void* address, std::size_t bytes, Primitive primitive,
                                      std::uintptr_t pc);
  [[noreturn]] void report_not_shared(Fiber& self, Access kind, const void* address, std::size_t bytes,
                                      std::uintptr_t pc);
  void report_fault();
  void note_unlike_calls(Fiber& self, const Fiber& other);
  // The lanes that wait with this mask, self among them. Complete when arrived == mask.
  Gathering& arrive(Fiber& self, Primitive primitive, unsigned mask, std::uintptr_t pc);
  [[noreturn]] void abandon();  // goes back to run()
  Fiber* next_or_deadlock(Fiber& self);
  void evaluate_log(Warp& warp);
  std::string place_of(std::uintptr_t address) const;
  Buffer* find_buffer(std::uintptr_t address);
  void check_shared(Fiber& self, Access kind, std::uintptr_t address, std::size_t bytes, std::uintptr_t pc);
  void check_global(Fiber& self, Access kind, std::uintptr_t address, std::size_t bytes, std::uintptr_t pc);
  [[noreturn]] void report_out_of_bounds(Fiber& self, Access kind, std::uintptr_t address, std::size_t bytes,
                                         std::uintptr_t pc);
  void note_unwritten(Fiber& self, const Conflict& conflict, std::size_t bytes, std::uintptr_t pc);
  [[noreturn]] void report_conflict(Fiber& self, Access kind, const Conflict& conflict, std::uintptr_t pc);
  void pass_on(Report report);
  void log(Fiber& self, Access kind, std::uintptr_t address, std::size_t bytes, std::uintptr_t pc);
  Stamp stamp(const Fiber& self, std::uintptr_t pc) const;
  void reserve_shared(unsigned bytes, unsigned granule);

  FiberArena arena_;
  void* main_context_ = nullptr;
  std::array<Warp, kMaxThreads / kWarpSize> warps_{};
  unsigned warp_count_ = 0, thread_count_ = 0, exited_ = 0;
  unsigned ready_warps_ = 0;  // warps with runnable lanes
  unsigned current_warp_ = 0;
  std::uint64_t random_ = 0;
  std::uint64_t block_ = 0;
  std::uint32_t blocks_run_ = 0;  // over all launches: tells blocks apart in the shadow of shared memory
  BlockBarrier barrier_;
  // Votes of the latest two voting barriers: one may begin before all threads have read the other's outcome.
  struct BlockVotes {
    unsigned barrier = 0, votes = 0;
  };
  std::array<BlockVotes, 2> block_votes_;
  std::array<NamedBarrier, 16> named_;
  std::string printed_;
  // A read of unwritten shared memory. It is kept back until the block ends: should somebody write there in the
  // meantime, unordered with the read, a race is the better word for it.
  std::unique_ptr<Report> unwritten_;

  unsigned char* shared_mapping_ = nullptr;
  std::size_t shared_capacity_ = 0;
  SharedShadow shared_shadow_;
  Clocks clocks_;
  TakenOver taken_;
  Traffic traffic_;
  Buffer* last_buffer_ = nullptr;

  struct Fault {
    int signal = 0;
    std::uintptr_t address = 0, pc = 0;
    Fiber* fiber = nullptr;
  } fault_;
};

template <class Work>
void Worker::meet(Fiber& self, Primitive primitive, unsigned mask, void* operands, std::uintptr_t pc, Work&& work) {
  Warp& warp = *self.warp;
  self.operands = operands;
  Gathering& gathering = arrive(self, primitive, mask & warp.existing, pc);
  if (gathering.arrived != gathering.mask) {
    wait(self);
  } else {
    const unsigned others = gathering.mask & ~(1u << self.lane);
    gathering = warp.gathering[--warp.gatherings];
    if (checked) evaluate_log(warp);
    ++counters.warp_collectives;
    work(warp);
    make_runnable(warp, others);
    reschedule(self);
  }
  self.primitive = Primitive::kNone;
}

}  // namespace emulator
