#include "worker.h"

#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>

#include "text.h"

namespace emulator {
namespace {

constexpr unsigned char kPoisonByte = 0xff;  // NaN in every floating-point type
constexpr std::size_t kPage = 4096;

// A kernel function's caller-visible entry: runs the kernel once and never returns.
void fiber_main() {
  Fiber& self = *current_fiber();
  self.worker->launch->kernel->invoke(self.worker->launch->arguments);
  self.worker->exit(self);
}

std::uint64_t next_random(std::uint64_t& state) {  // xorshift64*
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return state * 2685821657736338717ull;
}

unsigned random_bit(unsigned mask, std::uint64_t& state) {
  unsigned skip = static_cast<unsigned>((next_random(state) >> 32) % __builtin_popcount(mask));
  while (skip-- != 0) mask &= mask - 1;
  return __builtin_ctz(mask);
}

// Must the threads of this collective come from one place in the code?
bool needs_one_call_site(Primitive primitive) {
  return primitive >= Primitive::kLdmatrix && primitive <= Primitive::kMma;
}

}  // namespace

Worker::~Worker() {
  if (shared_mapping_ != nullptr) munmap(shared_mapping_, shared_capacity_ + 2 * kPage);
}

void Worker::reserve_shared(unsigned bytes) {
  const std::size_t capacity = std::max((bytes + kPage - 1) / kPage * kPage, shared_capacity_);
  if (capacity == shared_capacity_ && shared_mapping_ != nullptr) return;
  if (shared_mapping_ != nullptr) munmap(shared_mapping_, shared_capacity_ + 2 * kPage);
  void* memory = mmap(nullptr, capacity + 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    shared_mapping_ = nullptr;
    throw std::bad_alloc();
  }
  shared_mapping_ = static_cast<unsigned char*>(memory);
  shared_capacity_ = capacity;
  mprotect(shared_mapping_, kPage, PROT_NONE);
  mprotect(shared_mapping_ + kPage + capacity, kPage, PROT_NONE);
  shared = shared_mapping_ + kPage;
  shared_shadow_.map(reinterpret_cast<std::uintptr_t>(shared), capacity);
}

void Worker::begin(Launch& next) {
  launch = &next;
  checked = next.checked;
  counters = Counters();
  last_buffer_ = nullptr;
  thread_count_ = next.thread_count();
  warp_count_ = (thread_count_ + kWarpSize - 1) / kWarpSize;
  arena_.reserve(thread_count_);
  reserve_shared(next.shared_bytes);
  const auto base = reinterpret_cast<std::uintptr_t>(shared);
  traffic_.set_shared(base, base + next.shared_bytes, next.shared_layout);
  for (unsigned w = 0; w < warp_count_; ++w) {
    warps_[w].index = w;
    warps_[w].lanes.fill(nullptr);
    warps_[w].existing = 0;
  }
  for (unsigned thread = 0; thread < thread_count_; ++thread) {
    Fiber& fiber = arena_[thread];
    fiber.thread = thread;
    fiber.lane = thread % kWarpSize;
    fiber.worker = this;
    fiber.warp = &warps_[thread / kWarpSize];
    fiber.thread_idx = {thread % next.block.x, thread / next.block.x % next.block.y,
                        thread / (next.block.x * next.block.y)};
    fiber.warp->lanes[fiber.lane] = &fiber;
    fiber.warp->existing |= 1u << fiber.lane;
  }
}

void Worker::run() {
  while (!launch->stop.load(std::memory_order_relaxed)) {
    const std::uint64_t n = launch->next_block.fetch_add(1, std::memory_order_relaxed);
    if (n >= launch->block_count()) break;
    run_block(launch->block_at(n));
  }
  const std::lock_guard<std::mutex> lock(launch->mutex);
  launch->counters.add(counters);
}

void Worker::run_block(std::uint64_t block) {
  block_ = block;
  ++blocks_run_;
  block_idx = {static_cast<unsigned>(block % launch->grid.x),
               static_cast<unsigned>(block / launch->grid.x % launch->grid.y),
               static_cast<unsigned>(block / (std::uint64_t{launch->grid.x} * launch->grid.y))};
  random_ = (launch->seed * 0x9e3779b97f4a7c15ull) ^ ((block + 1) * 0xbf58476d1ce4e5b9ull);
  if (random_ == 0) random_ = 1;
  exited_ = 0;
  barrier_ = {};
  block_votes_ = {};
  for (NamedBarrier& barrier : named_)
    barrier.arrived = barrier.expected = 0, barrier.waiting.clear(), barrier.clocks.clear(), barrier.lanes.fill(0);
  if (checked) {
    clocks_.begin_block(thread_count_);
    order_.begin_block(static_cast<std::uint32_t>(block + 1), launch->variables.mutex);
    shared_variables_.clear();
  }
  if (launch->pending != nullptr) grid_waits_.begin_block(thread_count_);
  ready_warps_ = 0;
  for (unsigned w = 0; w < warp_count_; ++w) {
    Warp& warp = warps_[w];
    warp.runnable = warp.log_full = warp.idle = warp.exited = warp.gatherings = 0;
    make_runnable(warp, warp.existing);
  }
  current_warp_ = launch->schedule == Schedule::kReverse ? warp_count_ - 1 : 0;
  for (unsigned thread = 0; thread < thread_count_; ++thread) {
    Fiber& fiber = arena_[thread];
    fiber.exited = false;
    fiber.primitive = Primitive::kNone;
    fiber.block_votes = 0;
    fiber.clock_reads = 0;
    fiber.copies.clear();
    fiber.copies_done = 0;
    fiber.open_group = 0;
    fiber.clock = 1;
    fiber.completes = false;
    fiber.atomics = 0;
    fiber.results.clear();
    fiber.log.clear();
    FiberArena::prepare(fiber, fiber_main);
  }
  std::memset(shared, kPoisonByte, launch->shared_bytes);
  fault_ = {};
  unwritten_ = nullptr;
  running.store(true, std::memory_order_relaxed);
  emulator_switch(&main_context_, pick()->stack_pointer);
  running.store(false, std::memory_order_relaxed);
  if (fault_.signal != 0)
    report_fault();
  else if (unwritten_ != nullptr)
    launch->fail(std::move(*unwritten_));
  if (launch->pending != nullptr) grid_waits_.end_block(*launch->pending);
  counters.blocks += 1;
  counters.threads += thread_count_;
  if (!printed_.empty()) {
    const std::lock_guard<std::mutex> lock(launch->mutex);
    launch->printed[block_] += printed_;
    printed_.clear();
  }
}

// --- scheduling ---

void Worker::make_runnable(Warp& warp, unsigned lanes) {
  warp.runnable |= lanes;
  if (warp.runnable != 0) ready_warps_ |= 1u << warp.index;
}

// Stays in one warp as long as it can: its stacks are in the cache.
Fiber* Worker::pick() {
  if (ready_warps_ == 0) {
    for (unsigned w = 0; w < warp_count_; ++w) {
      Warp& warp = warps_[w];
      if (warp.log_full == 0) continue;
      evaluate_log(warp);
      make_runnable(warp, warp.log_full);
      warp.log_full = 0;
    }
    if (ready_warps_ == 0) release_idle();
    if (ready_warps_ == 0) return nullptr;
  }
  unsigned lane;
  switch (launch->schedule) {
    case Schedule::kForward:
      if (warps_[current_warp_].runnable == 0) current_warp_ = __builtin_ctz(ready_warps_);
      lane = __builtin_ctz(warps_[current_warp_].runnable);
      break;
    case Schedule::kReverse:
      if (warps_[current_warp_].runnable == 0) current_warp_ = 31 - __builtin_clz(ready_warps_);
      lane = 31 - __builtin_clz(warps_[current_warp_].runnable);
      break;
    default:
      current_warp_ = random_bit(ready_warps_, random_);
      lane = random_bit(warps_[current_warp_].runnable, random_);
  }
  Warp& warp = warps_[current_warp_];
  warp.runnable &= ~(1u << lane);
  if (warp.runnable == 0) ready_warps_ &= ~(1u << current_warp_);
  return warp.lanes[lane];
}

unsigned Worker::random_lanes() { return static_cast<unsigned>(next_random(random_) >> 32); }

void Worker::abandon() {
  emulator_resume(main_context_);
  __builtin_unreachable();
}

Fiber* Worker::next_or_deadlock(Fiber& self) {
  if (launch->stop.load(std::memory_order_relaxed)) abandon();
  Fiber* next = pick();
  if (next == nullptr) report_deadlock(self);
  return next;
}

void Worker::wait(Fiber& self) {
  Fiber* next = next_or_deadlock(self);
  if (next != &self) emulator_switch(&self.stack_pointer, next->stack_pointer);
}

void Worker::yield(Fiber& self, std::uintptr_t pc) {
  self.primitive = Primitive::kYield;
  self.pc = pc;
  self.warp->idle |= 1u << self.lane;
  wait(self);
  self.primitive = Primitive::kNone;
}

void Worker::reschedule(Fiber& self) {
  if (launch->schedule != Schedule::kRandom) return;
  make_runnable(*self.warp, 1u << self.lane);
  wait(self);
}

void Worker::exit(Fiber& self) {
  self.exited = true;
  self.primitive = Primitive::kNone;
  self.warp->exited |= 1u << self.lane;
  complete_gatherings(*self.warp);
  if (++exited_ == thread_count_) {
    if (checked)
      for (unsigned w = 0; w < warp_count_; ++w) evaluate_log(warps_[w]);
    abandon();
  }
  emulator_resume(next_or_deadlock(self)->stack_pointer);
  __builtin_unreachable();
}

// --- barriers ---

Gathering& Worker::arrive(Fiber& self, Primitive primitive, unsigned mask, std::uintptr_t pc) {
  Warp& warp = *self.warp;
  self.primitive = primitive;
  self.key = mask;
  self.pc = pc;
  if ((mask >> self.lane & 1u) == 0) {
    Report report = describe(self, "divergence", pc);
    report.message =
        format("lane %u calls %s with mask 0x%08x, which leaves it out, at {0}", self.lane, name_of(primitive), mask);
    fail(std::move(report));
  }
  unsigned i = 0;
  while (i < warp.gatherings && warp.gathering[i].mask != mask) ++i;
  Gathering& gathering = warp.gathering[i];
  if (i == warp.gatherings) {
    ++warp.gatherings;
    gathering = {mask, 0, primitive, pc};
  } else if (gathering.primitive != primitive) {
    Report report = describe(self, "divergence", pc);
    report.message = format("lane %u calls %s at {0} while lane %u of its warp, with the same mask, calls %s at {1}",
                            self.lane, name_of(primitive), static_cast<unsigned>(__builtin_ctz(gathering.arrived)),
                            name_of(gathering.primitive));
    report.places.push_back(gathering.pc);
    report.threads.push_back(warp.lanes[__builtin_ctz(gathering.arrived)]->thread);
    fail(std::move(report));
  } else if (gathering.pc != pc && needs_one_call_site(primitive)) {
    note_unlike_calls(self, *warp.lanes[__builtin_ctz(gathering.arrived)]);
  }
  gathering.arrived |= 1u << self.lane;
  return gathering;
}

// Lanes that have exited are waited for no longer. One of those that wait does the work.
void Worker::complete_gatherings(Warp& warp) {
  for (unsigned i = 0; i < warp.gatherings; ++i) {
    if (!warp.is_complete(warp.gathering[i])) continue;
    Fiber& fiber = *warp.lanes[__builtin_ctz(warp.gathering[i].arrived)];
    fiber.completes = true;
    make_runnable(warp, 1u << fiber.lane);
  }
}

void Worker::require_all_lanes(Fiber& self, const Gathering& gathering) {
  if (!needs_one_call_site(gathering.primitive) || gathering.arrived == ~0u) return;
  Report report = describe(self, "divergence", gathering.pc);
  report.message = format("%s at {0} needs all lanes of the warp, of which lanes 0x%08x have exited",
                          name_of(gathering.primitive), ~gathering.arrived);
  fail(std::move(report));
}

void Worker::sync_block(Fiber& self, std::uintptr_t pc) {
  self.primitive = Primitive::kSyncThreads;
  self.pc = pc;
  if (barrier_.arrived++ == 0)
    barrier_.first = &self;
  else if (barrier_.first->pc != pc)
    note_unlike_calls(self, *barrier_.first);
  if (barrier_.arrived < thread_count_) {
    wait(self);
  } else {
    barrier_.arrived = 0;
    ++counters.barriers;
    if (checked) {
      clocks_.advance_epoch();
      order_.end_epoch();
      for (unsigned w = 0; w < warp_count_; ++w) evaluate_log(warps_[w]);
    }
    for (unsigned w = 0; w < warp_count_; ++w)
      make_runnable(warps_[w], warps_[w].existing & (self.warp == &warps_[w] ? ~(1u << self.lane) : ~0u));
    reschedule(self);
  }
  self.primitive = Primitive::kNone;
}

void Worker::named_barrier(Fiber& self, int id, int threads, bool wait_here, std::uintptr_t pc) {
  self.primitive = Primitive::kNamedBarrier;
  self.key = static_cast<unsigned>(id);
  self.pc = pc;
  NamedBarrier& barrier = named_[id & 15];
  const auto expected = static_cast<unsigned>(threads);
  const bool is_legal = id >= 1 && id <= 15 && threads > 0 && expected % kWarpSize == 0 && expected <= thread_count_;
  if (!is_legal || (barrier.arrived != 0 && barrier.expected != expected)) {
    Report report = describe(self, "barrier", pc);
    report.message = is_legal ? format("named barrier %d is used for %u threads at {0} while others use it for %u", id,
                                       expected, barrier.expected)
                              : format(
                                    "named barrier %d for %d threads at {0}: ids are 1 to 15, threads a multiple of 32 "
                                    "up to the block's %u",
                                    id, threads, thread_count_);
    fail(std::move(report));
  }
  barrier.expected = expected;
  ++barrier.arrived;
  barrier.lanes[self.warp->index] |= 1u << self.lane;
  barrier.pcs[self.warp->index] = pc;
  if (checked) clocks_.release(self, barrier.clocks);
  if (wait_here) barrier.waiting.push_back(self.thread);
  if (barrier.arrived < expected) {
    if (wait_here) wait(self);
  } else {
    require_whole_warps(self, id, barrier);
    ++counters.barriers;
    for (const unsigned thread : barrier.waiting) {
      Fiber& fiber = arena_[thread];
      if (checked) clocks_.acquire(fiber, barrier.clocks);
      if (&fiber != &self) make_runnable(*fiber.warp, 1u << fiber.lane);
    }
    barrier.arrived = 0;
    barrier.waiting.clear();
    barrier.clocks.clear();
    barrier.lanes.fill(0);
    reschedule(self);
  }
  self.primitive = Primitive::kNone;
}

// bar.sync and bar.arrive are instructions of whole warps, and count 32 threads for each.
void Worker::require_whole_warps(Fiber& self, int id, const NamedBarrier& barrier) {
  for (unsigned w = 0; w < warp_count_; ++w) {
    const unsigned lanes = barrier.lanes[w];
    if (lanes == 0 || (lanes | warps_[w].exited) == warps_[w].existing) continue;
    Report report = describe(self, "divergent barrier", barrier.pcs[w]);
    report.threads = {warps_[w].lanes[__builtin_ctz(lanes)]->thread};
    report.message = format(
        "only lanes 0x%08x of warp %u have reached named barrier %d, at {0}: a warp does as a whole", lanes, w, id);
    fail(std::move(report));
  }
}

// --- asynchronous copies: the destination is poison from the issue to the wait ---

void Worker::async_copy(Fiber& self, void* destination, const void* source, int bytes, int valid_bytes,
                        std::uintptr_t pc) {
  self.primitive = Primitive::kAsyncCopy;
  self.pc = pc;
  const auto size = static_cast<std::size_t>(bytes);
  require_aligned(self, destination, size, Primitive::kAsyncCopy, pc);
  require_shared(self, Access::kAsyncIssue, destination, size, pc);
  if (valid_bytes < 0 || valid_bytes > bytes) {
    Report report = describe(self, "argument", pc);
    report.message = format("async_copy of %d bytes is told that %d are valid, at {0}", bytes, valid_bytes);
    fail(std::move(report));
  }
  if (valid_bytes > 0) require_aligned(self, source, size, Primitive::kAsyncCopy, pc);
  if (checked) {
    if (valid_bytes > 0)
      access(self, Access::kAsyncRead, source, static_cast<std::size_t>(valid_bytes), pc);
    else
      log(self, Access::kRead, 0, 0, pc);  // a lane that asks for nothing still has its turn in the warp's request
    access(self, Access::kAsyncIssue, destination, size, pc);
  }
  ++counters.async_copies;
  self.copies.push_back({static_cast<unsigned char*>(destination), static_cast<const unsigned char*>(source),
                         static_cast<std::uint8_t>(bytes), static_cast<std::uint8_t>(valid_bytes), self.open_group,
                         pc});
  std::memset(destination, kPoisonByte, size);
  self.primitive = Primitive::kNone;
}

void Worker::async_wait(Fiber& self, unsigned groups_left, std::uintptr_t pc) {
  self.primitive = Primitive::kAsyncWait;
  self.pc = pc;
  while (self.copies_done < self.copies.size()) {
    const AsyncCopy& copy = self.copies[self.copies_done];
    if (copy.group >= self.open_group || self.open_group - copy.group <= groups_left) break;
    std::memcpy(copy.shared, copy.global, copy.valid_bytes);
    std::memset(copy.shared + copy.valid_bytes, 0, copy.bytes - copy.valid_bytes);
    if (checked) {
      access(self, Access::kAsyncLand, copy.shared, copy.bytes, copy.pc);
      if (copy.valid_bytes > 0) access(self, Access::kAsyncReadDone, copy.global, copy.valid_bytes, copy.pc);
    }
    ++self.copies_done;
  }
  if (self.copies_done == self.copies.size()) self.copies.clear(), self.copies_done = 0;
  self.primitive = Primitive::kNone;
}

}  // namespace emulator
