// The checks of one memory access: bounds, permission, unwritten memory, races; and what it adds to the counters.
#include <algorithm>
#include <cstring>

#include "text.h"
#include "worker.h"

namespace emulator {
namespace {

constexpr std::size_t kLogCapacity = 2048;  // accesses per thread between two meetings of its warp
// Unwritten memory: a NaN in every float type that nothing computes. Single bytes have its first.
constexpr std::uint64_t kPoison = 0x7fa57fa57fa57fa5;

void mark(std::atomic<std::uint64_t>* bits, std::uintptr_t first, std::uintptr_t last) {
  for (std::uintptr_t i = first; i <= last; ++i) {
    const std::uint64_t bit = std::uint64_t{1} << i % 64;
    if ((bits[i / 64].load(std::memory_order_relaxed) & bit) == 0)
      bits[i / 64].fetch_or(bit, std::memory_order_relaxed);
  }
}

bool is_marked(const std::atomic<std::uint64_t>* bits, std::uintptr_t i) {
  return (bits[i / 64].load(std::memory_order_relaxed) >> i % 64 & 1) != 0;
}

// A number that equals the poison by chance was written by a kernel, which `buffer.written` then knows.
bool holds_poison(const Buffer& buffer, std::uintptr_t address, std::size_t bytes) {
  const auto* data = reinterpret_cast<const unsigned char*>(address);
  const std::size_t width = buffer.element_bytes == 1 ? 1 : buffer.element_bytes == 2 ? 2 : 4;
  for (std::size_t i = 0; i + width <= bytes; i += width) {
    const bool is_poison = width == 1 ? data[i] == kPoison >> 56 : std::memcmp(data + i, &kPoison, width) == 0;
    if (is_poison && (buffer.written == nullptr || !is_marked(buffer.written, address + i - buffer.written_from)))
      return true;
  }
  return false;
}

}  // namespace

void Worker::access(Fiber& self, Access kind, const void* pointer, std::size_t bytes, std::uintptr_t pc) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  const auto shared_begin = reinterpret_cast<std::uintptr_t>(shared);
  if (address - shared_begin < launch->shared_bytes)
    check_shared(self, kind, address, bytes, pc);
  else
    check_global(self, kind, address, bytes, pc);
}

Stamp Worker::stamp(const Fiber& self, std::uintptr_t pc) const {
  return {static_cast<std::uint32_t>(block_ + 1), clocks_.epoch(), self.clock,
          static_cast<std::uint32_t>(pc - launch->code_begin), static_cast<std::uint16_t>(self.thread)};
}

void Worker::log(Fiber& self, Access kind, std::uintptr_t address, std::size_t bytes, std::uintptr_t pc) {
  constexpr std::size_t kWidest = 16;
  for (std::size_t done = 0; done < std::max<std::size_t>(bytes, 1); done += kWidest)
    self.log.push_back({address + done, static_cast<std::uint32_t>(pc - launch->code_begin),
                        static_cast<std::uint16_t>(std::min(bytes - done, kWidest)), !is_read(kind)});
  if (self.log.size() < kLogCapacity) return;
  const Primitive inside = self.primitive;
  self.primitive = Primitive::kLogFull;
  self.warp->log_full |= 1u << self.lane;
  wait(self);
  self.primitive = inside;
}

void Worker::check_shared(Fiber& self, Access kind, std::uintptr_t address, std::size_t bytes, std::uintptr_t pc) {
  if (address + bytes > reinterpret_cast<std::uintptr_t>(shared) + launch->shared_bytes)
    report_out_of_bounds(self, kind, address, bytes, pc);
  Stamp me = stamp(self, pc);
  const std::uint32_t block = me.block;
  me.block = blocks_run_;
  const Conflict conflict = shared_shadow_.touch(kind, address, bytes, me, block, clocks_, order_, &atomic_);
  if (conflict.kind == Conflict::kUninitialized)
    note_unwritten(self, conflict, bytes, pc);
  else if (conflict.kind != Conflict::kNone)
    report_conflict(self, kind, conflict, pc);
  if (kind != Access::kAsyncLand) log(self, kind, address, bytes, pc);
}

