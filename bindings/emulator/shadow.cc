#include "shadow.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

namespace emulator {
namespace {

constexpr std::size_t round_up(std::size_t bytes) { return (bytes + 63) & ~std::size_t{63}; }

Conflict race(const Stamp& other, bool other_wrote) { return {Conflict::kRace, other_wrote, other, 0}; }

template <bool kShared>
struct Rules {
  const Stamp& me;
  std::uint32_t block;  // that `order` knows; me.block tells apart the blocks whose shared memory was the same
  const Clocks& clocks;
  BlockOrder& order;
  Shadow& shadow;
  AtomicTouch* atomic;
  mutable std::size_t cell_number = 0;

  std::uint16_t my_warp() const { return static_cast<std::uint16_t>(me.thread / kWarpSize); }
  std::uint32_t my_lane() const { return 1u << me.thread % kWarpSize; }
  std::uint32_t& number_of(std::size_t cell) const { return atomic->numbers[cell % atomic->numbers.size()]; }
  bool is_set(std::uint32_t of_block) const { return kShared ? of_block == me.block : of_block != 0; }

  // Is what was done at `stamp` ordered before what I do now?
  bool precedes(const Stamp& stamp) const {
    if (!is_set(stamp.block)) return true;
    if (stamp.block == me.block &&
        (stamp.thread == me.thread || stamp.epoch < me.epoch || clocks.known(me.thread, stamp.thread) >= stamp.clock))
      return true;
    return order.covers(kShared ? block : stamp.block, stamp, me, clocks);
  }

  static Stamp stamp_of(const WarpAccess& access, unsigned lane) {
    return {access.block, access.epoch, access.clock, access.pc,
            static_cast<std::uint16_t>(access.warp * kWarpSize + lane)};
  }

  // The first lane whose access is not ordered before what I do now; 32 if all are.
  unsigned unordered_lane(const WarpAccess& access) const {
    if (!is_set(access.block) || (access.block == me.block && access.epoch < me.epoch)) return kWarpSize;
    for (std::uint32_t rest = access.lanes; rest != 0; rest &= rest - 1) {
      const unsigned lane = static_cast<unsigned>(__builtin_ctz(rest));
      if (!precedes(stamp_of(access, lane))) return lane;
    }
    return kWarpSize;
  }
  Conflict against(const WarpAccess& access, bool other_wrote) const {
    const unsigned lane = unordered_lane(access);
    return lane == kWarpSize ? Conflict{} : race(stamp_of(access, lane), other_wrote);
  }

  Conflict touch(Cell& cell, Access kind) const {
    if (cell.is_in_flight && is_set(cell.writer.block) && kind != Access::kAsyncLand)
      return {Conflict::kInFlight, true, cell.writer, 0};
    switch (kind) {
      case Access::kRead:
        return read(cell);
      case Access::kAsyncRead: {
        const Conflict conflict = read(cell);
        sources(cell).push_back(me);
        return conflict;
      }
      case Access::kAsyncReadDone:
        return end_source(cell);
      case Access::kAtomic:
      case Access::kAtomicOfBlock:
        return operate(cell, kind);
      case Access::kAtomicResult:
        if (cell.has_atomics) observe(cell.more->observations, number_of(cell_number++));
        return {};
      default:
        return write(cell, kind);
    }
  }

  void observe(std::vector<Observation>& observations, std::uint32_t number) const {
    const bool is_anew = observations.empty() || observations.back().who.block != me.block ||
                         observations.back().who.thread != me.thread || observations.back().who.epoch != me.epoch ||
                         observations.back().who.clock != me.clock;
    if (is_anew)
      observations.push_back({me, number});
    else
      observations.back().number = std::max(observations.back().number, number);
  }

  Conflict read(Cell& cell) const {
    if (!precedes(cell.writer)) return race(cell.writer, true);
    if (const Conflict conflict = against_atomics(cell); conflict.kind != Conflict::kNone) return conflict;
    remember_reader(cell);
    return is_unwritten(cell) ? Conflict{Conflict::kUninitialized, false, {}, 0} : Conflict{};
  }

