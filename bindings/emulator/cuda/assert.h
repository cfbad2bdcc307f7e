// assert() in device code: stops the launch with a report. Includable again, as NDEBUG may have changed.
#include "../abi.h"
#undef assert
#ifdef NDEBUG
#define assert(condition) static_cast<void>(0)
#else
#define assert(condition) ((condition) ? static_cast<void>(0) : emulator_assertion_failed(#condition))
#endif
