// What a worker says of a kernel that does something undefined: what, where in the source, who, at which address.
#include <signal.h>

#include <algorithm>

#include "text.h"
#include "worker.h"

namespace emulator {
namespace {

const char* verb(Access kind) {
  return is_read(kind)            ? "reads"
         : is_atomic(kind)        ? "atomically updates"
         : kind == Access::kWrite ? "writes"
                                  : "copies into";
}

}  // namespace

Report Worker::describe(Fiber& self, const char* kind, std::uintptr_t pc) const {
  Report report;
  report.kind = kind;
  report.block = block_idx;
  report.primitive = name_of(self.primitive);
  report.places = {pc};
  report.threads = {self.thread};
  return report;
}

// What follows a read of unwritten memory is most often its consequence.
void Worker::pass_on(Report report) {
  launch->fail(unwritten_ != nullptr && report.kind != "data race" ? std::move(*unwritten_) : std::move(report));
}

void Worker::fail(Report report) {
  pass_on(std::move(report));
  abandon();
}

void Worker::report_not_shared(Fiber& self, Access kind, const void* address, std::size_t bytes, std::uintptr_t pc) {
  const auto position = reinterpret_cast<std::uintptr_t>(address);
  Report report = describe(self, "out of bounds", pc);
  report.address = position;
  report.message = format("thread %u %s %zu bytes at address 0x%zx, %s, at {0}: %s works on shared memory", self.thread,
                          verb(kind), bytes, position, place_of(position).c_str(), name_of(self.primitive));
  fail(std::move(report));
}

void Worker::note_unlike_calls(Fiber& self, const Fiber& other) {
  Report report = describe(self, "divergent barrier", self.pc);
  report.places.push_back(other.pc);
  report.threads.push_back(other.thread);
  report.message = format("thread %u calls %s at {0}, thread %u at {1}; all must reach the same call", self.thread,
                          name_of(self.primitive), other.thread);
  const std::lock_guard<std::mutex> lock(launch->mutex);
  launch->unlike_calls.emplace(std::minmax(self.pc, other.pc), std::move(report));
}

// Nobody can run on. Says who waits where; threads that left while others wait for them are a missing barrier.
void Worker::report_deadlock(Fiber& self) {
  struct Group {
    Primitive primitive;
    unsigned key;
    std::uintptr_t pc;
    std::vector<unsigned> threads;
  };
  std::vector<Group> groups;
  std::vector<unsigned> gone;
  for (unsigned thread = 0; thread < thread_count_; ++thread) {
    const Fiber& fiber = arena_[thread];
    if (fiber.exited) {
      gone.push_back(thread);
      continue;
    }
    auto group = std::find_if(groups.begin(), groups.end(), [&](const Group& g) {
      return g.primitive == fiber.primitive && g.pc == fiber.pc &&
             (g.primitive == Primitive::kSyncThreads || g.key == fiber.key);
    });
    if (group == groups.end()) group = groups.insert(group, {fiber.primitive, fiber.key, fiber.pc, {}});
    group->threads.push_back(thread);
  }
  const bool only_barrier =
      std::all_of(groups.begin(), groups.end(), [](const Group& g) { return g.primitive == Primitive::kSyncThreads; });
  Report report = describe(self, only_barrier ? "barrier" : "deadlock", 0);
  report.places.clear();
  report.threads.clear();
  report.primitive = name_of(groups.front().primitive);
  for (const Group& group : groups) {
    std::string what = name_of(group.primitive);
    if (group.primitive == Primitive::kNamedBarrier)
      what +=
          format(" %u (%u of %u threads arrived)", group.key, named_[group.key].arrived, named_[group.key].expected);
    else if (group.primitive != Primitive::kSyncThreads)
      what += format(" with mask 0x%08x", group.key);
    report.message +=
        format("%s%s %s at %s at {%zu}", report.message.empty() ? "" : "; ", ranges(group.threads).c_str(),
               group.threads.size() == 1 ? "waits" : "wait", what.c_str(), report.places.size());
    report.places.push_back(group.pc);
    report.threads.insert(report.threads.end(), group.threads.begin(), group.threads.end());
  }
  if (!gone.empty()) report.message += format("; %s exited", ranges(gone).c_str());
  fail(std::move(report));
}

// --- faults ---

void* Worker::note_fault(int signal, std::uintptr_t address, std::uintptr_t pc, std::uintptr_t stack_pointer) {
  Fiber* fiber = fiber_at(stack_pointer);
  const bool in_kernel = pc - launch->code_begin < launch->code_end - launch->code_begin;
  fault_ = {signal, address, in_kernel ? pc + 1 : fiber->pc, fiber};
  return main_context_;
}

void Worker::report_fault() {
  Fiber& self = *fault_.fiber;
  const std::uintptr_t guard = region_of(reinterpret_cast<std::uintptr_t>(&self));
  const bool is_overflow = fault_.signal == SIGSEGV && fault_.address - guard < kGuardBytes;
  if (fault_.signal == SIGURG) return;  // stopped on request
  Report report = describe(self,
                           is_overflow               ? "stack overflow"
                           : fault_.signal == SIGFPE ? "arithmetic trap"
                           : fault_.signal == SIGILL ? "array index"
                                                     : "wild pointer",
                           fault_.pc);
  report.address = fault_.address;
  if (is_overflow)
    report.message =
        format("thread %u needs more than %zu bytes of stack at {0}", self.thread, kRegionBytes - 3 * kGuardBytes);
  else if (fault_.signal == SIGFPE)
    report.message = format("thread %u divides an integer by zero (or overflows) at {0}", self.thread);
  else if (fault_.signal == SIGILL)
    report.message =
        format("thread %u indexes an array beyond its end (or does what C++ leaves undefined) at {0}", self.thread);
  else
    report.message = format("thread %u touches address 0x%zx, which is %s, at {0}", self.thread, fault_.address,
                            place_of(fault_.address).c_str());
  pass_on(std::move(report));
}

void Worker::report_misaligned(Fiber& self, const void* address, std::size_t bytes, Primitive primitive,
                               std::uintptr_t pc) {
  const auto position = reinterpret_cast<std::uintptr_t>(address);
  self.primitive = primitive;
  Report report = describe(self, "misaligned access", pc);
  report.address = position;
  report.message = format("thread %u accesses %zu bytes at %s at {0}: the address 0x%zx is not a multiple of %zu",
                          self.thread, bytes, place_of(position).c_str(), position, bytes);
  fail(std::move(report));
}

std::string Worker::place_of(std::uintptr_t address) const {
  const auto shared_begin = reinterpret_cast<std::uintptr_t>(shared);
  const std::size_t near = shared_capacity_ + 4096;
  if (address - shared_begin < near) {
    const std::size_t offset = address - shared_begin, dynamic = launch->shared_layout->bytes();
    if (offset < dynamic) return launch->shared_layout->words(offset);
    const char* kind = dynamic == 0 ? "" : "dynamic ";
    if (offset < launch->shared_bytes) return format("byte %zu of %sshared memory", offset - dynamic, kind);
    return format("%zu bytes past the end of the block's %zu bytes of %sshared memory", offset - launch->shared_bytes,
                  launch->shared_bytes - dynamic, kind);
  }
  for (const Variable& variable : *launch->constants)
    if (address - variable.place < variable.bytes)
      return format("byte %zu of __constant__ %s", address - variable.place, variable.name.c_str());
  if (arena_.contains(address)) return format("on the stack of thread %u", fiber_at(address)->thread);
  const Buffer* nearest = nullptr;
  std::uintptr_t distance = 0;
  for (const Buffer& buffer : launch->buffers) {
    if (address >= buffer.begin && address < buffer.end)
      return format("byte %zu of {arg%d}", address - buffer.begin, buffer.argument);
    const std::uintptr_t gap = address < buffer.begin ? buffer.begin - address : address - buffer.end;
    if (nearest == nullptr || gap < distance) nearest = &buffer, distance = gap;
  }
  constexpr std::uintptr_t kNear = 1 << 20;
  if (nearest == nullptr || distance > kNear) return address < 4096 ? "a null pointer" : "in no argument of the kernel";
  return format("%zu bytes %s {arg%d} (%zu bytes)", distance,
                address < nearest->begin ? "before the start of" : "past the end of", nearest->argument,
                nearest->end - nearest->begin);
}

void Worker::report_out_of_bounds(Fiber& self, Access kind, std::uintptr_t address, std::size_t bytes,
                                  std::uintptr_t pc) {
  const Buffer* buffer = find_buffer(address);
  Report report = describe(self, "out of bounds", pc);
  report.address = address;
  if (buffer != nullptr && address + bytes <= buffer->end) {
    report.kind = "read-only memory";
    report.message = format("thread %u %s %zu bytes of {arg%d}, which is read-only, at {0}", self.thread, verb(kind),
                            bytes, buffer->argument);
  } else {
    const std::uintptr_t end = buffer != nullptr ? buffer->end : address;
    const auto shared_end = reinterpret_cast<std::uintptr_t>(shared) + launch->shared_bytes;
    const bool straddles_shared = address < shared_end && address + bytes > shared_end;
    const std::string place = place_of(straddles_shared ? shared_end : end);
    if (place.find("of __constant__") != std::string::npos) report.kind = "read-only memory";
    report.message = format("thread %u %s %zu bytes at address 0x%zx, %s, at {0}", self.thread, verb(kind), bytes,
                            address, place.c_str());
  }
  fail(std::move(report));
}

void Worker::report_between_variables(Fiber& self, const MemoryAccess& access) {
  Report report = describe(self, "out of bounds", access.pc + launch->code_begin);
  report.address = access.address;
  std::size_t first = access.address - reinterpret_cast<std::uintptr_t>(shared), left = access.bytes;
  while (left > 1 && !launch->shared_layout->is_outside(first, 1)) ++first, --left;
  report.message = format(
      "thread %u %s %u bytes of shared memory at {0}, %s: __shared__ variables are apart here, as a GPU need not "
      "keep them",
      self.thread, access.is_write ? "writes" : "reads", static_cast<unsigned>(access.bytes),
      launch->shared_layout->words(first).c_str());
  unwritten_ = nullptr;  // a read there is one of unwritten memory, too, but this is the better word
  fail(std::move(report));
}

void Worker::note_unwritten(Fiber& self, const Conflict& conflict, std::size_t bytes, std::uintptr_t pc) {
  if (unwritten_ != nullptr) return;
  Report report = describe(self, "uninitialized read", pc);
  report.address = conflict.address;
  report.message = format("thread %u reads %zu bytes that no thread of the block has written, %s, at {0}", self.thread,
                          bytes, place_of(conflict.address).c_str());
  unwritten_ = std::make_unique<Report>(std::move(report));
}

void Worker::report_conflict(Fiber& self, Access kind, const Conflict& conflict, std::uintptr_t pc) {
  const std::string place = place_of(conflict.address);
  const char* doing = verb(kind);
  const bool is_race = conflict.kind == Conflict::kRace;
  Report report = describe(self, is_race ? "data race" : "missing async wait", pc);
  report.address = conflict.address;
  report.places.push_back(conflict.other.pc + launch->code_begin);
  report.threads.push_back(conflict.other.thread);
  if (is_race) {
    const bool is_shared = conflict.address - reinterpret_cast<std::uintptr_t>(shared) < launch->shared_bytes;
    const bool same_block = is_shared || conflict.other.block == block_ + 1;
    std::string whom = format("thread %u", conflict.other.thread);
    if (!same_block) {
      const std::uint64_t other = conflict.other.block - 1;
      whom += format(" of block (%zu, %zu, %zu)", static_cast<std::size_t>(other % launch->grid.x),
                     static_cast<std::size_t>(other / launch->grid.x % launch->grid.y),
                     static_cast<std::size_t>(other / (std::uint64_t{launch->grid.x} * launch->grid.y)));
    }
    report.message = format("thread %u %s %s at {0}, which %s %s at {1}, and nothing orders the two", self.thread,
                            doing, place.c_str(), whom.c_str(), conflict.other_wrote ? "wrote" : "read");
  } else {
    report.message = format("thread %u %s %s at {0} while the copy %sthat thread %u started at {1} may be under way",
                            self.thread, doing, place.c_str(),
                            conflict.kind == Conflict::kSourceInFlight ? "from there " : "", conflict.other.thread);
  }
  fail(std::move(report));
}

}  // namespace emulator
