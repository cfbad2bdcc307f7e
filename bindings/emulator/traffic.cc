#include "traffic.h"

#include <algorithm>
#include <tuple>
#include <unordered_map>

#include "worker.h"

namespace emulator {
namespace {

constexpr unsigned kSectorBytes = 32, kBanks = 32, kBankBytes = 4, kWavefrontBytes = kBanks * kBankBytes;
constexpr unsigned kFullBytes = kWarpSize * 16;

bool is_same_code(const std::vector<MemoryAccess>& a, const std::vector<MemoryAccess>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const MemoryAccess& x, const MemoryAccess& y) {
    return x.pc == y.pc && x.is_write == y.is_write;
  });
}

}  // namespace

void Traffic::evaluate(Warp& warp, Counters& counters) {
  unsigned active = 0;
  for (unsigned lane = 0; lane < kWarpSize; ++lane)
    if (warp.lanes[lane] != nullptr && !warp.lanes[lane]->log.empty()) active |= 1u << lane;
  if (active == 0) return;
  if (variables_->bytes() != 0) check_variables(warp);
  const auto& first = warp.lanes[__builtin_ctz(active)]->log;
  bool is_uniform = true;
  for (unsigned rest = active & (active - 1); rest != 0 && is_uniform; rest &= rest - 1)
    is_uniform = is_same_code(first, warp.lanes[__builtin_ctz(rest)]->log);
  if (is_uniform) {
    LaneAccess request[kWarpSize];
    for (std::size_t i = 0; i < first.size(); ++i) {
      std::size_t count = 0;
      for (unsigned rest = active; rest != 0; rest &= rest - 1) {
        const unsigned lane = __builtin_ctz(rest);
        request[count++] = {&warp.lanes[lane]->log[i], lane, 0};
      }
      count_request(request, count, counters);
    }
  } else {
    evaluate_divergent(warp, counters);
  }
  for (unsigned rest = active; rest != 0; rest &= rest - 1) warp.lanes[__builtin_ctz(rest)]->log.clear();
}

// The gaps between __shared__ variables belong to nobody. Reads there are told at once, as reads of unwritten memory.
void Traffic::check_variables(const Warp& warp) const {
  for (Fiber* lane : warp.lanes) {
    if (lane == nullptr) continue;
    for (const MemoryAccess& access : lane->log) {
      const std::uintptr_t place = access.address - shared_begin_;
      if (place < variables_->bytes() && access.bytes != 0 && variables_->is_outside(place, access.bytes))
        lane->worker->report_between_variables(*lane, access);
    }
  }
}

void Traffic::evaluate_divergent(Warp& warp, Counters& counters) {
  items_.clear();
  std::unordered_map<std::uint32_t, std::uint32_t> seen;
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if (warp.lanes[lane] == nullptr) continue;
    seen.clear();
    for (const MemoryAccess& access : warp.lanes[lane]->log) items_.push_back({&access, lane, seen[access.pc]++});
  }
  const auto key = [](const LaneAccess& x) { return std::make_tuple(x.access->pc, x.access->is_write, x.ordinal); };
  std::stable_sort(items_.begin(), items_.end(), [&](const auto& a, const auto& b) { return key(a) < key(b); });
  for (std::size_t begin = 0; begin < items_.size();) {
    std::size_t end = begin + 1;
    while (end < items_.size() && key(items_[end]) == key(items_[begin])) ++end;
    count_request(&items_[begin], end - begin, counters);
    begin = end;
  }
}

void Traffic::count_request(const LaneAccess* accesses, std::size_t count, Counters& counters) {
  const LaneAccess* end = accesses + count;
  const LaneAccess* asks = std::find_if(accesses, end, [](const LaneAccess& x) { return x.access->bytes != 0; });
  if (asks == end) return;
  const std::uintptr_t address = asks->access->address;
  if (address >= shared_begin_ && address < shared_end_)
    count_wavefronts(accesses, count, counters);
  else
    count_sectors(asks, static_cast<std::size_t>(end - asks), counters);
}

void Traffic::count_sectors(const LaneAccess* accesses, std::size_t count, Counters& counters) {
  sectors_.clear();
  std::size_t bytes = 0;
  bool is_scalar = true;
  for (std::size_t i = 0; i < count; ++i) {
    const MemoryAccess& access = *accesses[i].access;
    if (access.bytes == 0) continue;
    bytes += access.bytes;
    is_scalar = is_scalar && access.address == accesses[0].access->address;
    const std::uintptr_t last = (access.address + access.bytes - 1) / kSectorBytes;
    for (std::uintptr_t sector = access.address / kSectorBytes; sector <= last; ++sector)
      if (sectors_.empty() || sectors_.back() != sector) sectors_.push_back(sector);
  }
  if (!std::is_sorted(sectors_.begin(), sectors_.end())) std::sort(sectors_.begin(), sectors_.end());
  counters.global_requests += 1;
  const auto sectors = static_cast<std::uint64_t>(std::unique(sectors_.begin(), sectors_.end()) - sectors_.begin());
  counters.global_full_requests += bytes == kFullBytes && sectors <= kFullBytes / kSectorBytes;
  counters.global_scalar_requests += is_scalar;
  counters.global_request_sectors += sectors;
}

// A wavefront serves one word of each bank. Accesses of 8 and 16 bytes are served half and a quarter of a warp at a
// time; within such a phase every further distinct word of a bank costs one more wavefront.
void Traffic::count_wavefronts(const LaneAccess* accesses, std::size_t count, Counters& counters) {
  counters.shared_requests += 1;
  for (std::size_t begin = 0; begin < count;) {
    const unsigned lanes_per_phase = std::max(
        1u, std::min(kWarpSize, kWavefrontBytes / std::max<unsigned>(accesses[begin].access->bytes, kBankBytes)));
    const unsigned phase = accesses[begin].lane / lanes_per_phase;
    std::uintptr_t words[kBanks][kWarpSize];
    unsigned distinct[kBanks] = {};
    unsigned wavefronts = 1;
    for (; begin < count && accesses[begin].lane / lanes_per_phase == phase; ++begin) {
      const MemoryAccess& access = *accesses[begin].access;
      const std::uintptr_t offset = access.address - shared_begin_;
      for (std::uintptr_t word = offset / kBankBytes; word <= (offset + access.bytes - 1) / kBankBytes; ++word) {
        const unsigned bank = word % kBanks;
        if (std::find(words[bank], words[bank] + distinct[bank], word) != words[bank] + distinct[bank]) continue;
        words[bank][distinct[bank]++] = word;
        wavefronts = std::max(wavefronts, distinct[bank]);
      }
    }
    counters.shared_wavefronts += wavefronts;
    counters.shared_bank_conflicts += wavefronts - 1;
  }
}

}  // namespace emulator
