// Cooperative groups of one block: the block, tiles of a warp, the lanes that are together. A grid can be asked for its
// sizes, but its blocks cannot wait for each other: here a block runs to its end before the next one begins.
#pragma once
#include "cuda_runtime.h"

namespace cooperative_groups {

namespace details {

// Values of any size move in words.
template <class T, class Move>
T move_words(T value, Move&& move) {
  static_assert(std::is_trivially_copyable_v<T>, "only values that can be copied byte by byte move between lanes");
  unsigned words[(sizeof(T) + 3) / 4] = {};
  __builtin_memcpy(words, &value, sizeof(T));
  for (unsigned& word : words) word = move(word);
  __builtin_memcpy(&value, words, sizeof(T));
  return value;
}
__forceinline__ unsigned lane() { return emulator_linear_thread() % 32; }

}  // namespace details

class thread_block;
template <unsigned kSize, class Parent = void>
class thread_block_tile;

// Lanes of one warp, by their mask. `rank` counts the lanes of the mask below mine.
class coalesced_group {
 public:
  explicit coalesced_group(unsigned mask) : mask_(mask) {}
  void sync() const { __syncwarp(mask_); }
  unsigned num_threads() const { return static_cast<unsigned>(__popc(mask_)); }
  unsigned size() const { return num_threads(); }
  unsigned thread_rank() const { return static_cast<unsigned>(__popc(mask_ & ((1u << details::lane()) - 1u))); }
  unsigned meta_group_size() const { return 1; }
  unsigned meta_group_rank() const { return 0; }
  template <class T>
  T shfl(T value, unsigned rank) const {
    const int source = lane_of(rank % num_threads());
    return details::move_words(value, [&](unsigned word) { return __shfl_sync(mask_, word, source); });
  }
  template <class T>
  T shfl_up(T value, unsigned delta) const {
    const unsigned rank = thread_rank();
    return shfl(value, rank >= delta ? rank - delta : rank);
  }
  template <class T>
  T shfl_down(T value, unsigned delta) const {
    const unsigned rank = thread_rank() + delta;
    return shfl(value, rank < num_threads() ? rank : thread_rank());
  }
  int any(int predicate) const { return __any_sync(mask_, predicate); }
  int all(int predicate) const { return __all_sync(mask_, predicate); }
  unsigned ballot(int predicate) const { return packed(__ballot_sync(mask_, predicate)); }
  template <class T>
  unsigned match_any(T value) const {
    return packed(__match_any_sync(mask_, value));
  }
  template <class T>
  unsigned match_all(T value, int& all_equal) const {
    return packed(__match_all_sync(mask_, value, &all_equal));
  }
  unsigned emulator_mask() const { return mask_; }

 private:
  int lane_of(unsigned rank) const {
    unsigned rest = mask_;
    while (rank-- != 0) rest &= rest - 1;
    return __builtin_ctz(rest);
  }
  unsigned packed(unsigned lanes) const {  // bit i is that of the thread with rank i
    unsigned result = 0, rank = 0;
    for (unsigned rest = mask_; rest != 0; rest &= rest - 1, ++rank)
      result |= (lanes >> __builtin_ctz(rest) & 1u) << rank;
    return result;
  }
  unsigned mask_;
};
__forceinline__ coalesced_group coalesced_threads() { return coalesced_group(__activemask()); }

class thread_block {
 public:
  static void sync() { __syncthreads(); }
  static unsigned thread_rank() { return emulator_linear_thread(); }
  static unsigned num_threads() { return blockDim.x * blockDim.y * blockDim.z; }
  static unsigned size() { return num_threads(); }
  static dim3 group_index() { return blockIdx; }
  static dim3 thread_index() { return threadIdx; }
  static dim3 group_dim() { return blockDim; }
  static dim3 dim_threads() { return blockDim; }
};
__forceinline__ thread_block this_thread_block() { return {}; }

// kSize neighbouring lanes of a warp.
template <unsigned kSize, class Parent>
class thread_block_tile {
  static_assert(kSize >= 1 && kSize <= 32 && (kSize & (kSize - 1)) == 0,
                "a tile has 1, 2, 4, 8, 16 or 32 threads here: tiles of several warps are not emulated");

