// Counts every allocation of the process (operator new and malloc, any thread), to prove that a stretch of code makes
// none. malloc and its kin are replaced for the whole test program and forward to glibc; operator new of libstdc++ ends
// in malloc, so it is counted once. Under ASan and TSan, which bring their own malloc, and without glibc it counts
// nothing and available() is false. Gather results inside the stretch and CHECK after it: doctest allocates.
#pragma once

#include <cstdint>

namespace mosaic::testing {

bool allocation_counting_available();
uint64_t allocations_so_far();

// The allocations since it was made.
class AllocationScope {
 public:
  AllocationScope() : start_(allocations_so_far()) {}
  uint64_t count() const { return allocations_so_far() - start_; }

 private:
  uint64_t start_;
};

// For a debugger: while true, the first allocation aborts the process where it happens.
void trap_allocations(bool on);

}  // namespace mosaic::testing
