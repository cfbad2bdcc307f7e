// Meetings of CUDA's language that our own kernels do not use: votes of a block, lanes that exchange their values,
// __activemask, __nanosleep; and where __shared__ variables are.
#include <algorithm>
#include <cstring>

#include "abi.h"
#include "text.h"
#include "worker.h"

#define CALL_SITE reinterpret_cast<std::uintptr_t>(__builtin_return_address(0))

namespace emulator {

unsigned Worker::sync_block_vote(Fiber& self, bool predicate, std::uintptr_t pc) {
  const unsigned number = ++self.block_votes;
  BlockVotes& votes = block_votes_[number % 2];
  if (votes.barrier != number) votes = {number, 0};
  votes.votes += predicate;
  sync_block(self, pc);
  return votes.votes;
}

unsigned Worker::active_mask(Fiber& self, std::uintptr_t pc) {
  unsigned mask = 0;
  self.primitive = Primitive::kActiveMask;
  self.pc = pc;
  self.operands = &mask;
  self.warp->idle |= 1u << self.lane;
  wait(self);
  self.primitive = Primitive::kNone;
  return mask;
}

// CUDA promises of the lanes in one __activemask only that each is in its own mask. In a random schedule some lanes
// are therefore apart from the others; else those that wait at one call are together, as they mostly are on a GPU.
void Worker::release_idle() {
  for (unsigned w = 0; w < warp_count_; ++w) {
    Warp& warp = warps_[w];
    for (unsigned rest = warp.idle; rest != 0;) {
      const Fiber& first = *warp.lanes[__builtin_ctz(rest)];
      unsigned together = 0;
      for (unsigned lanes = rest; lanes != 0; lanes &= lanes - 1) {
        const Fiber& fiber = *warp.lanes[__builtin_ctz(lanes)];
        if (fiber.primitive == first.primitive && fiber.pc == first.pc) together |= 1u << fiber.lane;
      }
      rest &= ~together;
      if (first.primitive != Primitive::kActiveMask) continue;
      unsigned apart = 0;
      if (launch->schedule == Schedule::kRandom) apart = together & random_lanes();
      for (unsigned lanes = together; lanes != 0; lanes &= lanes - 1) {
        const unsigned lane = static_cast<unsigned>(__builtin_ctz(lanes));
        *static_cast<unsigned*>(warp.lanes[lane]->operands) = (apart >> lane & 1u) != 0 ? apart : together & ~apart;
      }
    }
    make_runnable(warp, warp.idle);
    warp.idle = 0;
  }
}

}  // namespace emulator

using namespace emulator;

int emulator_sync_block_vote(BlockVote op, bool predicate) {
  Fiber& self = *current_fiber();
  const unsigned votes = self.worker->sync_block_vote(self, predicate, CALL_SITE);
  if (op == BlockVote::kCount) return static_cast<int>(votes);
  return op == BlockVote::kOr ? votes != 0 : votes == self.worker->launch->thread_count();
}

unsigned emulator_exchange(Exchange what, unsigned mask, std::uint64_t value, std::uint64_t* values) {
  Fiber& self = *current_fiber();
  const auto primitive = static_cast<Primitive>(static_cast<int>(Primitive::kMatchAny) + static_cast<int>(what));
  struct Operands {
    std::uint64_t value, *values;
    unsigned lanes;
  } operands{value, values, 0};
  self.worker->meet(self, primitive, mask, &operands, CALL_SITE, [&](Warp& warp) {
    std::uint64_t all[kWarpSize] = {};
    const auto operands_of = [&](unsigned lane) { return static_cast<Operands*>(warp.lanes[lane]->operands); };
    for (unsigned rest = warp.taking_part; rest != 0; rest &= rest - 1) {
      const unsigned lane = static_cast<unsigned>(__builtin_ctz(rest));
      all[lane] = operands_of(lane)->value;
    }
    for (unsigned rest = warp.taking_part; rest != 0; rest &= rest - 1) {
      Operands& lane = *operands_of(static_cast<unsigned>(__builtin_ctz(rest)));
      std::memcpy(lane.values, all, sizeof(all));
      lane.lanes = warp.taking_part;
    }
  });
  return operands.lanes;
}

unsigned emulator_active_mask() {
  Fiber& self = *current_fiber();
  return self.worker->active_mask(self, CALL_SITE);
}

void emulator_yield() {
  Fiber& self = *current_fiber();
  self.worker->yield(self, CALL_SITE);
}

std::uint64_t emulator_clock() {
  constexpr std::uint64_t kCyclesPerCall = 64;
  return ++current_fiber()->clock_reads * kCyclesPerCall;
}

unsigned char* emulator_shared_variable(std::uint64_t module, std::uint64_t offset) noexcept {
  const Worker& worker = *current_fiber()->worker;
  const SharedLayout& layout = *worker.launch->shared_layout;
  return worker.shared + (module == 0 ? layout.bytes() : layout.place(offset));
}
