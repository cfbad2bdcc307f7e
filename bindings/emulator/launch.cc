#include "launch.h"

#include <pthread.h>
#include <signal.h>
#include <ucontext.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <numeric>
#include <thread>

#include "worker.h"

namespace emulator {
namespace {

thread_local Worker* this_worker = nullptr;
thread_local Launch* this_launch = nullptr;

// --- faults in kernels: turned into reports while a launch runs ---

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGURG};
struct sigaction previous_actions[sizeof(kSignals) / sizeof(kSignals[0])];
std::mutex handler_mutex;
int handler_users = 0;

void pass_on(int signal, siginfo_t* info, void* context) {
  for (std::size_t i = 0; i < std::size(kSignals); ++i) {
    if (kSignals[i] != signal) continue;
    const struct sigaction& previous = previous_actions[i];
    if ((previous.sa_flags & SA_SIGINFO) != 0)
      previous.sa_sigaction(signal, info, context);
    else if (previous.sa_handler == SIG_DFL && signal != SIGURG)
      ::signal(signal, SIG_DFL);  // faults again, then ends the process
    else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN)
      previous.sa_handler(signal);
  }
}

// Runs on the worker's alternate stack. Makes the worker continue in run_block(), as if the block had ended.
void handle_signal(int signal, siginfo_t* info, void* context) {
  auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const auto pc = static_cast<std::uintptr_t>(registers[REG_RIP]),
             stack = static_cast<std::uintptr_t>(registers[REG_RSP]);
  Worker* worker = this_worker;
  if (worker == nullptr || !worker->running.load(std::memory_order_relaxed) || !worker->owns(stack)) {
    pass_on(signal, info, context);
    return;
  }
  // A request to stop is only obeyed inside kernel code: the runtime may hold a lock, and looks at `stop` by itself.
  if (signal == SIGURG && pc - this_launch->code_begin >= this_launch->code_end - this_launch->code_begin) return;
  void* resume_at = worker->note_fault(signal, reinterpret_cast<std::uintptr_t>(info->si_addr), pc, stack);
  registers[REG_RIP] = reinterpret_cast<greg_t>(&emulator_resume);
  registers[REG_RDI] = reinterpret_cast<greg_t>(resume_at);
}

class FaultHandlers {
 public:
  FaultHandlers() {
    const std::lock_guard<std::mutex> lock(handler_mutex);
    if (handler_users++ != 0) return;
    struct sigaction action{};
    action.sa_sigaction = handle_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigemptyset(&action.sa_mask);
    for (std::size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &action, &previous_actions[i]);
  }
  ~FaultHandlers() {
    const std::lock_guard<std::mutex> lock(handler_mutex);
    if (--handler_users != 0) return;
    for (std::size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &previous_actions[i], nullptr);
  }
};

class AlternateStack {
 public:
  AlternateStack() : memory_(new char[kBytes]) {
    stack_t stack{};
    stack.ss_sp = memory_.get();
    stack.ss_size = kBytes;
    sigaltstack(&stack, &previous_);
  }
  ~AlternateStack() { sigaltstack(&previous_, nullptr); }

 private:
  static constexpr std::size_t kBytes = 64 * 1024;
  std::unique_ptr<char[]> memory_;
  stack_t previous_{};
};

// --- workers are kept from launch to launch: their stacks and shadows are costly to map ---

std::mutex idle_mutex;
std::vector<std::unique_ptr<Worker>>& idle_workers() {
  static auto* workers = new std::vector<std::unique_ptr<Worker>>();  // never destroyed: threads may outlive statics
  return *workers;
}

std::unique_ptr<Worker> take_worker() {
  const std::lock_guard<std::mutex> lock(idle_mutex);
  if (idle_workers().empty()) return std::make_unique<Worker>();
  auto worker = std::move(idle_workers().back());
  idle_workers().pop_back();
  return worker;
}

void return_worker(std::unique_ptr<Worker> worker) {
  const std::lock_guard<std::mutex> lock(idle_mutex);
  idle_workers().push_back(std::move(worker));
}

}  // namespace

void Counters::add(const Counters& other) {
  blocks += other.blocks;
  threads += other.threads;
  barriers += other.barriers;
  warp_collectives += other.warp_collectives;
  mma += other.mma;
  async_copies += other.async_copies;
  global_read_bytes += other.global_read_bytes;
  global_write_bytes += other.global_write_bytes;
  global_requests += other.global_requests;
  global_full_requests += other.global_full_requests;
  global_scalar_requests += other.global_scalar_requests;
  global_request_sectors += other.global_request_sectors;
  shared_requests += other.shared_requests;
  shared_wavefronts += other.shared_wavefronts;
  shared_bank_conflicts += other.shared_bank_conflicts;
}

void Launch::fail(Report next) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (report == nullptr) report = std::make_unique<Report>(std::move(next));
  stop.store(true, std::memory_order_relaxed);
}

std::uint64_t Launch::block_at(std::uint64_t n) const {
  const std::uint64_t count = block_count();
  if (schedule == Schedule::kReverse) n = count - 1 - n;
  if (schedule == Schedule::kRandom) {
    // A permutation: n times a number coprime to the count, shifted.
    std::uint64_t factor = (seed * 2654435761u + 40503) % count;
    while (std::gcd(factor, count) != 1) factor = (factor + 1) % count;
    n = static_cast<std::uint64_t>((static_cast<unsigned __int128>(n) * factor + seed) % count);
  }
  return chosen.has_value() ? (*chosen)[n] : n;
}

bool run(Launch& launch, const std::function<bool()>& poll) {
  constexpr auto kPollInterval = std::chrono::milliseconds(20);
  const FaultHandlers handlers;
  const unsigned count = static_cast<unsigned>(std::min<std::uint64_t>(launch.workers, launch.block_count()));
  std::mutex done_mutex;
  std::condition_variable done;
  unsigned left = count;
  std::vector<std::unique_ptr<Worker>> workers;
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < count; ++i) {
    workers.push_back(take_worker());
    workers.back()->begin(launch);
  }
  for (unsigned i = 0; i < count; ++i) {
    threads.emplace_back([&, worker = workers[i].get()] {
      const AlternateStack stack;
      this_worker = worker;
      this_launch = &launch;
      worker->run();
      this_worker = nullptr;
      const std::lock_guard<std::mutex> lock(done_mutex);
      if (--left == 0) done.notify_one();
    });
  }
  bool is_abandoned = false;
  {
    std::unique_lock<std::mutex> lock(done_mutex);
    while (!done.wait_for(lock, kPollInterval, [&] { return left == 0; })) {
      lock.unlock();
      if (is_abandoned || launch.stop.load()) {  // a kernel may spin without ever calling the runtime
        for (std::thread& thread : threads) pthread_kill(thread.native_handle(), SIGURG);
      } else if (!poll()) {
        is_abandoned = true;
        launch.stop.store(true);
      }
      lock.lock();
    }
  }
  for (std::thread& thread : threads) thread.join();
  for (auto& worker : workers) return_worker(std::move(worker));
  return !is_abandoned;
}

}  // namespace emulator
