#include "shim_backend.h"

#include <cstring>
#include <map>
#include <new>

#include "backend/cuda/cuda_ops.h"
#include "mirror_ops.h"

namespace mosaic::test {
namespace {

constexpr std::align_val_t kAligned{64};

// What ShimDevices have given out: first byte -> bytes.
std::map<const std::byte*, size_t>& given() {
  static std::map<const std::byte*, size_t> all;
  return all;
}

class ShimDevice final : public Device {
 public:
  const char* name() const override { return "shim"; }
  bool is_integrated() const override { return false; }
  size_t free_bytes() const override { return size_t{1} << 40; }
  void* allocate(size_t bytes) override {
    auto* const memory = static_cast<std::byte*>(::operator new(bytes, kAligned));
    std::memset(memory, 0, bytes);
    given()[memory] = bytes;
    return memory;
  }
  void release(void* memory, size_t) noexcept override {
    if (memory == nullptr) return;
    given().erase(static_cast<const std::byte*>(memory));
    ::operator delete(memory, kAligned);
  }
  void copy_async(void* to, const void* from, size_t bytes) override { std::memcpy(to, from, bytes); }
  uint64_t record() override { return 0; }
  void wait(uint64_t) override {}
};

bool reaches(const void* pointer) {
  const auto* const at = static_cast<const std::byte*>(pointer);
  auto after = given().upper_bound(at);
  if (after == given().begin()) return false;
  --after;
  return at < after->first + after->second;
}

}  // namespace

Backend make_shim(int processors, bool everywhere) {
  shim::Target target;
  target.name = "shim";
  target.queue.processors = processors;
  target.finish = [](const shim::simt::Queue&) {};
  target.reaches = everywhere ? [](const void*) { return true; } : reaches;
  return {std::make_unique<ShimDevice>(), std::make_unique<shim::CudaOps>(target)};
}

void set_shim_order(unsigned order) { shim::simt::order = order; }

}  // namespace mosaic::test
