// The functions that `-fsanitize=thread` calls before every memory access of a checked kernel. libtsan is not linked;
// these take its place.
#include <cstring>

#include "text.h"
#include "worker.h"

#define CALL_SITE reinterpret_cast<std::uintptr_t>(__builtin_return_address(0))

namespace emulator {
namespace {

// The GPU keeps a thread's own stack in registers and local memory: nobody else sees it.
template <Access kKind, std::size_t kBytes>
__attribute__((always_inline)) inline void check(const void* address, std::uintptr_t pc) {
  if (__builtin_expect(on_own_stack(address), 1)) return;
  Fiber& self = *current_fiber();
  if (reinterpret_cast<std::uintptr_t>(address) % kBytes != 0)
    self.worker->require_aligned(self, address, kBytes, kKind == Access::kRead ? Primitive::kLoad : Primitive::kStore,
                                 pc);
  self.worker->access(self, kKind, address, kBytes, pc);
}

__attribute__((always_inline)) inline void check_range(Access kind, const void* address, std::size_t bytes,
                                                       std::uintptr_t pc) {
  if (bytes == 0 || on_own_stack(address)) return;
  Fiber& self = *current_fiber();
  self.worker->access(self, kind, address, bytes, pc);
}

}  // namespace
}  // namespace emulator

using emulator::Access;

#define HOOKS(bytes)                                                                                                   \
  EMULATOR_API void __tsan_read##bytes(void* address) { emulator::check<Access::kRead, bytes>(address, CALL_SITE); }   \
  EMULATOR_API void __tsan_write##bytes(void* address) { emulator::check<Access::kWrite, bytes>(address, CALL_SITE); } \
  EMULATOR_API void __tsan_unaligned_read##bytes(void* address) {                                                      \
    emulator::check_range(Access::kRead, address, bytes, CALL_SITE);                                                   \
  }                                                                                                                    \
  EMULATOR_API void __tsan_unaligned_write##bytes(void* address) {                                                     \
    emulator::check_range(Access::kWrite, address, bytes, CALL_SITE);                                                  \
  }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

EMULATOR_API void __tsan_read_range(void* address, std::size_t bytes) {
  emulator::check_range(Access::kRead, address, bytes, CALL_SITE);
}
EMULATOR_API void __tsan_write_range(void* address, std::size_t bytes) {
  emulator::check_range(Access::kWrite, address, bytes, CALL_SITE);
}
EMULATOR_API void __tsan_init() {}

// Copies that the compiler does not expand: the linker hands them to these.
EMULATOR_API void* __wrap_memcpy(void* to, const void* from, std::size_t bytes) {
  emulator::check_range(Access::kRead, from, bytes, CALL_SITE);
  emulator::check_range(Access::kWrite, to, bytes, CALL_SITE);
  return std::memcpy(to, from, bytes);
}
EMULATOR_API void* __wrap_memmove(void* to, const void* from, std::size_t bytes) {
  emulator::check_range(Access::kRead, from, bytes, CALL_SITE);
  emulator::check_range(Access::kWrite, to, bytes, CALL_SITE);
  return std::memmove(to, from, bytes);
}
EMULATOR_API void* __wrap_memset(void* to, int value, std::size_t bytes) {
  emulator::check_range(Access::kWrite, to, bytes, CALL_SITE);
  return std::memset(to, value, bytes);
}
