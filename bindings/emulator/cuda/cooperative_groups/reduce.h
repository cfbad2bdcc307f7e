// reduce() over a tile or coalesced threads, in a butterfly or, of a group that is no power of two, rank by rank.
#pragma once
#include "../cooperative_groups.h"

namespace cooperative_groups {

template <class T>
struct plus {
  T operator()(T a, T b) const { return a + b; }
};
template <class T>
struct less {
  T operator()(T a, T b) const { return b < a ? b : a; }
};
template <class T>
struct greater {
  T operator()(T a, T b) const { return a < b ? b : a; }
};
template <class T>
struct bit_and {
  T operator()(T a, T b) const { return a & b; }
};
template <class T>
struct bit_or {
  T operator()(T a, T b) const { return a | b; }
};
template <class T>
struct bit_xor {
  T operator()(T a, T b) const { return a ^ b; }
};

template <unsigned kSize, class Parent, class T, class Combine>
T reduce(const thread_block_tile<kSize, Parent>& group, T value, Combine combine) {
  for (unsigned distance = kSize / 2; distance != 0; distance /= 2)
    value = combine(value, group.shfl_xor(value, distance));
  return value;
}
template <class T, class Combine>
T reduce(const coalesced_group& group, T value, Combine combine) {
  T result = group.shfl(value, 0);
  for (unsigned rank = 1; rank < group.size(); ++rank) result = combine(result, group.shfl(value, rank));
  return result;
}

}  // namespace cooperative_groups
