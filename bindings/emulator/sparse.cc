#include "sparse.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <new>
#include <vector>

namespace emulator {
namespace {

// Memory that holds a pattern is one file of it, mapped again and again: large enough that the kernel's limit on
// mappings is far away, small enough to be kept.
constexpr std::size_t kFileBytes = std::size_t{32} << 20;

int filled_file(std::uint16_t pattern) {
  const int file = memfd_create("emulator-pattern", MFD_CLOEXEC);
  if (file < 0) throw std::bad_alloc();
  const std::vector<std::uint16_t> part(std::size_t{1} << 19, pattern);
  const std::size_t part_bytes = part.size() * sizeof(part[0]);
  for (std::size_t done = 0; done < kFileBytes;) {
    const ssize_t written = write(file, part.data(), std::min(part_bytes, kFileBytes - done));
    if (written <= 0 || written % 2 != 0) {
      close(file);
      throw std::bad_alloc();
    }
    done += static_cast<std::size_t>(written);
  }
  return file;
}

int file_of(std::uint16_t pattern) {
  static std::mutex mutex;
  static std::map<std::uint16_t, int> files;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [entry, is_new] = files.try_emplace(pattern, -1);
  if (entry->second < 0) entry->second = filled_file(pattern);
  return entry->second;
}

}  // namespace

SparseMemory::SparseMemory(std::size_t bytes, std::uint16_t pattern) : bytes_(std::max<std::size_t>(bytes, 1)) {
  constexpr int kProtection = PROT_READ | PROT_WRITE, kFlags = MAP_PRIVATE | MAP_NORESERVE;
  const int file = pattern == 0 ? -1 : file_of(pattern);
  data_ = mmap(nullptr, bytes_, kProtection, kFlags | MAP_ANONYMOUS, -1, 0);
  if (data_ == MAP_FAILED) throw std::bad_alloc();
  if (pattern == 0) return;
  for (std::size_t at = 0; at < bytes_; at += kFileBytes) {
    void* place = static_cast<char*>(data_) + at;
    if (mmap(place, std::min(kFileBytes, bytes_ - at), kProtection, kFlags | MAP_FIXED, file, 0) != MAP_FAILED)
      continue;
    munmap(data_, bytes_);
    throw std::bad_alloc();
  }
}

SparseMemory::~SparseMemory() { munmap(data_, bytes_); }

}  // namespace emulator
