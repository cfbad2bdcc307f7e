// The variables of a kernel library: what its source declares __shared__, __device__ and __constant__.
//
// A __shared__ variable is a thread_local one to the compiler, which then asks at run time where it lies; the answer is
// the running block's shared memory (emulator_shared_variable). The compiler's own layout counts only for how many
// bytes a GPU would need.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace emulator {

struct Variable {
  std::string name;
  std::uintptr_t place = 0;  // offset in the linker's block of __shared__ variables, else the address
  std::size_t bytes = 0;
};

struct Variables {
  std::vector<Variable> shared, device, constant;
  std::size_t shared_bytes = 0;      // what a GPU would reserve
  std::size_t shared_alignment = 1;  // the strictest of any
};

// Those of the library at `path`, loaded at `base`.
Variables read_variables(const std::string& path, std::uintptr_t base);

// Where __shared__ variables lie in a block's shared memory: apart, so that running over the end of one is no access to
// another. Dynamic shared memory follows.
class SharedLayout {
 public:
  SharedLayout() = default;
  explicit SharedLayout(const Variables& variables);
  unsigned bytes() const { return bytes_; }  // with the gaps; a multiple of 1024
  unsigned declared_bytes() const { return declared_bytes_; }
  // Place of what the linker has at `offset`.
  unsigned place(std::uint64_t offset) const;
  // Does [place, place + bytes), which begins before dynamic memory, touch what belongs to no variable?
  bool is_outside(std::size_t place, std::size_t bytes) const {
    const Entry* entry = before(place);
    return entry == nullptr || place + bytes > entry->place + entry->bytes;
  }
  // "byte 8 of tile", "4 bytes past the end of tile (128 bytes)".
  std::string words(std::size_t place) const;

 private:
  struct Entry {
    std::string name;
    std::uintptr_t offset;
    std::size_t bytes;
    unsigned place;
  };
  const Entry* before(std::size_t place) const;  // the last that begins at `place` or before
  std::vector<Entry> entries_;                   // by offset, and by place
  unsigned bytes_ = 0, declared_bytes_ = 0;
};

}  // namespace emulator