  // Those whose end I know of by a later one's result need no fence: atomic operations of a cell follow each other.
  Conflict against_atomics(const Cell& cell) const {
    if (!cell.has_atomics) return {};
    std::uint32_t known = 0;
    for (const Observation& observation : cell.more->observations)
      if (observation.number > known && is_set(observation.who.block) && precedes(observation.who))
        known = observation.number;
    for (const AtomicAccess& access : cell.more->atomics)
      if (access.number > known)
        if (const Conflict conflict = against(access, true); conflict.kind != Conflict::kNone) return conflict;
    return {};
  }

  bool is_unwritten(const Cell& cell) const {
    if (!kShared || is_set(cell.writer.block)) return false;
    return !cell.has_atomics || std::none_of(cell.more->atomics.begin(), cell.more->atomics.end(),
                                             [&](const WarpAccess& access) { return is_set(access.block); });
  }

  bool is_mine(const WarpAccess& access) const {
    return access.block == me.block && access.warp == my_warp() && access.clock == me.clock && access.epoch == me.epoch;
  }
  WarpAccess mine() const { return {me.block, me.epoch, me.clock, me.pc, my_lane(), my_warp()}; }

  // The lists of a cell, which hold what they held for its last life until they are asked for.
  std::vector<WarpAccess>& readers(Cell& cell) const {
    std::vector<WarpAccess>& list = shadow.overflow(cell).readers;
    if (!cell.has_readers) list.clear();
    cell.has_readers = true;
    return list;
  }
  std::vector<AtomicAccess>& atomics(Cell& cell) const {
    Overflow& more = shadow.overflow(cell);
    if (!cell.has_atomics) more.atomics.clear(), more.observations.clear();
    cell.has_atomics = true;
    return more.atomics;
  }
  std::vector<Stamp>& sources(Cell& cell) const {
    std::vector<Stamp>& list = shadow.overflow(cell).sources;
    if (!cell.has_sources) list.clear();
    cell.has_sources = true;
    return list;
  }

  // Readers that are ordered before me are forgotten: who comes after me comes after them.
  void remember_reader(Cell& cell) const {
    WarpAccess& first = cell.reader;
    if (is_mine(first) && ((first.lanes & my_lane()) != 0 || first.pc == me.pc)) {
      first.lanes |= my_lane();
      return;
    }
    // All readers of shared memory are of one epoch.
    const bool is_over = first.block == me.block && first.epoch < me.epoch;
    if (!is_set(first.block) || (is_over && (kShared || !cell.has_readers))) {
      if (kShared) cell.has_readers = false;
      first = mine();
    } else if (!cell.has_readers && first.block == me.block && first.warp == my_warp() &&
               unordered_lane(first) == kWarpSize) {
      first = mine();
    } else if (WarpAccess* same = place_in(readers(cell))) {
      if (is_mine(*same))
        same->lanes |= my_lane();
      else
        *same = mine();
    } else {
      cell.more->readers.push_back(mine());
    }
  }

  // An access in the list that mine can join, or take the place of since it is over; nullptr if there is none among the
  // latest few: a list that is longer than it could be is as good.
  template <class T>
  T* place_in(std::vector<T>& accesses) const {
    constexpr std::size_t kLookBack = 32;
    for (std::size_t i = accesses.size(); i-- > 0 && i + kLookBack >= accesses.size();) {
      T& access = accesses[i];
      if (!is_set(access.block)) return &access;
      if (access.block != me.block) continue;
      if (is_mine(access) && access.pc == me.pc) return &access;
      if (access.epoch < me.epoch || (access.warp == my_warp() && unordered_lane(access) == kWarpSize)) return &access;
    }
    return nullptr;
  }

