// The arithmetic of atomic operations. What they check and order is the worker's.
#pragma once
#include <cstddef>
#include <cstdint>

#include "abi.h"

namespace emulator {

std::size_t size_of(Number type);  // bytes

// Does one operation, atomically, on a value of `type`; gives the bits of the old one.
std::uint64_t update_atomically(Atomic op, Number type, void* address, std::uint64_t value, std::uint64_t compare);

}  // namespace emulator