 public:
  static void sync() { __syncwarp(emulator_mask()); }
  static unsigned thread_rank() { return details::lane() % kSize; }
  static constexpr unsigned num_threads() { return kSize; }
  static constexpr unsigned size() { return kSize; }
  unsigned meta_group_rank() const { return rank_; }
  unsigned meta_group_size() const { return count_; }
  // The number of the tile among those of a group of `parent` threads, the caller its `rank`th.
  thread_block_tile(unsigned rank, unsigned parent) : rank_(rank / kSize), count_((parent + kSize - 1) / kSize) {}
  // A tile may forget what it is a tile of.
  template <class Other, class P = Parent, std::enable_if_t<std::is_void_v<P> && !std::is_void_v<Other>, int> = 0>
  thread_block_tile(const thread_block_tile<kSize, Other>& tile)
      : rank_(tile.meta_group_rank()), count_(tile.meta_group_size()) {}
  template <class T>
  T shfl(T value, unsigned rank) const {
    return move(value,
                [&](unsigned word) { return __shfl_sync(emulator_mask(), word, static_cast<int>(rank), kSize); });
  }
  template <class T>
  T shfl_up(T value, unsigned delta) const {
    return move(value, [&](unsigned word) { return __shfl_up_sync(emulator_mask(), word, delta, kSize); });
  }
  template <class T>
  T shfl_down(T value, unsigned delta) const {
    return move(value, [&](unsigned word) { return __shfl_down_sync(emulator_mask(), word, delta, kSize); });
  }
  template <class T>
  T shfl_xor(T value, unsigned lanes) const {
    return move(value,
                [&](unsigned word) { return __shfl_xor_sync(emulator_mask(), word, static_cast<int>(lanes), kSize); });
  }
  int any(int predicate) const { return __any_sync(emulator_mask(), predicate); }
  int all(int predicate) const { return __all_sync(emulator_mask(), predicate); }
  unsigned ballot(int predicate) const { return shifted(__ballot_sync(emulator_mask(), predicate)); }
  template <class T>
  unsigned match_any(T value) const {
    return shifted(__match_any_sync(emulator_mask(), value));
  }
  template <class T>
  unsigned match_all(T value, int& all_equal) const {
    return shifted(__match_all_sync(emulator_mask(), value, &all_equal));
  }
  static unsigned emulator_mask() { return (0xffffffffu >> (32 - kSize)) << first(); }

 private:
  unsigned rank_, count_;
  static unsigned first() { return details::lane() / kSize * kSize; }
  static unsigned shifted(unsigned lanes) { return lanes >> first(); }
  template <class T, class Move>
  static T move(T value, Move&& move) {
    return details::move_words(value, move);
  }
};

template <unsigned kSize>
thread_block_tile<kSize, thread_block> tiled_partition(const thread_block&) {
  return {thread_block::thread_rank(), thread_block::size()};
}
template <unsigned kSize, unsigned kParent, class Parent>
thread_block_tile<kSize, thread_block_tile<kParent, Parent>> tiled_partition(
    const thread_block_tile<kParent, Parent>&) {
  static_assert(kSize <= kParent, "a tile is no larger than what it is a tile of");
  return {details::lane() % kParent, kParent};
}
// The lanes of a group that come with the same value.
template <class Group, class Label>
coalesced_group labeled_partition(const Group& group, Label label) {
  return coalesced_group(__match_any_sync(group.emulator_mask(), label));
}
template <class Group>
coalesced_group binary_partition(const Group& group, bool predicate) {
  return labeled_partition(group, static_cast<int>(predicate));
}

class grid_group {
 public:
  bool is_valid() const { return false; }
  unsigned long long size() const { return num_blocks() * thread_block::size(); }
  unsigned long long num_threads() const { return size(); }
  unsigned long long num_blocks() const { return 1ull * gridDim.x * gridDim.y * gridDim.z; }
  unsigned long long block_rank() const {
    return (1ull * blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  }
  unsigned long long thread_rank() const { return block_rank() * thread_block::size() + thread_block::thread_rank(); }
  dim3 group_dim() const { return gridDim; }
  dim3 dim_blocks() const { return gridDim; }
  dim3 block_index() const { return blockIdx; }
  __attribute__((error("grid.sync() is not emulated: a block runs to its end before the next one begins"))) void sync()
      const;
};
__forceinline__ grid_group this_grid() { return {}; }

template <class Group>
void sync(const Group& group) {
  group.sync();
}
template <class Group>
bool elect_one(const Group& group) {
  return group.thread_rank() == 0;
}
template <class Group, class Function, class... Arguments>
void invoke_one(const Group& group, Function&& function, Arguments&&... arguments) {
  if (group.thread_rank() == 0) function(arguments...);
}

}  // namespace cooperative_groups