  // Atomic operations do not race with each other if they are of one size and each is atomic for the other's thread.
  Conflict operate(Cell& cell, Access kind) const {
    const bool is_of_block_scope = kind == Access::kAtomicOfBlock;
    if (const Conflict conflict = against_plain(cell); conflict.kind != Conflict::kNone) return conflict;
    const bool was_unwritten = is_unwritten(cell);
    std::vector<AtomicAccess>& others = atomics(cell);
    for (const AtomicAccess& access : others)
      if (access.bytes != atomic->bytes ||
          (!kShared && access.block != me.block && (is_of_block_scope || access.is_of_block_scope)))
        if (const Conflict conflict = against(access, true); conflict.kind != Conflict::kNone) return conflict;
    AtomicAccess next{mine(), is_of_block_scope, atomic->bytes, ++cell.more->atomic_count};
    number_of(cell_number++) = next.number;
    AtomicAccess* same = place_in(others);
    if (same == nullptr ||
        (is_set(same->block) && (same->is_of_block_scope != is_of_block_scope || same->bytes != next.bytes))) {
      others.push_back(next);
    } else {
      if (is_mine(*same)) next.lanes |= same->lanes;
      *same = next;
    }
    return was_unwritten && atomic->reads ? Conflict{Conflict::kUninitialized, false, {}, 0} : Conflict{};
  }

  Conflict against_plain(const Cell& cell) const {
    if (!precedes(cell.writer)) return race(cell.writer, true);
    if (const Conflict conflict = against(cell.reader, false); conflict.kind != Conflict::kNone) return conflict;
    if (cell.has_sources)
      for (const Stamp& source : cell.more->sources)
        if (is_set(source.block)) return {Conflict::kSourceInFlight, false, source, 0};
    const bool are_over = kShared && (cell.reader.block != me.block || cell.reader.epoch < me.epoch);
    if (cell.has_readers && !are_over)
      for (const WarpAccess& access : cell.more->readers)
        if (const Conflict conflict = against(access, false); conflict.kind != Conflict::kNone) return conflict;
    return {};
  }

  Conflict write(Cell& cell, Access kind) const {
    if (const Conflict conflict = against_plain(cell); conflict.kind != Conflict::kNone) return conflict;
    if (const Conflict conflict = against_atomics(cell); conflict.kind != Conflict::kNone) return conflict;
    cell.has_readers = cell.has_atomics = cell.has_sources = false;
    cell.writer = me;
    cell.reader = {};
    cell.is_in_flight = kind == Access::kAsyncIssue;
    return {};
  }

