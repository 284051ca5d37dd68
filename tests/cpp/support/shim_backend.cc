#include "support/shim_backend.h"

#include <sys/mman.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include <cstring>
#include <functional>
#include <map>
#include <new>

#include "backend/cpu/cpu_ops.h"
#include "backend/cuda/cuda_ops.h"
#include "core/error.h"
#include "support/mirror_ops.h"

namespace mosaic::testing {
namespace {

using shim::simt::Stream;

constexpr std::align_val_t kAligned{64};
constexpr size_t kPage = 4096;

struct Piece {
  size_t bytes;
  bool of_kernels;
};
// What ShimDevices have given out: first byte -> piece.
std::map<const std::byte*, Piece>& given() {
  static std::map<const std::byte*, Piece> all;
  return all;
}

const Piece* find(const void* pointer) {
  const auto* const at = static_cast<const std::byte*>(pointer);
  auto after = given().upper_bound(at);
  if (after == given().begin()) return nullptr;
  --after;
  return at < after->first + after->second.bytes ? &after->second : nullptr;
}

// Memory of the kernels' own ends where its last page does, so that one byte too far is a fault; what alignment leaves
// over behind it is ASan's.
struct Mapping {
  std::byte* base;
  size_t size;
};
size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }
Mapping mapping_of(const std::byte* memory, size_t bytes) {
  const size_t size = round_up(bytes, kPage);
  return {const_cast<std::byte*>(memory) + round_up(bytes, 64) - size, size};
}
void guard_tail(const std::byte* memory, size_t bytes, bool on) {
#if defined(__SANITIZE_ADDRESS__)
  const size_t tail = round_up(bytes, 64) - bytes;
  on ? __asan_poison_memory_region(memory + bytes, tail) : __asan_unpoison_memory_region(memory + bytes, tail);
#else
  (void)memory, (void)bytes, (void)on;
#endif
}

bool of_kernels(const void* pointer) {
  const Piece* const piece = find(pointer);
  return piece != nullptr && piece->of_kernels;
}

// The kernels' own memory is open while they run, and only then.
void open_memory(bool yes) {
  for (const auto& [memory, piece] : given())
    if (const Mapping m = mapping_of(memory, piece.bytes); piece.of_kernels)
      mprotect(m.base, m.size, yes ? PROT_READ | PROT_WRITE : PROT_NONE);
}

// Fails where a test wants it to.
class ShimStream : public Stream {
 public:
  explicit ShimStream(ShimControl* control) : control_(control) {}
  void push(std::function<void()> work) override {
    Stream::push([this, work = std::move(work)] {
      count();
      work();
    });
    if (control_ != nullptr && control_->at_once) run();
  }
  void run() {
    open_memory(true);
    try {
      drain();
    } catch (...) {
      open_memory(false);
      throw;
    }
    open_memory(false);
  }
  void launch(const char* kernel, std::function<void()> work) override {
    if (control_ != nullptr) ++control_->calls.launches, ++control_->calls.launches_of[kernel];
    push(std::move(work));
  }
  void copy(void* to, const void* from, size_t bytes) {
    if (control_ != nullptr) {
      ++control_->calls.copies;
      control_->calls.link_bytes += of_kernels(to) != of_kernels(from) ? static_cast<int64_t>(bytes) : 0;
    }
    push([=] { std::memcpy(to, from, bytes); });
  }
  void carried(const void* to, const void* from, size_t bytes) override {
    if (control_ != nullptr && of_kernels(to) != of_kernels(from))
      control_->calls.link_bytes += static_cast<int64_t>(bytes);
  }
  void count_wait() {
    if (control_ != nullptr) ++control_->calls.waits;
  }
  void count_query() {
    if (control_ != nullptr) ++control_->calls.queries;
  }
  void count() {
    if (control_ == nullptr) return;
    refuse_if_lost();
    const int n = ++control_->work;
    if (n == control_->fail_work)
      throw DeviceError("shim: launch 12 failed: injected. Close the session and open another.");
  }
  void refuse_if_lost() const {
    if (control_ != nullptr && control_->lost && control_->fail_work > 0 && control_->work >= control_->fail_work)
      throw DeviceError("shim: the device is lost: injected. Restart the process.");
  }
  void count_allocation(size_t bytes) {
    if (control_ != nullptr && ++control_->allocations == control_->fail_allocation)
      throw DeviceError("shim: " + format_bytes(bytes) + " of device memory needed, 0 B free. Lower memory=.");
  }

