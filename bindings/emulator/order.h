// Order by fences and atomic operations: what one thread releases and another acquires, in a block and between blocks.
//
// A fence releases what is ordered before it to the atomic operations that are ordered after it; an atomic operation
// sees what every earlier one of its variable released; a fence ordered after that acquires it. As the PTX ISA has it,
// "ordered" includes barriers on both sides, since __threadfence is fence.sc: every thread may fence before a barrier
// and one of them count after it.
#pragma once
#include <array>
#include <cstdint>
#include <deque>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "abi.h"

namespace emulator {

class Clocks;

// When and by whom an access, a fence or an atomic operation was made.
struct Stamp {
  std::uint32_t block = 0;  // 0: never
  std::uint32_t epoch = 0, clock = 0;
  std::uint32_t pc = 0;
  std::uint16_t thread = 0;
};

// A part of what one block did: all of it before an epoch, and in that epoch what single threads did up to a clock.
struct Past {
  std::uint32_t epoch = 0;                                      // 0: nothing
  std::vector<std::pair<std::uint16_t, std::uint32_t>> clocks;  // by thread
  bool covers(const Stamp& before) const;
  void add(const Past& other);
  bool operator==(const Past& other) const { return epoch == other.epoch && clocks == other.clocks; }
};

// An atomic operation as the shadow memory sees it.
struct AtomicTouch {
  std::uint8_t bytes;
  bool reads;                              // not an exchange, which may be the first to write
  std::array<std::uint32_t, 8> numbers{};  // among the operations of each cell that it spans: of the result
};

struct Publication;

// The publications of one atomic variable, in the order of its operations.
class AtomicVariable {
 public:
  const std::vector<const Publication*>* of_block(std::uint32_t block) const;
  std::size_t size() const { return all_.size(); }
  const Publication& operator[](std::size_t i) const { return all_[i]; }
  void append(Publication publication);

 private:
  std::deque<Publication> all_;
  std::unordered_map<std::uint32_t, std::vector<const Publication*>> by_block_;
};

// What block `block` has seen of a variable: its first `length` publications. Between blocks only those count that
// were made, and seen, at device scope.
struct Seen {
  const AtomicVariable* variable;
  std::size_t length;
  std::uint32_t block;
  Scope scope;
  bool admits(const Publication& publication) const;
  bool operator==(const Seen& other) const = default;
};

// What an atomic operation by a thread of `block` released: its own block's past, and what was acquired from others.
struct Publication {
  std::uint32_t block;
  Scope scope;
  std::size_t number;  // among those of the variable
  Past past;
  std::vector<Seen> acquired;
};

// The atomic variables of one launch (global memory) or of one block (shared memory). Whoever operates on one holds
// `mutex` meanwhile, so that the order of publications is that of the operations.
class AtomicVariables {
 public:
  AtomicVariable& at(std::uintptr_t address) { return variables_[address]; }
  void clear() { variables_.clear(); }
  std::mutex mutex;

 private:
  std::unordered_map<std::uintptr_t, AtomicVariable> variables_;
};

// What the threads of the running block have released and acquired.
class BlockOrder {
 public:
  // `mutex` guards the variables in global memory, to which other blocks append.
  void begin_block(std::uint32_t block, std::mutex& mutex);
  // A fence by thread `me`; `after` is when the thread goes on.
  void fence(Scope scope, const Stamp& me, const Stamp& after, const Clocks& clocks);
  // An atomic operation by `me` publishes what fences have released; one that is a release itself, all that is ordered
  // before it. The caller holds the mutex.
  void publish(AtomicVariable& variable, Scope scope, bool is_release, const Stamp& me, const Clocks& clocks);
  // One made by `me`, of which the result is used, has seen the first `length` publications of its variable. A fence
  // acquires them, or it does so itself.
  void observe(const AtomicVariable& variable, std::size_t length, Scope scope, bool is_acquire, const Stamp& me,
               const Clocks& clocks);
  // __syncthreads orders all that was done before it.
  void end_epoch();
  // Is `before`, made in block `block`, ordered before what `me` does now by what `me` has acquired?
  bool covers(std::uint32_t block, const Stamp& before, const Stamp& me, const Clocks& clocks) {
    return !acquired_.empty() && covers_acquired(block, before, me, clocks);
  }

 private:
  struct Fence {
    Scope scope;
    Stamp when;
    Past past;
  };
  struct Sight {
    Seen seen;
    Stamp when;
    bool is_fenced;  // acquired by a fence, which releases it as well
    std::unordered_map<std::uint32_t, std::vector<const Past*>> found;  // by block, what `covers` has looked up
    bool is_of(const Seen& other) const {
      return seen.variable == other.variable && seen.block == other.block && seen.scope == other.scope;
    }
  };
  static void add(std::vector<Sight>& sights, const Seen& seen, const Stamp& when, bool is_fenced,
                  const Clocks& clocks);
  static void merge(std::vector<Sight>& sights);
  void acquire(Seen seen, Scope scope, const Stamp& when, bool is_fenced, const Clocks& clocks);
  bool covers_acquired(std::uint32_t block, const Stamp& before, const Stamp& me, const Clocks& clocks);
  Past released(Scope scope, const Stamp& me, const Clocks& clocks) const;

  std::uint32_t block_ = 0;
  std::mutex* mutex_ = nullptr;
  std::vector<Fence> fences_;  // of the current epoch
  Past earlier_[2];            // released by fences of earlier epochs: at block scope or more, at device scope
  std::vector<Sight> seen_;    // by atomic operations, and waiting for a fence
  std::vector<Sight> acquired_;
};

}  // namespace emulator
