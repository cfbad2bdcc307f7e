// What barriers order inside a block. __syncthreads orders everything, so it only advances the epoch; between two of
// them, what __syncwarp and named barriers order is kept as one vector clock per thread, empty in most kernels.
#pragma once
#include <cstdint>
#include <vector>

#include "fiber.h"
#include "order.h"

namespace emulator {

class Clocks {
 public:
  void begin_block(unsigned threads);
  std::uint32_t epoch() const { return epoch_; }
  void advance_epoch() { ++epoch_; }

  // Everything that the threads of `mask` in this warp did is ordered before what they do next.
  void join_warp(Warp& warp, unsigned mask);
  // bar.arrive: `clocks` learns what `fiber` has done. bar.sync: `fiber` learns what `clocks` holds.
  void release(Fiber& fiber, std::vector<std::uint32_t>& clocks);
  void acquire(Fiber& fiber, const std::vector<std::uint32_t>& clocks);

  // The latest release of `other` that `thread` knows of, since the last __syncthreads.
  std::uint32_t known(unsigned thread, unsigned other) const {
    return row_epoch_[thread] == epoch_ ? known_[thread * threads_ + other] : 0;
  }
  // All of this block that is ordered before what `me` does now.
  Past past_of(const Stamp& me) const;
  // Later accesses of the thread are not what it has done so far.
  static void tick(Fiber& fiber) { ++fiber.clock; }

 private:
  std::uint32_t* row(unsigned thread);

  unsigned threads_ = 0;
  std::uint32_t epoch_ = 1;
  bool across_warps_ = false;  // named barriers were used: rows hold more than their own warp
  std::vector<std::uint32_t> known_;
  std::vector<std::uint32_t> row_epoch_;
};

}  // namespace emulator
