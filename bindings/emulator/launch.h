// One kernel launch: what is launched, over which buffers, how, and what came of it.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "abi.h"
#include "matrix.h"
#include "order.h"
#include "variables.h"

namespace emulator {

class GlobalShadow;
struct Pending;
struct Touched;

enum class Schedule : int { kForward, kReverse, kRandom };

// Global memory that a pointer argument (or several, where views overlap) gives the kernel.
struct Buffer {
  std::uintptr_t begin = 0, end = 0;
  int argument = 0;
  bool writable = false;  // some parameter that points here is not const, and the array may be written
  unsigned element_bytes = 1;
  bool has_poison = false;                        // elements of unwritten memory are recognisable, the more so with:
  std::atomic<std::uint64_t>* written = nullptr;  // one bit per byte from `written_from` on that a kernel wrote
  std::uintptr_t written_from = 0;
  GlobalShadow* shadow = nullptr;
  bool has_constant = false;  // some parameter that points here is declared constant
  Touched* touched = nullptr;
};

struct Counters {
  std::uint64_t blocks = 0, threads = 0, barriers = 0, warp_collectives = 0, mma = 0, async_copies = 0;
  std::uint64_t global_read_bytes = 0, global_write_bytes = 0;
  std::uint64_t global_requests = 0, global_full_requests = 0, global_scalar_requests = 0;
  std::uint64_t global_request_sectors = 0;
  std::uint64_t global_read_sectors = 0, global_write_sectors = 0;  // distinct
  std::uint64_t shared_requests = 0, shared_wavefronts = 0, shared_bank_conflicts = 0;
  void add(const Counters& other);
};

// A failed check. `message` names places in the kernel's code as {0}, {1}, ...: the addresses in `places`.
struct Report {
  std::string kind, message, primitive;
  std::vector<std::uintptr_t> places;
  Dim3 block;
  std::vector<unsigned> threads;
  std::uintptr_t address = 0;
};

struct Launch {
  const Kernel* kernel = nullptr;
  const void* const* arguments = nullptr;
  Dim3 grid, block;
  std::optional<std::vector<std::uint64_t>> chosen;  // blocks of the grid that are run; without, all of them
  // Of a block: the kernel's __shared__ variables and the gaps between them, then what the launch asks for.
  unsigned shared_bytes = 0;
  const SharedLayout* shared_layout = nullptr;
  const std::vector<Variable>* constants = nullptr;  // __constant__ variables
  std::vector<Buffer> buffers;
  Pending* pending = nullptr;  // of launches that may still run; null: all before have ended
  bool checked = false;
  Schedule schedule = Schedule::kForward;
  std::uint64_t seed = 0;
  unsigned workers = 1;
  MmaRounding mma = MmaRounding::kFast;
  int exp2_ulps = 0;  // added to every inexact result
  float tanh_factor = 1;
  double rsqrt_factor = 1, reciprocal_factor = 1;
  int library_sign = 0;                         // -1, 0, 1: which way results of CUDA's math library are off
  std::uintptr_t code_begin = 0, code_end = 0;  // where the kernel library is mapped

  // Of the blocks that are run.
  std::uint64_t block_count() const {
    return chosen.has_value() ? chosen->size() : std::uint64_t{grid.x} * grid.y * grid.z;
  }
  unsigned thread_count() const { return block.x * block.y * block.z; }

  // Filled while running.
  std::atomic<std::uint64_t> next_block{0};
  std::atomic<bool> stop{false};
  AtomicVariables variables;
  std::mutex mutex;  // guards what follows
  std::unique_ptr<Report> report;
  Counters counters;
  std::map<std::uint64_t, std::string> printed;  // by block
  // Threads that met in one barrier or matrix instruction, called from different addresses: a divergence if these are
  // different places in the source, too. The first of each pair of addresses.
  std::map<std::pair<std::uintptr_t, std::uintptr_t>, Report> unlike_calls;

  void fail(Report report);
  // The block that is run as the n-th: its number in the grid.
  std::uint64_t block_at(std::uint64_t n) const;
};

// Runs the launch on worker threads. Calls `poll` every few milliseconds; where it returns false the launch is
// abandoned. Returns false for an abandoned launch.
bool run(Launch& launch, const std::function<bool()>& poll);

}  // namespace emulator
