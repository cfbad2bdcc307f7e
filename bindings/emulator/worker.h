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
#include "pending.h"
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
  unsigned idle = 0;      // go on when nobody else can
  unsigned exited = 0;
  unsigned taking_part = 0;  // in the collective whose work is being done
  unsigned gatherings = 0;
  std::array<Gathering, kWarpSize> gathering{};
  bool is_complete(const Gathering& g) const { return ((g.arrived | exited) & g.mask) == g.mask; }
};

struct BlockBarrier {
  unsigned arrived = 0;
  const Fiber* first = nullptr;
};

struct NamedBarrier {
  unsigned arrived = 0, expected = 0;
  std::vector<unsigned> waiting;  // threads
  std::vector<std::uint32_t> clocks;
  std::array<unsigned, kMaxThreads / kWarpSize> lanes{};  // that arrived, of each warp
  std::array<std::uintptr_t, kMaxThreads / kWarpSize> pcs{};
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
  void yield(Fiber& self, std::uintptr_t pc);  // lets every other thread of the block go on first
  void named_barrier(Fiber& self, int id, int threads, bool wait, std::uintptr_t pc);
  void async_copy(Fiber& self, void* shared, const void* global, int bytes, int valid_bytes, std::uintptr_t pc);
  void async_wait(Fiber& self, unsigned groups_left, std::uintptr_t pc);
  // Checks, stamps and logs one access of a checked launch.
  void access(Fiber& self, Access kind, const void* address, std::size_t bytes, std::uintptr_t pc);
  void fence(Fiber& self, Scope scope);
  void grid_wait(Fiber& self);
  void grid_release(Fiber& self);
  // Runs an atomic operation of `bytes` at `address`: operate() returns whether it has written.
  template <class Operate>
  void atomic(Fiber& self, void* address, std::size_t bytes, bool reads, Scope scope, Order order, std::uintptr_t pc,
              Operate&& operate);
  // The kernel uses what the latest atomic operation at `address` returned: only now does it know what came before.
  void use_result(Fiber& self, const void* address);
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
  // The lanes that wait with this mask, self among them.
  Gathering& arrive(Fiber& self, Primitive primitive, unsigned mask, std::uintptr_t pc);
  [[noreturn]] void abandon();  // goes back to run()
  Fiber* next_or_deadlock(Fiber& self);
  void evaluate_log(Warp& warp);
  std::string place_of(std::uintptr_t address) const;
  Buffer* find_buffer(std::uintptr_t address);
  void check_shared(Fiber& self, Access kind, std::uintptr_t address, std::size_t bytes, std::uintptr_t pc);
  void check_global(Fiber& self, Access kind, std::uintptr_t address, std::size_t bytes, std::uintptr_t pc);
  // May launches that this one overlaps still use what this thread touches of the buffer?
  bool is_pending(const Fiber& self, const Buffer& buffer) const {
    return launch->pending != nullptr &&
           (!grid_waits_.is_known(self.thread) || launch->pending->outlasts_wait || buffer.has_constant);
  }
  // Stops the thread if they do.
  void check_pending(Fiber& self, const Buffer& buffer, Access kind, std::uintptr_t address, std::size_t bytes,
                     std::uintptr_t pc);
  [[noreturn]] void report_pending(Fiber& self, Access kind, const Earlier& earlier, std::uintptr_t address,
                                   bool is_written, bool is_constant, std::uintptr_t pc);
  [[noreturn]] void report_out_of_bounds(Fiber& self, Access kind, std::uintptr_t address, std::size_t bytes,
                                         std::uintptr_t pc);
  void note_unwritten(Fiber& self, const Conflict& conflict, std::size_t bytes, std::uintptr_t pc);
  [[noreturn]] void report_conflict(Fiber& self, Access kind, const Conflict& conflict, std::uintptr_t pc);
  void pass_on(Report report);
  static void note_result(Fiber& self, const AtomicResult& result);
  void log(Fiber& self, Access kind, std::uintptr_t address, std::size_t bytes, std::uintptr_t pc);
  Stamp stamp(const Fiber& self, std::uintptr_t pc) const;
  void reserve_shared(unsigned bytes);
  void complete_gatherings(Warp& warp);
  void require_all_lanes(Fiber& self, const Gathering& gathering);
  void require_whole_warps(Fiber& self, int id, const NamedBarrier& barrier);

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
  BlockOrder order_;
  AtomicVariables shared_variables_;
  AtomicTouch atomic_{};  // the atomic operation that runs
  GridWaits grid_waits_;
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
  Gathering* gathering = &arrive(self, primitive, mask & warp.existing, pc);
  if (!warp.is_complete(*gathering)) {
    wait(self);
    if (!self.completes) {
      self.primitive = Primitive::kNone;
      return;
    }
    self.completes = false;
    gathering = warp.gathering.data();
    while (gathering->mask != (mask & warp.existing)) ++gathering;
  }
  require_all_lanes(self, *gathering);
  warp.taking_part = gathering->arrived;
  const unsigned others = gathering->arrived & ~(1u << self.lane);
  *gathering = warp.gathering[--warp.gatherings];
  if (checked) evaluate_log(warp);
  ++counters.warp_collectives;
  work(warp);
  make_runnable(warp, others);
  reschedule(self);
  self.primitive = Primitive::kNone;
}

// The variable is held until its order is known: a later operation sees what this one publishes.
template <class Operate>
void Worker::atomic(Fiber& self, void* pointer, std::size_t bytes, bool reads, Scope scope, Order order,
                    std::uintptr_t pc, Operate&& operate) {
  self.primitive = Primitive::kAtomic;
  self.pc = pc;
  require_aligned(self, pointer, bytes, Primitive::kAtomic, pc);
  if (!checked) {
    operate();
  } else {
    atomic_ = {static_cast<std::uint8_t>(bytes), reads};
    access(self, scope == Scope::kBlock ? Access::kAtomicOfBlock : Access::kAtomic, pointer, bytes, pc);
    const bool is_release = order == Order::kRelease || order == Order::kAcquireRelease || order == Order::kSequential;
    const bool is_acquire = order == Order::kAcquire || order == Order::kAcquireRelease || order == Order::kSequential;
    const auto address = reinterpret_cast<std::uintptr_t>(pointer);
    const bool is_shared = address - reinterpret_cast<std::uintptr_t>(shared) < launch->shared_bytes;
    const Stamp me = stamp(self, pc);
    const std::lock_guard<std::mutex> lock(launch->variables.mutex);
    AtomicVariable& variable = (is_shared ? shared_variables_ : launch->variables).at(address);
    note_result(self, {address, &variable, variable.size(), scope, is_acquire, me, atomic_});
    if (operate()) order_.publish(variable, scope, is_release, me, clocks_);
    if (is_release) Clocks::tick(self);
  }
  self.primitive = Primitive::kNone;
  // A loop that waits for another thread of the block must let it run.
  constexpr unsigned kPatience = 16;
  if (++self.atomics % kPatience == 0) yield(self, pc);
}

}  // namespace emulator