void Worker::check_global(Fiber& self, Access kind, std::uintptr_t address, std::size_t bytes, std::uintptr_t pc) {
  Buffer* buffer = find_buffer(address);
  if (buffer == nullptr) {
    const bool is_constant = address - launch->code_begin < launch->code_end - launch->code_begin;
    if (is_constant && kind == Access::kRead) return;
    report_out_of_bounds(self, kind, address, bytes, pc);
  }
  if (address + bytes > buffer->end || (!is_read(kind) && !buffer->writable))
    report_out_of_bounds(self, kind, address, bytes, pc);
  if (is_pending(self, *buffer)) check_pending(self, *buffer, kind, address, bytes, pc);
  if (buffer->has_poison && (kind == Access::kRead || (is_atomic(kind) && atomic_.reads)) &&
      holds_poison(*buffer, address, bytes)) {
    Report report = describe(self, "uninitialized read", pc);
    report.address = address;
    report.message = format("thread %u reads unwritten memory, %s, at {0}", self.thread, place_of(address).c_str());
    fail(std::move(report));
  }
  if (buffer->shadow != nullptr) {
    const Conflict conflict = buffer->shadow->touch(kind, address, bytes, stamp(self, pc), clocks_, order_, &atomic_);
    if (conflict.kind != Conflict::kNone) report_conflict(self, kind, conflict, pc);
  }
  if (kind == Access::kAsyncReadDone) return;
  if (buffer->written != nullptr && !is_read(kind))
    mark(buffer->written, address - buffer->written_from, address + bytes - 1 - buffer->written_from);
  if (kind != Access::kWrite) {
    counters.global_read_bytes += bytes;
    buffer->touched->read.mark(address, bytes);
  }
  if (!is_read(kind)) {
    counters.global_write_bytes += bytes;
    buffer->touched->written.mark(address, bytes);
  }
  log(self, kind, address, bytes, pc);
}

void Worker::fence(Fiber& self, Scope scope) {
  const Stamp me = stamp(self, launch->code_begin);
  Clocks::tick(self);  // what follows is not released by it
  order_.fence(scope, me, stamp(self, launch->code_begin), clocks_);
}

void Worker::note_result(Fiber& self, const AtomicResult& result) {
  constexpr std::size_t kMost = 64;
  std::vector<AtomicResult>& results = self.results;
  const auto old = std::find_if(results.begin(), results.end(),
                                [&](const AtomicResult& other) { return other.address == result.address; });
  if (old != results.end())
    *old = result;
  else if (results.size() < kMost)
    results.push_back(result);
  else
    results[self.atomics % kMost] = result;
}

void Worker::use_result(Fiber& self, const void* pointer) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  const auto result = std::find_if(self.results.begin(), self.results.end(),
                                   [&](const AtomicResult& other) { return other.address == address; });
  if (result == self.results.end()) return;
  AtomicTouch touch = result->touch;
  Stamp me = result->when;
  const std::uint32_t block = me.block;
  if (address - reinterpret_cast<std::uintptr_t>(shared) < launch->shared_bytes) {
    me.block = blocks_run_;
    shared_shadow_.touch(Access::kAtomicResult, address, touch.bytes, me, block, clocks_, order_, &touch);
  } else if (Buffer* buffer = find_buffer(address); buffer != nullptr && buffer->shadow != nullptr) {
    buffer->shadow->touch(Access::kAtomicResult, address, touch.bytes, me, clocks_, order_, &touch);
  }
  const std::lock_guard<std::mutex> lock(launch->variables.mutex);
  order_.observe(*result->variable, result->seen, result->scope, result->is_acquire, result->when, clocks_);
  self.results.erase(result);
}

Buffer* Worker::find_buffer(std::uintptr_t address) {
  if (last_buffer_ != nullptr && address - last_buffer_->begin < last_buffer_->end - last_buffer_->begin)
    return last_buffer_;
  for (Buffer& buffer : launch->buffers)
    if (address - buffer.begin < buffer.end - buffer.begin) return last_buffer_ = &buffer;
  return nullptr;
}

void Worker::evaluate_log(Warp& warp) { traffic_.evaluate(warp, counters); }

}  // namespace emulator
