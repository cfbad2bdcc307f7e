// Who touched which bytes since they were last written: the state from which races and reads of unwritten memory are
// told.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

#include "clocks.h"
#include "order.h"

namespace emulator {

enum class Access : std::uint8_t {
  kRead,
  kWrite,
  kAtomic,         // at device scope
  kAtomicOfBlock,  // at block scope
  kAtomicResult,   // the kernel uses what an atomic operation has returned
  kAsyncIssue,     // an asynchronous copy begins to fill its target
  kAsyncLand,      // and has filled it
  kAsyncRead,      // an asynchronous copy begins to read its source
  kAsyncReadDone,  // and has read it
};
inline bool is_atomic(Access kind) { return kind == Access::kAtomic || kind == Access::kAtomicOfBlock; }
inline bool is_read(Access kind) {
  return kind == Access::kAtomicResult || kind == Access::kRead || kind == Access::kAsyncRead ||
         kind == Access::kAsyncReadDone;
}

// Accesses of one kind by lanes of one warp, at one place in the code and one time.
struct WarpAccess {
  std::uint32_t block = 0;  // 0: none
  std::uint32_t epoch = 0, clock = 0;
  std::uint32_t pc = 0;
  std::uint32_t lanes = 0;
  std::uint16_t warp = 0;
};

struct AtomicAccess : WarpAccess {
  bool is_of_block_scope = false;
  std::uint8_t bytes = 0;
  std::uint32_t number = 0;  // of the last of them among the cell's
};

// A thread knows that its cell's first `number` atomic operations are over: it used the result of the last of them.
struct Observation {
  Stamp who;
  std::uint32_t number;
};

// The accesses of a cell that its first members have no room for. What a list holds counts only if the cell says so.
struct Overflow {
  std::vector<WarpAccess> readers;
  std::vector<AtomicAccess> atomics;
  std::vector<Observation> observations;
  std::vector<Stamp> sources;  // asynchronous copies that may be reading
  std::uint32_t atomic_count = 0;
};

struct Cell {
  Overflow* more;                              // nullptr in most cells
  Stamp writer;                                // the last plain write
  WarpAccess reader;                           // a reader since then
  bool is_in_flight;                           // the last write is an asynchronous copy that nobody has waited for
  bool has_readers, has_atomics, has_sources;  // in `more`
};

struct Conflict {
  enum Kind : std::uint8_t { kNone, kRace, kUninitialized, kInFlight, kSourceInFlight } kind = kNone;
  bool other_wrote = false;
  Stamp other;
  std::uintptr_t address = 0;
};

// State per 16-byte line, split into cells of 4 bytes, or of 1, once a line is touched in parts. Memory is committed as
// it is touched.
class Shadow {
 public:
  Shadow() = default;
  Shadow(const Shadow&) = delete;
  Shadow& operator=(const Shadow&) = delete;
  ~Shadow();
  void map(std::uintptr_t base, std::size_t bytes);
  // The lists that have anything in them are those that the cell says.
  Overflow& overflow(Cell& cell);

 protected:
  static constexpr unsigned kLineBytes = 16;
  struct Line {
    Cell whole;
    std::uint8_t cell_bytes;  // 16 (or 0): `whole` holds the state, else the parts do
    bool has_parts;           // they have been used before
    std::atomic_flag lock;
  };
  // Applies `touch` to the state of [address, address + bytes); stops at the first conflict.
  template <bool kLocked, class Touch>
  Conflict apply(bool is_write, std::uintptr_t address, std::size_t bytes, Touch&& touch);

 private:
  void unmap();
  void copy(Cell& to, const Cell& from, bool is_fresh);
  void split(Line& line, Cell* parts, unsigned cell_bytes);
  std::uintptr_t base_ = 0;
  std::size_t line_count_ = 0, mapped_bytes_ = 0;
  Line* lines_ = nullptr;
  Cell* parts_ = nullptr;
  std::mutex overflow_mutex_;
  std::deque<Overflow> overflows_;
};

// `atomic` is the operation if `kind` is one, or the use of its result.
// Shared memory of the block that a worker runs. Stamps of earlier blocks count as never.
class SharedShadow : public Shadow {
 public:
  Conflict touch(Access kind, std::uintptr_t address, std::size_t bytes, const Stamp& me, std::uint32_t block,
                 const Clocks& clocks, BlockOrder& order, AtomicTouch* atomic);
};

// Global memory, touched by all workers at once. Only fences and atomic operations order blocks within a launch.
class GlobalShadow : public Shadow {
 public:
  Conflict touch(Access kind, std::uintptr_t address, std::size_t bytes, const Stamp& me, const Clocks& clocks,
                 BlockOrder& order, AtomicTouch* atomic);
};

}  // namespace emulator
