// Errors of the core. A message says who needs what, what there is, and which knob changes it:
//   "MemoryCapError: layer 12 needs 3 pages (48.0 KiB); 256.0 MiB cap, all pinned. Raise memory=, or lower window_frames=."
// Thrown only for what ends a request. What is expected (a full arena) is an empty optional instead.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace mosaic {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// The caller passed something that cannot be used. Nothing was changed.
struct InvalidInput : Error {
  using Error::Error;
};
// The cap cannot hold what was asked for.
struct MemoryCapError : Error {
  using Error::Error;
};
// The spill file or a copy failed in a way that cannot be treated as a miss.
struct SpillError : Error {
  using Error::Error;
  SpillError(const std::string& message, int call) : Error(message), code(call) {}
  int code = 0;  // errno of the call that failed; 0: it was none
};
// The device, its driver or a launch failed.
struct DeviceError : Error {
  using Error::Error;
};
// The system has no thread for what needs one. Nothing was changed, and nothing that was given is at fault.
struct NoThreadError : DeviceError {
  using DeviceError::DeviceError;
};
// The system gives no memory, though it has some: the process may not have more. As above.
struct NoMemoryError : DeviceError {
  using DeviceError::DeviceError;
};
// An invariant does not hold: a defect in this library, never the caller's fault.
struct InvariantError : Error {
  using Error::Error;
};

// "48.0 KiB": one decimal, binary units.
std::string format_bytes(uint64_t bytes);
// The same, rounded up: of what is needed, so that what is printed is enough.
std::string format_bytes_up(uint64_t bytes);

}  // namespace mosaic