  // The copy's reading ends with the wait, and is a read like any other from then on.
  Conflict end_source(Cell& cell) const {
    std::vector<Stamp>& list = sources(cell);
    const auto source = std::find_if(list.begin(), list.end(), [&](const Stamp& stamp) {
      return stamp.block == me.block && stamp.thread == me.thread && stamp.pc == me.pc;
    });
    if (source != list.end()) list.erase(source);
    cell.has_sources = !list.empty();
    remember_reader(cell);
    return {};
  }
};

}  // namespace

Shadow::~Shadow() { unmap(); }

void Shadow::unmap() {
  if (lines_ != nullptr) munmap(lines_, mapped_bytes_);
  lines_ = nullptr;
  overflows_.clear();
}

void Shadow::map(std::uintptr_t base, std::size_t bytes) {
  unmap();
  base_ = base & ~std::uintptr_t{kLineBytes - 1};
  line_count_ = (base + bytes - base_ + kLineBytes - 1) / kLineBytes;
  const std::size_t line_bytes = round_up(line_count_ * sizeof(Line));
  mapped_bytes_ = std::max<std::size_t>(line_bytes + line_count_ * kLineBytes * sizeof(Cell), 1);
  void* memory =
      mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  lines_ = static_cast<Line*>(memory);
  parts_ = reinterpret_cast<Cell*>(static_cast<char*>(memory) + line_bytes);
}

Overflow& Shadow::overflow(Cell& cell) {
  if (cell.more == nullptr) {
    const std::lock_guard<std::mutex> lock(overflow_mutex_);
    cell.more = &overflows_.emplace_back();
  }
  return *cell.more;
}

// Each cell keeps the overflow that it has once been given. A fresh one is not read: its page would be mapped twice.
void Shadow::copy(Cell& to, const Cell& from, bool is_fresh) {
  Overflow* const more = is_fresh ? nullptr : to.more;
  to = from;
  to.more = more;
  if (from.has_readers || from.has_atomics || from.has_sources) overflow(to) = *from.more;
}

void Shadow::split(Line& line, Cell* parts, unsigned cell_bytes) {
  const unsigned count = kLineBytes / cell_bytes;
  if (line.cell_bytes == 4) {
    for (unsigned i = count; i-- > 1;) copy(parts[i], parts[i * cell_bytes / 4], false);
  } else {
    for (unsigned i = 0; i < count; ++i) copy(parts[i], line.whole, !line.has_parts);
  }
  line.cell_bytes = static_cast<std::uint8_t>(cell_bytes);
  line.has_parts = true;
}

template <bool kLocked, class Touch>
Conflict Shadow::apply(bool is_write, std::uintptr_t address, std::size_t bytes, Touch&& touch) {
  const std::uintptr_t begin = address - base_, end = begin + bytes;
  for (std::size_t index = begin / kLineBytes; index * kLineBytes < end; ++index) {
    Line& line = lines_[index];
    const std::uintptr_t line_begin = index * kLineBytes;
    const unsigned from = begin > line_begin ? static_cast<unsigned>(begin - line_begin) : 0;
    const unsigned to = end < line_begin + kLineBytes ? static_cast<unsigned>(end - line_begin) : kLineBytes;
    const bool covers_line = from == 0 && to == kLineBytes;
    if (kLocked)
      while (line.lock.test_and_set(std::memory_order_acquire)) {
      }
    Conflict conflict;
    const bool is_whole = line.cell_bytes == 0 || line.cell_bytes == kLineBytes;
    if (covers_line && is_whole) {
      conflict = touch(line.whole);
      conflict.address = base_ + line_begin;
    } else {
      Cell* parts = parts_ + index * kLineBytes;
      const unsigned needed = (from | to) % 4 == 0 ? 4 : 1;
      if (is_whole || needed < line.cell_bytes) split(line, parts, needed);
      const unsigned cell_bytes = line.cell_bytes;
      for (unsigned part = from / cell_bytes; part * cell_bytes < to && conflict.kind == Conflict::kNone; ++part) {
        conflict = touch(parts[part]);
        conflict.address = base_ + line_begin + part * cell_bytes;
      }
      // A write of the whole line leaves its parts alike.
      if (covers_line && is_write && conflict.kind == Conflict::kNone) {
        copy(line.whole, parts[0], false);
        line.cell_bytes = kLineBytes;
      }
    }
    if (kLocked) line.lock.clear(std::memory_order_release);
    if (conflict.kind != Conflict::kNone) return conflict;
  }
  return {};
}

Conflict SharedShadow::touch(Access kind, std::uintptr_t address, std::size_t bytes, const Stamp& me,
                             std::uint32_t block, const Clocks& clocks, BlockOrder& order, AtomicTouch* atomic) {
  const Rules<true> rules{me, block, clocks, order, *this, atomic};
  return apply<false>(!is_read(kind), address, bytes, [&](Cell& cell) { return rules.touch(cell, kind); });
}

Conflict GlobalShadow::touch(Access kind, std::uintptr_t address, std::size_t bytes, const Stamp& me,
                             const Clocks& clocks, BlockOrder& order, AtomicTouch* atomic) {
  const Rules<false> rules{me, me.block, clocks, order, *this, atomic};
  return apply<true>(!is_read(kind), address, bytes, [&](Cell& cell) { return rules.touch(cell, kind); });
}

}  // namespace emulator
