#include "backend/cpu/cpu_device.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>

#include "core/error.h"

namespace mosaic::cpu {
namespace {

constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();

// The number in a one-line file; kUnlimited when there is none ("max").
uint64_t read_number(const std::string& path) {
  unsigned long long value = 0;
  std::FILE* file = std::fopen(path.c_str(), "r");
  if (file == nullptr) return kUnlimited;
  const bool read = std::fscanf(file, "%llu", &value) == 1;
  std::fclose(file);
  return read ? value : kUnlimited;
}

// The number after `key` in a file of "key number" lines.
uint64_t read_field(const std::string& path, const char* key) {
  std::FILE* file = std::fopen(path.c_str(), "r");
  if (file == nullptr) return kUnlimited;
  char line[256];
  uint64_t found = kUnlimited;
  const size_t length = std::strlen(key);
  while (found == kUnlimited && std::fgets(line, sizeof line, file) != nullptr) {
    unsigned long long value = 0;
    if (std::strncmp(line, key, length) == 0 && std::sscanf(line + length, " %llu", &value) == 1) found = value;
  }
  std::fclose(file);
  return found;
}

// What a cgroup directory still allows; file cache it can drop does not count as used.
uint64_t cgroup_headroom(const std::string& dir, const char* limit_name, const char* used_name) {
  const uint64_t limit = read_number(dir + limit_name), used = read_number(dir + used_name);
  if (limit == kUnlimited || used == kUnlimited) return kUnlimited;
  const uint64_t cache = read_field(dir + "memory.stat", "inactive_file");
  const uint64_t held = cache == kUnlimited || cache > used ? used : used - cache;
  return limit > held ? limit - held : 0;
}

// The own cgroup and all its parents, each of which may carry a limit. v1 and v2 name things differently.
uint64_t cgroups_headroom() {
  std::FILE* file = std::fopen("/proc/self/cgroup", "r");
  if (file == nullptr) return kUnlimited;
  uint64_t least = kUnlimited;
  char line[4096];
  while (std::fgets(line, sizeof line, file) != nullptr) {
    std::string text(line);
    while (!text.empty() && text.back() == '\n') text.pop_back();
    const bool v2 = text.rfind("0::", 0) == 0;
    const size_t v1 = text.find(":memory:");
    if (!v2 && v1 == std::string::npos) continue;
    const std::string root = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    std::string path = v2 ? text.substr(3) : text.substr(v1 + 8);
    for (;;) {
      const std::string dir = root + (path == "/" ? "" : path) + "/";
      least = std::min(least, v2 ? cgroup_headroom(dir, "memory.max", "memory.current")
                                 : cgroup_headroom(dir, "memory.limit_in_bytes", "memory.usage_in_bytes"));
      if (path.empty() || path == "/") break;
      path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    }
  }
  std::fclose(file);
  return least;
}

}  // namespace

size_t CpuDevice::free_bytes() const {
  const uint64_t available = read_field("/proc/meminfo", "MemAvailable:");
  const uint64_t host = available == kUnlimited ? kUnlimited : available * 1024;
  return static_cast<size_t>(std::min(host, cgroups_headroom()));
}

void* CpuDevice::allocate(size_t bytes) {
  const size_t free = free_bytes();
  if (bytes == 0 || bytes > free)
    throw DeviceError("cpu: " + format_bytes(bytes) + " needed, " + format_bytes(free) + " free. Lower memory=.");
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)
    throw NoMemoryError("cpu: " + format_bytes(bytes) + " needed, and the system gives none of the " +
                        format_bytes(free) + " that are free (" + std::strerror(errno) +
                        "). Raise the limit of memory that this process has (ulimit -v), or lower memory=.");
  madvise(memory, bytes, MADV_HUGEPAGE);  // pages are read in long runs; fewer page walks, and no harm if refused
  return memory;
}

void CpuDevice::release(void* memory, size_t bytes) noexcept {
  if (memory != nullptr) munmap(memory, bytes);
}

void CpuDevice::copy_async(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

}  // namespace mosaic::cpu
