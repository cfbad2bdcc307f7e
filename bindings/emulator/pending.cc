#include "pending.h"

#include <algorithm>
#include <new>

#include "text.h"
#include "worker.h"

namespace emulator {

// --- sets of bytes ---

ByteSet::Words ByteSet::allocate(std::size_t count) {
  void* memory = std::calloc(std::max<std::size_t>(count, 1), sizeof(Word));
  if (memory == nullptr) throw std::bad_alloc();
  return Words(static_cast<Word*>(memory));
}

ByteSet::ByteSet(std::uintptr_t begin, std::uintptr_t end)
    : base_(begin & ~(kPageBytes - 1)),
      page_count_((end - base_ + kPageBytes - 1) / kPageBytes),
      words_(allocate(page_count_ * kPageWords)),
      pages_(allocate((page_count_ + 63) / 64)) {}

void ByteSet::mark_words(std::uintptr_t first, std::size_t bytes) {
  while (bytes != 0) {
    const std::size_t shift = first % kWordBytes, part = std::min(bytes, kWordBytes - shift);
    mark_word(first / kWordBytes, ones(part) << shift);
    first += part;
    bytes -= part;
  }
}

std::uintptr_t ByteSet::find(std::uintptr_t address, std::size_t bytes) const {
  for (std::uintptr_t first = address - base_, left = bytes; left != 0;) {
    const std::size_t shift = first % kWordBytes, part = std::min<std::size_t>(left, kWordBytes - shift);
    const std::uint64_t found = words_[first / kWordBytes].load(std::memory_order_relaxed) & ones(part) << shift;
    if (found != 0) return base_ + first / kWordBytes * kWordBytes + __builtin_ctzll(found);
    first += part;
    left -= part;
  }
  return 0;
}

bool ByteSet::is_near(std::uintptr_t begin, std::uintptr_t end) const {
  if (begin >= end) return false;
  for (std::size_t page = (begin - base_) / kPageBytes; page <= (end - 1 - base_) / kPageBytes; ++page)
    if ((pages_[page / 64].load(std::memory_order_relaxed) >> page % 64 & 1) != 0) return true;
  return false;
}

std::uint64_t ByteSet::sectors() const {
  constexpr std::uint64_t kLow = 0xffffffffu;
  std::uint64_t count = 0;
  for (std::size_t page = 0; page < page_count_; ++page) {
    const std::uint64_t rest = pages_[page / 64].load(std::memory_order_relaxed) >> page % 64;
    if (rest == 0) page |= 63;  // none of those that share the word
    if ((rest & 1) == 0) continue;
    for (std::size_t i = page * kPageWords; i < (page + 1) * kPageWords; ++i) {
      const std::uint64_t word = words_[i].load(std::memory_order_relaxed);
      count += ((word & kLow) != 0) + (word >> 32 != 0);
    }
  }
  return count;
}

// --- the launches of a stream ---

bool Pending::may_write(std::uintptr_t begin, std::uintptr_t end) const {
  for (const auto& [launch, is_waited_for] : earlier)
    for (const auto& touched : launch.memory)
      if (touched->written.is_near(std::max(begin, touched->begin), std::min(end, touched->end))) return true;
  return false;
}

bool Pending::is_constant(std::uintptr_t address) const {
  // Views of one memory may reach to its end: an address belongs to the one that begins nearest before it.
  std::uintptr_t nearest = 0;
  bool found = false;
  for (const ArgumentRange& range : arguments) {
    if (address - range.begin >= range.end - range.begin || range.begin < nearest) continue;
    found = range.is_constant || (found && range.begin == nearest);
    nearest = range.begin;
  }
  return found;
}

std::unique_ptr<Pending> Stream::overlap() const {
  if (running_.empty()) return nullptr;
  auto pending = std::make_unique<Pending>();
  // The wait is for the end of the launch before, which tells of the end of others only if that one has waited itself.
  const Earlier& before = running_.front();
  for (const Earlier& earlier : running_) {
    const bool is_waited_for =
        &earlier == &before || (before.has_waited && std::ranges::count(before.waits_for, earlier.number) != 0);
    pending->earlier.emplace_back(earlier, is_waited_for);
    pending->outlasts_wait |= !is_waited_for;
  }
  return pending;
}

void Stream::add(std::string name, TouchedMemory memory, const Pending* pending) {
  Earlier launch{++count_, std::move(name), std::move(memory), {}, pending != nullptr && pending->has_waited};
  std::vector<Earlier> running;
  if (pending != nullptr) {
    for (const auto& [earlier, is_waited_for] : pending->earlier) {
      if (is_waited_for) launch.waits_for.push_back(earlier.number);
      // The next launch starts once every block has let it; one that did so after it had waited is enough.
      const bool has_ended = is_waited_for && pending->releases_late;
      const auto same = std::ranges::find(running_, earlier.number, &Earlier::number);
      if (!has_ended && same != running_.end()) running.push_back(std::move(*same));
    }
  }
  running.insert(running.begin(), std::move(launch));
  if (running.size() > kMostGrids) running.resize(kMostGrids);
  running_ = std::move(running);
}

void Stream::forget(std::uintptr_t begin, std::uintptr_t end) {
  for (Earlier& launch : running_)
    std::erase_if(launch.memory, [&](const auto& touched) { return touched->begin < end && begin < touched->end; });
}

// --- the threads of a block ---

void GridWaits::begin_block(unsigned threads) {
  has_waited_.assign(threads, 0);
  waits_.clear();
  released_early_ = false;
}

void GridWaits::end_block(Pending& pending) const {
  if (waits_.empty()) return;
  pending.has_waited = true;
  if (!released_early_) pending.releases_late = true;  // where nobody releases, the block's end does
}

void GridWaits::wait(const Stamp& me) {
  if (has_waited_[me.thread] != 0) return;
  has_waited_[me.thread] = 1;
  waits_.push_back(me);
}

void GridWaits::release(const Stamp& me, const Clocks& clocks) { released_early_ |= !has_waited(me, clocks); }

bool GridWaits::has_waited(const Stamp& me, const Clocks& clocks) {
  if (has_waited_[me.thread] != 0) return true;
  const bool is_ordered = std::ranges::any_of(waits_, [&](const Stamp& wait) {
    return wait.epoch < me.epoch || clocks.known(me.thread, wait.thread) >= wait.clock;
  });
  if (is_ordered) has_waited_[me.thread] = 1;
  return is_ordered;
}

// --- what a worker does with it ---

void Worker::grid_wait(Fiber& self) {
  if (launch->pending != nullptr) grid_waits_.wait(stamp(self, 0));
}

void Worker::grid_release(Fiber& self) {
  if (launch->pending != nullptr) grid_waits_.release(stamp(self, 0), clocks_);
}

void Worker::check_pending(Fiber& self, const Buffer& buffer, Access kind, std::uintptr_t address, std::size_t bytes,
                           std::uintptr_t pc) {
  const Pending& pending = *launch->pending;
  const bool has_waited = grid_waits_.has_waited(stamp(self, pc), clocks_);
  const bool is_constant = is_read(kind) && buffer.has_constant && pending.is_constant(address);
  if (has_waited && !pending.outlasts_wait && !is_constant) return;
  for (const auto& [earlier, is_waited_for] : pending.earlier) {
    if (has_waited && is_waited_for && !is_constant) continue;
    for (const auto& touched : earlier.memory) {
      const std::uintptr_t begin = std::max(address, touched->begin), end = std::min(address + bytes, touched->end);
      if (begin >= end) continue;
      const std::uintptr_t written = touched->written.find(begin, end - begin);
      const std::uintptr_t read = is_read(kind) ? 0 : touched->read.find(begin, end - begin);
      if (written == 0 && read == 0) continue;
      report_pending(self, kind, earlier, written != 0 ? written : read, written != 0, has_waited && is_waited_for, pc);
    }
  }
}

void Worker::report_pending(Fiber& self, Access kind, const Earlier& earlier, std::uintptr_t address, bool is_written,
                            bool is_constant, std::uintptr_t pc) {
  const Pending& pending = *launch->pending;
  const std::string& before = pending.earlier.front().first.name;
  Report report = describe(self, "dependent launch", pc);
  report.address = address;
  report.message = format("thread %u %s %s at {0}, which %s may still be %s", self.thread,
                          is_read(kind)     ? "reads"
                          : is_atomic(kind) ? "atomically updates"
                                            : "writes",
                          place_of(address).c_str(), earlier.name.c_str(), is_written ? "writing" : "reading");
  if (is_constant)
    report.message += " when this launch starts, but the parameter is declared constant (const T* __restrict__)";
  else if (!grid_waits_.has_waited(stamp(self, pc), clocks_))
    report.message += ": no grid_dependency_wait comes before";
  else
    report.message += format(": the wait was for %s, which did not wait for it", before.c_str());
  fail(std::move(report));
}

}  // namespace emulator
