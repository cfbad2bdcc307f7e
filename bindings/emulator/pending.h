// Programmatic dependent launch: a launch that overlaps the one before it may start while that one still runs. What
// launches have touched is kept until they must have ended, so that a later one can be told of touching it too early.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "shadow.h"

namespace emulator {

// A set of bytes of [begin, end), one bit each. Any number of threads may mark at once. Memory is committed as it is
// touched.
class ByteSet {
 public:
  ByteSet(std::uintptr_t begin, std::uintptr_t end);
  void mark(std::uintptr_t address, std::size_t bytes) {
    const std::uintptr_t first = address - base_;
    const unsigned shift = first % kWordBytes;
    if (shift + bytes <= kWordBytes)
      mark_word(first / kWordBytes, ones(bytes) << shift);
    else
      mark_words(first, bytes);
  }
  // The first of these bytes that is in the set, else 0.
  std::uintptr_t find(std::uintptr_t address, std::size_t bytes) const;
  // Whether the set has bytes in the pages of this range.
  bool is_near(std::uintptr_t begin, std::uintptr_t end) const;
  std::uint64_t sectors() const;  // of 32 bytes, with a byte of the set in each

 private:
  static constexpr std::size_t kWordBytes = 64, kPageWords = 64, kPageBytes = kWordBytes * kPageWords;
  using Word = std::atomic<std::uint64_t>;
  struct Free {
    void operator()(Word* words) const { std::free(words); }
  };
  using Words = std::unique_ptr<Word[], Free>;
  static Words allocate(std::size_t count);
  static std::uint64_t ones(std::size_t count) {
    return count >= kWordBytes ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
  }
  static void set(Word& word, std::uint64_t mask) {
    if ((word.load(std::memory_order_relaxed) & mask) != mask) word.fetch_or(mask, std::memory_order_relaxed);
  }
  void mark_word(std::size_t index, std::uint64_t mask) {
    Word& word = words_[index];
    if ((word.load(std::memory_order_relaxed) & mask) == mask) return;
    word.fetch_or(mask, std::memory_order_relaxed);
    const std::size_t page = index / kPageWords;
    set(pages_[page / 64], std::uint64_t{1} << page % 64);
  }
  void mark_words(std::uintptr_t first, std::size_t bytes);

  std::uintptr_t base_;  // a multiple of kPageBytes
  std::size_t page_count_;
  Words words_, pages_;  // pages_: one bit for each page with a byte of the set, so that large empty ones cost nothing
};

// What a launch has touched of one buffer.
struct Touched {
  std::uintptr_t begin, end;
  ByteSet read, written;
  Touched(std::uintptr_t begin, std::uintptr_t end) : begin(begin), end(end), read(begin, end), written(begin, end) {}
};
using TouchedMemory = std::vector<std::shared_ptr<const Touched>>;

// A launch of the past that may still run. When its grid_dependency_wait returns, the launches `waits_for` have ended.
struct Earlier {
  std::uint64_t number = 0;
  std::string name;
  TouchedMemory memory;
  std::vector<std::uint64_t> waits_for;
  bool has_waited = false;  // some thread has: its end is also the end of what it waits for
};

// A pointer argument's memory, and whether its parameter is declared constant (const T* __restrict__).
struct ArgumentRange {
  std::uintptr_t begin, end;
  bool is_constant;
};

// What a launch that overlaps others has to look out for.
struct Pending {
  std::vector<std::pair<Earlier, bool>> earlier;  // the latest first; true: has ended once this launch's wait returns
  std::vector<ArgumentRange> arguments;           // empty where none is constant
  bool outlasts_wait = false;                     // some of `earlier` may still run after the wait
  // Filled while running.
  std::atomic<bool> has_waited{false};             // some thread has
  std::atomic<bool> releases_late{false};          // some block has let the next launch start only after it had waited
  bool is_constant(std::uintptr_t address) const;  // is it read through a parameter that is declared constant?
  bool may_write(std::uintptr_t begin, std::uintptr_t end) const;  // does `earlier` write there, or close by?
};

// The launches of one stream, in their order.
class Stream {
 public:
  // What a launch that overlaps the one before it has to look out for; null if nothing can still run.
  std::unique_ptr<Pending> overlap() const;
  // The launch has been run. pending: what overlap() gave, null for one that waited for all before it.
  void add(std::string name, TouchedMemory memory, const Pending* pending);
  // All launches have ended, as before a copy.
  void drain() { running_.clear(); }
  // This memory was freed, and is another array's from now on.
  void forget(std::uintptr_t begin, std::uintptr_t end);

 private:
  // A GPU runs no more grids than this at once (compute capability 7 and newer): the one before them has ended.
  static constexpr std::size_t kMostGrids = 128;
  std::vector<Earlier> running_;  // what may still run when the next launch may start, the latest first
  std::uint64_t count_ = 0;
};

// Which threads of the running block have returned from grid_dependency_wait, or are ordered after one that has.
class GridWaits {
 public:
  void begin_block(unsigned threads);
  void end_block(Pending& pending) const;
  void wait(const Stamp& me);
  void release(const Stamp& me, const Clocks& clocks);
  bool has_waited(const Stamp& me, const Clocks& clocks);
  // Has this thread been found to have waited?
  bool is_known(unsigned thread) const { return has_waited_[thread] != 0; }

 private:
  std::vector<std::uint8_t> has_waited_;  // by thread, as far as somebody asked
  std::vector<Stamp> waits_;              // the first of each thread
  bool released_early_ = false;           // a thread that had not waited let the next launch start
};

}  // namespace emulator
