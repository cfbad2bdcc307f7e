// CUDA C++ on the host: what nvcc gives a .cu file without being asked. A kernel that includes none of gemma-cuda's own
// headers is compiled with this one in front; one that does may include it. Everything is made of the primitives of
// <platform.cuh>.
#pragma once
#define EMULATOR_CUDA
#include <math.h>
#include <cfloat>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

// The names of <platform.cuh> that CUDA does not have are a stranger's to use.
#ifdef EMULATOR_HIDE_HELPERS
#define kInf emulator_kInf
#define kFullMask emulator_kFullMask
#define shared_memory emulator_shared_memory
#define bit_cast emulator_bit_cast
#define reload_tid emulator_reload_tid
#define value_barrier emulator_value_barrier
#define named_barrier_sync emulator_named_barrier_sync
#define named_barrier_arrive emulator_named_barrier_arrive
#define grid_dependency_wait emulator_grid_dependency_wait
#define grid_dependency_release emulator_grid_dependency_release
#include <platform.cuh>
#undef kInf
#undef kFullMask
#undef shared_memory
#undef bit_cast
#undef reload_tid
#undef value_barrier
#undef named_barrier_sync
#undef named_barrier_arrive
#undef grid_dependency_wait
#undef grid_dependency_release
#else
#include <platform.cuh>
#endif

#include "assert.h"
#include "emulator_language.h"
#include "vector_types.h"

#include "device_atomic_functions.h"
#include "emulator_integers.h"
#include "emulator_math.h"
#include "emulator_memory.h"
#include "emulator_warp.h"