 private:
  ShimControl* control_;
};

void run_queued(const shim::simt::Queue& queue) {
  auto* const stream = static_cast<ShimStream*>(queue.stream);
  stream->count_wait();
  stream->refuse_if_lost();
  stream->run();
}

class ShimDevice final : public Device {
 public:
  explicit ShimDevice(ShimControl* control) : stream_(control) {
    queue.stream = &stream_;
    queue.pending = &pending_;
  }
  ~ShimDevice() override = default;
  const char* name() const override { return "shim"; }
  bool is_integrated() const override { return false; }
  size_t free_bytes() const override { return size_t{1} << 40; }
  void* allocate(size_t bytes) override {
    stream_.count_allocation(bytes);
    auto* const memory = static_cast<std::byte*>(::operator new(bytes, kAligned));
    std::memset(memory, 0, bytes);
    given()[memory] = {bytes, false};
    known.add(memory, bytes, Access::kBoth);
    return memory;
  }
  bool has_private() const override { return true; }
  void* allocate_private(size_t bytes) override {
    stream_.count_allocation(bytes);
    const size_t size = round_up(bytes, kPage);
    void* const base = mmap(nullptr, size + kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) throw std::bad_alloc();
    std::byte* const memory = static_cast<std::byte*>(base) + size - round_up(bytes, 64);
    guard_tail(memory, bytes, true);
    given()[memory] = {bytes, true};
    known.add(memory, bytes, Access::kKernels);
    return memory;
  }
  Access access(const void* pointer) const override {
    stream_.refuse_if_lost();
    if (const auto there = known.find(pointer)) return *there;
    stream_.count_query();
    const Piece* const piece = find(pointer);
    return piece == nullptr ? Access::kHost : piece->of_kernels ? Access::kKernels : Access::kBoth;
  }
  void release(void* memory, size_t) noexcept override {
    if (memory == nullptr) return;
    const auto piece = given().find(static_cast<const std::byte*>(memory));
    const Piece gone = piece->second;
    known.remove(memory);
    given().erase(piece);
    if (gone.of_kernels) {
      guard_tail(static_cast<std::byte*>(memory), gone.bytes, false);
      const Mapping m = mapping_of(static_cast<std::byte*>(memory), gone.bytes);
      munmap(m.base, m.size + kPage);
    } else {
      ::operator delete(memory, kAligned);
    }
  }
  // A caller's stream is a Stream, whose work waits until somebody needs it; null, the default one, has none.
  void lend(std::span<const Lent> arrays) override { known.lend(arrays); }
  void follow(void* stream) override {
    queue.mark();
    if (stream != nullptr) stream_.push([=] { static_cast<Stream*>(stream)->drain(); });
  }
  void copy_async(void* to, const void* from, size_t bytes) override {
    queue.mark();
    stream_.copy(to, from, bytes);
  }
  uint64_t record() override { return 0; }
  void wait(uint64_t) override { run_queued(queue); }

  shim::simt::Queue queue;
  cuda::KnownMemory known;

 private:
  bool pending_ = false;
  mutable ShimStream stream_;
};

}  // namespace

Backend make_shim(int processors, ShimControl* control) {
  auto device = std::make_unique<ShimDevice>(control);
  device->queue.processors = processors;
  shim::Target target;
  target.name = "shim";
  target.queue = device->queue;
  target.known = &device->known;
  target.finish = run_queued;
  target.can_access = [](const shim::simt::Queue& queue, const void* pointer) {
    static_cast<ShimStream*>(queue.stream)->count_query();
    return find(pointer) != nullptr;
  };
  target.copy = [](const shim::simt::Queue& queue, void* to, const void* from, size_t bytes) {
    static_cast<ShimStream*>(queue.stream)->copy(to, from, bytes);
  };
  // The plain loops: counts, which follow from what is nearest to what, are those of every machine.
  auto ops = std::make_unique<shim::CudaOps>(target, cpu::make_ops("plain", 1));
  if (control != nullptr) control->device = device.get(), control->ops = ops.get();
  return {std::move(device), std::move(ops)};
}

void set_shim_order(unsigned order) { shim::simt::order = order; }

}  // namespace mosaic::testing
