// Twins of locks, flags and turns between blocks; see twins_fences.cu. A block waits only for what the block that holds
// the lock, or one that took an earlier ticket, will do in any case: no schedule hangs.
#include <platform.cuh>

__device__ __forceinline__ void lock(int* mutex) {
  while (atomicCAS(mutex, 0, 1) != 0) {
  }
}

__device__ __forceinline__ void wait_for(int* flag, int value) {
  while (atomicAdd(flag, 0) != value) {
  }
}

// --- locks, blocks of one thread ---

__global__ void ok_lock(float* total, int* mutex) {
  lock(mutex);
  __threadfence();
  *total += 1.0f;
  __threadfence();
  atomicExch(mutex, 0);
}

// The fence after the lock publishes nothing that follows it.
__global__ void lock_without_release(float* total, int* mutex) {
  lock(mutex);
  __threadfence();
  *total += 1.0f;  // bug: lock_without_release
  atomicExch(mutex, 0);
}

__global__ void lock_without_acquire(float* total, int* mutex) {
  lock(mutex);
  *total += 1.0f;  // bug: lock_without_acquire
  __threadfence();
  atomicExch(mutex, 0);
}

__global__ void unlock_before_fence(float* total, int* mutex) {
  lock(mutex);
  __threadfence();
  *total += 1.0f;  // bug: unlock_before_fence
  atomicExch(mutex, 0);
  __threadfence();
}

__global__ void lock_of_block_scope(float* total, int* mutex) {
  lock(mutex);
  __threadfence_block();
  *total += 1.0f;  // bug: lock_of_block_scope
  __threadfence_block();
  atomicExch(mutex, 0);
}

__global__ void ok_two_under_one_lock(float* total, int* mutex, int* count) {
  lock(mutex);
  __threadfence();
  *total += 1.0f;
  *count += 1;
  __threadfence();
  atomicExch(mutex, 0);
}

// The count is touched when the lock has been given back.
__global__ void touch_after_release(float* total, int* mutex, int* count) {
  lock(mutex);
  __threadfence();
  *total += 1.0f;
  __threadfence();
  atomicExch(mutex, 0);
  *count += 1;  // bug: touch_after_release
}

// A plain store is no strong write: it takes part in no release pattern, and races with the others' atomics.
__global__ void unlock_plainly(float* total, int* mutex) {
  while (atomicCAS(mutex, 0, 1) != 0) {  // bug: unlock_plainly
  }
  __threadfence();
  *total += 1.0f;
  __threadfence();
  *mutex = 0;  // bug: unlock_plainly
}

// Two locks guard one sum.
__global__ void two_locks(float* total, int* mutex) {
  lock(mutex + blockIdx.x % 2);
  __threadfence();
  *total += 1.0f;  // bug: two_locks
  __threadfence();
  atomicExch(mutex + blockIdx.x % 2, 0);
}

__global__ void ok_two_locks(float* total, int* mutex) {
  const unsigned i = blockIdx.x % 2;
  lock(mutex + i);
  __threadfence();
  total[i] += 1.0f;
  __threadfence();
  atomicExch(mutex + i, 0);
}

// Each block has a lock of its own in shared memory: it keeps no other block out.
__global__ void lock_in_shared_memory(float* total) {
  int* mutex = shared_memory<int>();
  *mutex = 0;
  lock(mutex);
  __threadfence();
  *total += 1.0f;  // bug: lock_in_shared_memory
  __threadfence();
  atomicExch(mutex, 0);
}

// The lock in shared memory keeps the block's own warps apart: thread 0 of each takes it in turn.
__global__ void ok_lock_in_shared_memory(float* total) {
  int* mutex = shared_memory<int>();
  if (threadIdx.x == 0) *mutex = 0;
  __syncthreads();
  if (threadIdx.x % 32 != 0) return;
  lock(mutex);
  __threadfence_block();
  total[blockIdx.x] += 1.0f;
  __threadfence_block();
  atomicExch(mutex, 0);
}

