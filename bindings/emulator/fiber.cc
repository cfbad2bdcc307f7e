#include "fiber.h"

#include <sys/mman.h>

#include <new>

// The System V ABI keeps rbx, rbp and r12 to r15 across a call; nothing else needs saving.
asm(R"(
  .text
  .globl emulator_switch
  .hidden emulator_switch
  .type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emulator_switch, .-emulator_switch
  .globl emulator_resume
  .hidden emulator_resume
  .type emulator_resume, @function
emulator_resume:
  movq %rdi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emulator_resume, .-emulator_resume
)");

namespace emulator {

const char* name_of(Primitive primitive) {
  static const char* const names[] = {"",
                                      "__syncthreads",
                                      "named barrier",
                                      "__syncwarp",
                                      "__shfl_sync",
                                      "__shfl_up_sync",
                                      "__shfl_down_sync",
                                      "__shfl_xor_sync",
                                      "__ballot_sync",
                                      "__any_sync",
                                      "__all_sync",
                                      "ldmatrix",
                                      "ldmatrix.trans",
                                      "stmatrix",
                                      "stmatrix.trans",
                                      "mma",
                                      "async_copy",
                                      "async_wait",
                                      "atomic",
                                      "load_vector",
                                      "store_vector",
                                      "memory log",
                                      "yield",
                                      "__match_any_sync",
                                      "__match_all_sync",
                                      "__reduce_sync",
                                      "__activemask"};
  return names[static_cast<int>(primitive)];
}

FiberArena::~FiberArena() { release(); }

void FiberArena::release() {
  for (Fiber* fiber : fibers_) fiber->~Fiber();
  fibers_.clear();
  if (mapping_ != nullptr) munmap(mapping_, mapped_bytes_);
  mapping_ = nullptr;
}

void FiberArena::reserve(unsigned count) {
  if (count <= fibers_.size()) return;
  release();
  mapped_bytes_ = (count + 1) * kRegionBytes;
  mapping_ = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) {
    mapping_ = nullptr;
    throw std::bad_alloc();
  }
  begin_ = region_of(reinterpret_cast<std::uintptr_t>(mapping_) + kRegionBytes - 1);
  for (unsigned i = 0; i < count; ++i) {
    const std::uintptr_t region = begin_ + i * kRegionBytes;
    mprotect(reinterpret_cast<void*>(region), kGuardBytes, PROT_NONE);
    fibers_.push_back(new (fiber_at(region)) Fiber());
  }
}

void FiberArena::prepare(Fiber& fiber, void (*entry)()) {
  // Seen from entry() the stack looks as after a call: the address above the return address is a multiple of 16.
  auto* top = reinterpret_cast<void**>(reinterpret_cast<std::uintptr_t>(&fiber) & ~std::uintptr_t{15}) - 2;
  top[0] = reinterpret_cast<void*>(entry);
  top[1] = nullptr;
  for (int i = 1; i <= 6; ++i) top[-i] = nullptr;
  fiber.stack_pointer = top - 6;
}

}  // namespace emulator
