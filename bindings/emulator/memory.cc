// The checks of one memory access: bounds, permission, unwritten memory, races; and what it adds to the counters.
#include <algorithm>
#include <cstring>

#include "text.h"
#include "worker.h"

namespace emulator {
namespace {

constexpr std::size_t kLogCapacity = 2048;     // accesses per thread between two meetings of its warp
constexpr std::uint32_t kPoison = 0x7fa57fa5;  // unwritten memory: a NaN in every float type that nothing computes

bool holds_poison(std::uintptr_t address, std::size_t bytes, unsigned element_bytes) {
  const auto* data = reinterpret_cast<const unsigned char*>(address);
  const std::size_t width = element_bytes == 2 ? 2 : 4;
  for (std::size_t i = 0; i + width <= bytes; i += width)
    if (std::memcmp(data + i, &kPoison, width) == 0) return true;
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
  return {0, clocks_.epoch(), static_cast<std::uint16_t>(self.thread), self.clock,
          static_cast<std::uint32_t>(pc - launch->code_begin)};
}

void Worker::log(Fiber& self, Access kind, std::uintptr_t address, std::size_t bytes, std::uintptr_t pc) {
  constexpr std::size_t kWidest = 16;
  for (std::size_t done = 0; done < std::max<std::size_t>(bytes, 1); done += kWidest)
    self.log.push_back({address + done, static_cast<std::uint32_t>(pc - launch->code_begin),
                        static_cast<std::uint16_t>(std::min(bytes - done, kWidest)), kind != Access::kRead});
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
  me.block = blocks_run_;
  const Conflict conflict = shared_shadow_.touch(kind, address, bytes, me, clocks_);
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
  if (address + bytes > buffer->end || (kind != Access::kRead && !buffer->writable))
    report_out_of_bounds(self, kind, address, bytes, pc);
  if (is_pending(self, *buffer)) check_pending(self, *buffer, kind, address, bytes, pc);
  if (buffer->has_poison && kind != Access::kWrite && self.primitive != Primitive::kAsyncCopy &&
      holds_poison(address, bytes, buffer->element_bytes)) {
    Report report = describe(self, "uninitialized read", pc);
    report.address = address;
    report.message = format("thread %u reads unwritten memory, %s, at {0}", self.thread, place_of(address).c_str());
    fail(std::move(report));
  }
  if (buffer->shadow != nullptr) {
    Stamp me = stamp(self, pc);
    me.block = static_cast<std::uint32_t>(block_ + 1);
    const Conflict conflict = buffer->shadow->touch(kind, address, bytes, me, clocks_, taken_);
    if (conflict.kind != Conflict::kNone) report_conflict(self, kind, conflict, pc);
  }
  if (kind != Access::kWrite) {
    counters.global_read_bytes += bytes;
    buffer->touched->read.mark(address, bytes);
  }
  if (kind != Access::kRead) {
    counters.global_write_bytes += bytes;
    buffer->touched->written.mark(address, bytes);
  }
  log(self, kind, address, bytes, pc);
}

void Worker::fence(Fiber& self) {
  Stamp me = stamp(self, 0);
  me.block = static_cast<std::uint32_t>(block_ + 1);
  taken_.fence(me);
  self.has_fenced = true;
  self.fence_epoch = me.epoch;
  self.fence_clock = me.clock;
}

void Worker::publish(Fiber& self, std::uintptr_t address) {
  if (!self.has_fenced) return;
  Stamp me = stamp(self, 0);
  me.block = static_cast<std::uint32_t>(block_ + 1);
  std::vector<Publication> publications = taken_.visible_to(me);
  publications.push_back({me.block, self.fence_epoch, me.thread, self.fence_clock});
  launch->published.publish(address, publications);
}

void Worker::take_over(Fiber& self, std::uintptr_t address) {
  Stamp me = stamp(self, 0);
  me.block = static_cast<std::uint32_t>(block_ + 1);
  taken_.take(launch->published.published(address), me);
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