// --- done once, by whoever comes first ---

__global__ void ok_once(float* out, float* table, int* mutex, int* ready) {
  if (atomicAdd(ready, 0) == 0) {
    lock(mutex);
    if (atomicAdd(ready, 0) == 0) {
      *table = 5.0f;
      __threadfence();
      atomicExch(ready, 1);
    }
    atomicExch(mutex, 0);
  }
  __threadfence();
  out[blockIdx.x] = *table;
}

// The check outside the lock is a plain read of what another block writes.
__global__ void once_checked_plainly(float* out, float* table, int* mutex, int* ready) {
  if (*ready == 0) {  // bug: once_checked_plainly
    lock(mutex);
    if (atomicAdd(ready, 0) == 0) {  // bug: once_checked_plainly
      *table = 5.0f;
      __threadfence();
      atomicExch(ready, 1);  // bug: once_checked_plainly
    }
    atomicExch(mutex, 0);
  }
  __threadfence();
  out[blockIdx.x] = *table;
}

// Whoever finds it done does not acquire what the other block wrote.
__global__ void once_without_acquire(float* out, float* table, int* mutex, int* ready) {
  if (atomicAdd(ready, 0) == 0) {
    lock(mutex);
    if (atomicAdd(ready, 0) == 0) {
      *table = 5.0f;  // bug: once_without_acquire
      __threadfence();
      atomicExch(ready, 1);
    }
    atomicExch(mutex, 0);
  }
  out[blockIdx.x] = *table;  // bug: once_without_acquire
}

// --- handed on from block to block, in the order of tickets ---

// The block in the middle passes on what it has acquired: causality is transitive, one fence serves both directions.
__global__ void ok_handed_on(float* out, float* data, int* next, int* flags) {
  const int mine = atomicAdd(next, 1);
  if (mine == 0) {
    *data = 7.0f;
    __threadfence();
  } else {
    wait_for(flags + mine - 1, 1);
    __threadfence();
  }
  if (mine == static_cast<int>(gridDim.x) - 1) out[0] = *data;
  atomicExch(flags + mine, 1);
}

// The block in the middle passes the flag on without a fence, and with it nothing.
__global__ void handed_on_without_fence(float* out, float* data, int* next, int* flags) {
  const int mine = atomicAdd(next, 1), last = static_cast<int>(gridDim.x) - 1;
  if (mine == 0) {
    *data = 7.0f;  // bug: handed_on_without_fence
    __threadfence();
  } else {
    wait_for(flags + mine - 1, 1);
    if (mine == last) __threadfence();
  }
  if (mine == last) out[0] = *data;  // bug: handed_on_without_fence
  atomicExch(flags + mine, 1);
}

// One flag for all: the block in the middle replaces its value without a fence. Its exchange reads what the first block
// wrote, so that the last block observes both through it.
__global__ void ok_handed_on_by_exchange(float* out, float* data, int* next, int* flags) {
  const int mine = atomicAdd(next, 1);
  if (mine == 0) {
    *data = 7.0f;
    __threadfence();
  }
  wait_for(flags, mine);
  if (mine == static_cast<int>(gridDim.x) - 1) {
    __threadfence();
    out[0] = *data;
  }
  atomicExch(flags, mine + 1);
}

// Every block raises a flag of its own; the last to begin waits for all of them.
__global__ void ok_waits_for_all(float* out, float* data, int* next, int* flags) {
  const int mine = atomicAdd(next, 1), last = static_cast<int>(gridDim.x) - 1;
  if (mine != last) {
    data[mine] = 7.0f;
    __threadfence();
    atomicExch(flags + mine, 1);
    return;
  }
  for (int i = 0; i < last; ++i) wait_for(flags + i, 1);
  __threadfence();
  float sum = 0.0f;
  for (int i = 0; i < last; ++i) sum += data[i];
  out[0] = sum / static_cast<float>(last);
}

