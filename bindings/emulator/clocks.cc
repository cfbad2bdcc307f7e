#include "clocks.h"

#include <algorithm>

#include "worker.h"

namespace emulator {

void Clocks::begin_block(unsigned threads) {
  threads_ = threads;
  epoch_ = 1;
  across_warps_ = false;
  row_epoch_.assign(threads, 0);
}

std::uint32_t* Clocks::row(unsigned thread) {
  if (known_.size() < std::size_t{threads_} * threads_) known_.resize(std::size_t{threads_} * threads_);
  std::uint32_t* row = known_.data() + std::size_t{thread} * threads_;
  if (row_epoch_[thread] != epoch_) {
    std::fill_n(row, threads_, std::uint32_t{0});
    row_epoch_[thread] = epoch_;
  }
  return row;
}

Past Clocks::past_of(const Stamp& me) const {
  Past past{me.epoch, {}};
  if (row_epoch_[me.thread] != epoch_) {
    past.clocks.emplace_back(me.thread, me.clock);
    return past;
  }
  const std::uint32_t* known = known_.data() + std::size_t{me.thread} * threads_;
  for (unsigned thread = 0; thread < threads_; ++thread) {
    const std::uint32_t clock = thread == me.thread ? me.clock : known[thread];
    if (clock != 0) past.clocks.emplace_back(static_cast<std::uint16_t>(thread), clock);
  }
  return past;
}

void Clocks::join_warp(Warp& warp, unsigned mask) {
  const unsigned first = across_warps_ ? 0 : warp.index * kWarpSize;
  const unsigned end = across_warps_ ? threads_ : std::min(first + kWarpSize, threads_);
  std::uint32_t joined[kMaxThreads];
  std::fill(joined + first, joined + end, 0u);
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    Fiber& fiber = *warp.lanes[__builtin_ctz(rest)];
    std::uint32_t* known = row(fiber.thread);
    known[fiber.thread] = fiber.clock;
    for (unsigned i = first; i < end; ++i) joined[i] = std::max(joined[i], known[i]);
  }
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    Fiber& fiber = *warp.lanes[__builtin_ctz(rest)];
    std::copy(joined + first, joined + end, row(fiber.thread) + first);
    tick(fiber);
  }
}

void Clocks::release(Fiber& fiber, std::vector<std::uint32_t>& clocks) {
  across_warps_ = true;
  clocks.resize(threads_);
  std::uint32_t* known = row(fiber.thread);
  known[fiber.thread] = fiber.clock;
  for (unsigned i = 0; i < threads_; ++i) clocks[i] = std::max(clocks[i], known[i]);
  tick(fiber);
}

void Clocks::acquire(Fiber& fiber, const std::vector<std::uint32_t>& clocks) {
  std::uint32_t* known = row(fiber.thread);
  for (unsigned i = 0; i < threads_; ++i) known[i] = std::max(known[i], clocks[i]);
}

}  // namespace emulator
