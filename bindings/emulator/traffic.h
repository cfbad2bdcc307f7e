// Memory requests of whole warps: what one load or store instruction asks of the memory system, put together from the
// accesses that the lanes logged one after another.
#pragma once
#include <cstdint>
#include <vector>

#include "fiber.h"
#include "launch.h"

namespace emulator {

class Traffic {
 public:
  void set_shared(std::uintptr_t begin, std::uintptr_t end, const SharedLayout* variables) {
    shared_begin_ = begin, shared_end_ = end, variables_ = variables;
  }
  // Counts the requests in the logs of the warp's lanes and clears them. Lanes that ran the same instructions are
  // matched one to one; after a divergence the n-th access at a place in the code is one request of all lanes.
  void evaluate(Warp& warp, Counters& counters);

 private:
  struct LaneAccess {
    const MemoryAccess* access;
    unsigned lane;
    std::uint32_t ordinal;
  };
  void count_request(const LaneAccess* accesses, std::size_t count, Counters& counters);
  void count_sectors(const LaneAccess* accesses, std::size_t count, Counters& counters);
  void count_wavefronts(const LaneAccess* accesses, std::size_t count, Counters& counters);
  void evaluate_divergent(Warp& warp, Counters& counters);
  void check_variables(const Warp& warp) const;

  std::uintptr_t shared_begin_ = 0, shared_end_ = 0;
  const SharedLayout* variables_ = nullptr;
  std::vector<LaneAccess> items_;
  std::vector<std::uintptr_t> sectors_;
};

}  // namespace emulator