// It waits for the one before it only; that one has waited for nobody.
__global__ void waits_for_one_of_all(float* out, float* data, int* next, int* flags) {
  const int mine = atomicAdd(next, 1), last = static_cast<int>(gridDim.x) - 1;
  if (mine != last) {
    data[mine] = 7.0f;  // bug: waits_for_one_of_all
    __threadfence();
    atomicExch(flags + mine, 1);
    return;
  }
  wait_for(flags + last - 1, 1);
  __threadfence();
  float sum = 0.0f;
  for (int i = 0; i < last; ++i) sum += data[i];  // bug: waits_for_one_of_all
  out[0] = sum / static_cast<float>(last);
}

// Look-back: a tile's prefix is that of the tile before, and its own share.
__global__ void ok_look_back(float* prefix, int* next, int* flags) {
  const int tile = atomicAdd(next, 1);
  float before = 0.0f;
  if (tile > 0) {
    wait_for(flags + tile - 1, 1);
    __threadfence();
    before = prefix[tile - 1];
  }
  prefix[tile] = before + 1.0f;
  __threadfence();
  atomicExch(flags + tile, 1);
}

// The flag goes up, behind a fence, before the prefix is there.
__global__ void look_back_flag_first(float* prefix, int* next, int* flags) {
  const int tile = atomicAdd(next, 1);
  float before = 0.0f;
  if (tile > 0) {
    wait_for(flags + tile - 1, 1);
    __threadfence();
    before = prefix[tile - 1];  // bug: look_back_flag_first
  }
  __threadfence();
  atomicExch(flags + tile, 1);
  prefix[tile] = before + 1.0f;  // bug: look_back_flag_first
}

__global__ void look_back_without_acquire(float* prefix, int* next, int* flags) {
  const int tile = atomicAdd(next, 1);
  float before = 0.0f;
  if (tile > 0) {
    wait_for(flags + tile - 1, 1);
    before = prefix[tile - 1];  // bug: look_back_without_acquire
  }
  prefix[tile] = before + 1.0f;  // bug: look_back_without_acquire
  __threadfence();
  atomicExch(flags + tile, 1);
}

// The flag is a plain store.
__global__ void look_back_plain_flag(float* prefix, int* next, int* flags) {
  const int tile = atomicAdd(next, 1);
  float before = 0.0f;
  if (tile > 0) {
    while (atomicAdd(flags + tile - 1, 0) != 1) {  // bug: look_back_plain_flag
    }
    __threadfence();
    before = prefix[tile - 1];
  }
  prefix[tile] = before + 1.0f;
  __threadfence();
  flags[tile] = 1;  // bug: look_back_plain_flag
}

// Flag and value travel in one word: whoever sees the flag has the value. No fence is needed.
__global__ void ok_look_back_packed(float* prefix, int* next, unsigned long long* state) {
  const int tile = atomicAdd(next, 1);
  unsigned before = 0;
  if (tile > 0) {
    unsigned long long seen;
    do seen = atomicAdd(state + tile - 1, 0ull);
    while (seen >> 32 == 0);
    before = static_cast<unsigned>(seen);
  }
  prefix[tile] = static_cast<float>(before + 1);
  atomicExch(state + tile, 1ull << 32 | (before + 1));
}

// The value is stored into its half of the word by itself, plainly.
__global__ void look_back_half_packed(float* prefix, int* next, unsigned long long* state) {
  const int tile = atomicAdd(next, 1);
  unsigned before = 0;
  if (tile > 0) {
    unsigned long long seen;
    do seen = atomicAdd(state + tile - 1, 0ull);  // bug: look_back_half_packed
    while (seen >> 32 == 0);
    before = static_cast<unsigned>(seen);
  }
  prefix[tile] = static_cast<float>(before + 1);
  *reinterpret_cast<unsigned*>(state + tile) = before + 1;  // bug: look_back_half_packed
  __threadfence();
  atomicAdd(state + tile, 1ull << 32);
}
