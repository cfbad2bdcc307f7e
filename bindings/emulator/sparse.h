// Memory that is larger than the machine's: only what is written takes room.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

// `bytes` of memory that read as `pattern`, two bytes over and over, until they are written.
class SparseMemory {
 public:
  SparseMemory(std::size_t bytes, std::uint16_t pattern);  // throws std::bad_alloc
  ~SparseMemory();
  SparseMemory(const SparseMemory&) = delete;
  SparseMemory& operator=(const SparseMemory&) = delete;

  void* data() const { return data_; }
  std::size_t size() const { return bytes_; }

 private:
  std::size_t bytes_ = 0;
  void* data_ = nullptr;
};

}  // namespace emulator
