// On the host the C++ library is what libcu++ repeats for the device.
#pragma once

namespace cuda {
namespace std {
using namespace ::std;
}
}  // namespace cuda
