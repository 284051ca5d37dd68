// Benches of the kernels that decide a frame's and a question's time, on a GPU: `kernels_bench [cuda|shim]` prints a
// table, each row when it is measured; with --json, JSON lines with the sizes, for tools/bench/gpu.py to put torch beside.
// --once: every call once, untimed, for a profiler. shim: tiny sizes, to see that it runs, no numbers to quote.
// What kernels read lies in the device's memory, as in a session, and calls take turns with copies of it that together
// are larger than any cache.
//   copy     256 MiB within the device, and between pinned memory and the device: the ceilings of the others
//   attend   one token, and a frame of them, over pages of the device's memory, in the shapes of a 3B and a 7B model
//   assign   items to the most similar of n centroids
//   score    a question's tokens against n means
//   extents  16 KiB to 4 MiB from pinned memory to the device and back
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/cuda_backend.h"
#include "core/error.h"
#include "support/ops_world.h"
#include "support/shim_backend.h"

using namespace mosaic;

namespace {

// What is said of a call. rate: bytes or multiply-adds a second; ceiling: the same, of what it is compared with, or 0.
struct Row {
  std::string op, name;
  std::string sizes;  // JSON members, ready to print
  double seconds;
  double rate;
  double ceiling;
};

struct Options {
  bool json = false;
  bool once = false;
  bool small = false;
};
Options options;

void print(const Row& row) {
  if (options.json) {
    std::printf("{\"op\": \"%s\", \"name\": \"%s\"%s, \"seconds\": %.9f, \"rate\": %.6g, \"ceiling\": %.6g}\n",
                row.op.c_str(), row.name.c_str(), row.sizes.c_str(), row.seconds, row.rate, row.ceiling);
  } else {
    std::printf("%-48s %10.1f us %9.1f G/s", row.name.c_str(), row.seconds * 1e6, row.rate / 1e9);
    row.ceiling > 0 ? std::printf(" %5.1f %%\n", 100 * row.rate / row.ceiling) : std::printf("\n");
  }
  std::fflush(stdout);  // a bench that is cut short has shown what it had
}

std::string member(const char* name, int64_t value) {
  return std::string(", \"") + name + "\": " + std::to_string(value);
}

// Memory of the device until the bench ends, filled from the host.
struct Memory {
  Device& device;
  std::vector<std::pair<void*, size_t>> pieces;
  explicit Memory(Device& d) : device(d) {}
  Memory(const Memory&) = delete;
  ~Memory() {
    for (const auto& [at, bytes] : pieces) device.release(at, bytes);
  }
  void* room(size_t bytes) {
    pieces.emplace_back(device.allocate_private(bytes), bytes);
    return pieces.back().first;
  }
  template <class T>
  T* put(const std::vector<T>& x) {
    T* const to = static_cast<T*>(room(x.size() * sizeof(T)));
    device.copy_async(to, x.data(), x.size() * sizeof(T));
    device.wait(device.record());
    return to;
  }
};

// Seconds of one call, given how many came before it: the median of 5 runs of as many calls as fill 20 ms.
double time_of(Device& device, const std::function<void(int)>& call) {
  int number = 0;
  const auto run = [&](int calls) {
    device.wait(device.record());
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < calls; ++i) call(number++);
    device.wait(device.record());
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / calls;
  };
  if (options.once) return run(1);
  const int calls = static_cast<int>(std::clamp(0.02 / run(3), 1.0, 10000.0));
  std::vector<double> seconds;
  for (int i = 0; i < 5; ++i) seconds.push_back(run(calls));
  std::sort(seconds.begin(), seconds.end());
  return seconds[2];
}

// How many copies of so many bytes no cache holds: H100 and H200 have 50 and 60 MB of it.
int copies_of(size_t bytes) {
  if (options.small) return 2;
  return static_cast<int>(std::clamp((size_t{256} << 20) / std::max(bytes, size_t{1}) + 1, size_t{1}, size_t{1024}));
}

// `copies` of what lies in host memory, one behind the other.
std::byte* put_copies(Memory& memory, const std::vector<std::byte>& one, int copies) {
  auto* const to = static_cast<std::byte*>(memory.room(one.size() * static_cast<size_t>(copies)));
  memory.device.copy_async(to, one.data(), one.size());
  for (int i = 1; i < copies; ++i) memory.device.copy_async(to + static_cast<size_t>(i) * one.size(), to, one.size());
  memory.device.wait(memory.device.record());
  return to;
}

// The data of `pages` pages: some that differ, over and over.
std::vector<std::byte> page_data(CodecId codec, PageShape shape, int pages) {
  constexpr int kDifferent = 32;
  testing::Random random(1);
  const auto plain = cpu::make_ops("plain", 1);
  const size_t bytes = data_bytes(codec, shape), row = static_cast<size_t>(shape.row());
  std::vector<std::byte> all(bytes * static_cast<size_t>(pages));
  for (int p = 0; p < pages; ++p) {
    std::byte* const page = &all[static_cast<size_t>(p) * bytes];
    if (p >= kDifferent) {
      std::memcpy(page, page - kDifferent * bytes, bytes);
      continue;
    }
    const auto k = random.normals(kPageTokens * row), v = random.normals(kPageTokens * row);
    plain->encode(codec, shape, k.data(), v.data(), row, kPageTokens, page);
  }
  return all;
}

void bench_attend(Backend& on, CodecId codec, PageShape shape, int group, int queries, int tokens, double copy_rate) {
  const int pages = tokens / kPageTokens, q_heads = shape.heads * group;
  testing::Random random(1);
  Memory memory(*on.device);
  const auto all = page_data(codec, shape, pages);
  const int copies = copies_of(all.size());
  const std::byte* const data = put_copies(memory, all, copies);
  std::vector<PageEntry> tables;  // [copies, pages]
  std::vector<int32_t> positions;
  for (int i = 0; i < copies * pages; ++i) {
    const std::byte* const page = data + static_cast<size_t>(i) * data_bytes(codec, shape);
    tables.push_back({page, i % pages * kPageTokens, rows_of(0, kPageTokens), codec});
  }
  for (int i = 0; i < tokens; ++i) positions.push_back(i);
  RopeSpec spec;
  spec.head_dim = spec.rotary_dim = shape.head_dim;
  std::vector<float> angles(RopeTable::bytes_for(spec, tokens + 1) / sizeof(float));
  const RopeTable rope = RopeTable(spec, tokens + 1, angles.data()).at(memory.put(angles));
  AttendArgs a;
  const std::vector<int32_t> at(3 * static_cast<size_t>(queries), tokens);
  a.q = memory.put(random.normals(static_cast<size_t>(queries * q_heads * shape.head_dim)));
  a.tokens = queries, a.q_heads = q_heads, a.q_stride = static_cast<size_t>(q_heads * shape.head_dim);
  a.q_positions = memory.put(at), a.shape = shape, a.rope = &rope, a.scale = 0.09f;
  a.n_pages = pages, a.positions = memory.put(positions);
  a.out = static_cast<float*>(memory.room(static_cast<size_t>(queries) * a.q_stride * sizeof(float)));
  a.lse = static_cast<float*>(memory.room(static_cast<size_t>(queries * q_heads) * sizeof(float)));
  const PageEntry* const table = memory.put(tables);
  const double seconds = time_of(*on.device, [&](int i) {
    a.pages = table + i % copies * pages;
    on.ops->attend(a);
  });
  print({"attend",
         std::string("attend ") + codec_name(codec) + ", " + std::to_string(queries) + " of " +
             std::to_string(q_heads) + "/" + std::to_string(shape.heads) + " heads, " + std::to_string(tokens) +
             " tokens",
         std::string(", \"codec\": \"") + codec_name(codec) + "\"" + member("queries", queries) +
             member("q_heads", q_heads) + member("kv_heads", shape.heads) + member("head_dim", shape.head_dim) +
             member("tokens", tokens) + member("bytes", static_cast<int64_t>(all.size())) + member("copies", copies),
         seconds, static_cast<double>(all.size()) / seconds, copy_rate});
}

void bench_score(Backend& on, PageShape shape, int group, int tokens, int n, double copy_rate) {
  testing::Random random(3);
  Memory memory(*on.device);
  const size_t row = static_cast<size_t>(shape.row()), bytes = static_cast<size_t>(n) * row * sizeof(half_t);
  const int copies = copies_of(bytes), q_heads = shape.heads * group;
  const auto means = random.halves(static_cast<size_t>(n) * row);
  std::vector<std::byte> one(bytes);
  std::memcpy(one.data(), means.data(), bytes);
  const std::byte* const all = put_copies(memory, one, copies);
  ScoreArgs s;
  s.q = memory.put(random.normals(static_cast<size_t>(tokens * q_heads * shape.head_dim)));
  s.tokens = tokens, s.q_heads = q_heads, s.q_stride = static_cast<size_t>(q_heads * shape.head_dim);
  s.shape = shape, s.n_rows = n, s.scale = 0.09f, s.mode = ScoreMode::kDot;
  s.score = static_cast<float*>(memory.room(static_cast<size_t>(n) * sizeof(float)));
  const double seconds = time_of(*on.device, [&](int i) {
    s.mean_k = reinterpret_cast<const half_t*>(all + static_cast<size_t>(i % copies) * bytes);
    on.ops->score(s);
  });
  print({"score", "score " + std::to_string(n) + " means of " + std::to_string(shape.heads) + " heads",
         member("queries", tokens) + member("q_heads", q_heads) + member("kv_heads", shape.heads) +
             member("head_dim", shape.head_dim) + member("means", n) + member("bytes", static_cast<int64_t>(bytes)),
         seconds, static_cast<double>(bytes) / seconds, copy_rate});
}

void bench_assign(Backend& on, int items, int centroids, int dim) {
  testing::Random random(2);
  Memory memory(*on.device);
  const auto width = static_cast<size_t>(dim);
  AssignArgs a;
  a.k = memory.put(random.normals(static_cast<size_t>(items) * width)), a.items = items, a.dim = dim, a.stride = width;
  a.mean_k = memory.put(random.halves(static_cast<size_t>(centroids) * width)), a.n_rows = centroids;
  a.best = static_cast<int32_t*>(memory.room(static_cast<size_t>(items) * 4));
  a.similarity = static_cast<float*>(memory.room(static_cast<size_t>(items) * 4));
  const double seconds = time_of(*on.device, [&](int) { on.ops->assign(a); });
  print({"assign", "assign " + std::to_string(items) + " x " + std::to_string(centroids) + " x " + std::to_string(dim),
         member("items", items) + member("centroids", centroids) + member("dim", dim), seconds,
         static_cast<double>(items) * centroids * dim / seconds, 0});
}

void bench_extents(Device& device, std::byte* there, std::byte* here, size_t bytes, double up, double down) {
  for (size_t extent = size_t{16} << 10; extent <= size_t{4} << 20 && extent <= bytes; extent *= 4) {
    for (const bool to_device : {true, false}) {
      const double seconds = time_of(device, [&](int) {
        for (size_t i = 0; i < bytes; i += extent)
          to_device ? device.copy_async(there + i, here + i, extent) : device.copy_async(here + i, there + i, extent);
      });
      print({"extent", "extents of " + format_bytes(extent) + (to_device ? " to the device" : " to the host"),
             member("bytes", static_cast<int64_t>(extent)) + member("to_device", to_device), seconds,
             static_cast<double>(bytes) / seconds, to_device ? up : down});
    }
  }
}

// Bytes a second of copies within the device (read and written), which is returned, and of the link.
double bench_copies(Device& device, Memory& memory) {
  const size_t bytes = options.small ? size_t{1} << 20 : size_t{256} << 20;
  auto* const from = static_cast<std::byte*>(memory.room(bytes));
  auto* const to = static_cast<std::byte*>(memory.room(bytes));
  auto* const pinned = static_cast<std::byte*>(device.allocate(bytes));
  memory.pieces.emplace_back(pinned, bytes);
  const auto whole = static_cast<double>(bytes);
  const double copy = time_of(device, [&](int) { device.copy_async(to, from, bytes); });
  print({"copy", "copy on the device, read + written", "", copy, 2 * whole / copy, 0});
  const double up = time_of(device, [&](int) { device.copy_async(to, pinned, bytes); });
  print({"link", "one copy from pinned memory", "", up, whole / up, 0});
  const double down = time_of(device, [&](int) { device.copy_async(pinned, from, bytes); });
  print({"link", "one copy to pinned memory", "", down, whole / down, 0});
  bench_extents(device, to, pinned, bytes, whole / up, whole / down);
  return 2 * whole / copy;
}

void bench_kernels(Backend& on, double copy_rate) {
  const bool small = options.small;
  const std::vector<int> sizes = small ? std::vector<int>{32, 64} : std::vector<int>{1024, 4096, 12544, 65536};
  for (const auto& [kv_heads, group] : {std::pair{2, 8}, std::pair{4, 7}}) {  // Qwen2.5-VL-3B and -7B
    const PageShape shape{kv_heads, small ? 32 : 128};
    for (const CodecId codec : {CodecId::kInt4, CodecId::kK5V3, CodecId::kFp16, CodecId::kInt8}) {
      for (const int tokens : sizes) bench_attend(on, codec, shape, group, 1, tokens, copy_rate);
      bench_attend(on, codec, shape, group, small ? 5 : 196, small ? 64 : 12544, 0);
    }
    bench_score(on, shape, group, small ? 3 : 12, small ? 70 : 16384, copy_rate);
  }
  bench_assign(on, small ? 128 : 4096, small ? 128 : 4096, small ? 64 : 512);
  bench_assign(on, small ? 13 : 196, small ? 70 : 4096, small ? 64 : 512);
  bench_assign(on, small ? 13 : 196, small ? 130 : 16384, small ? 64 : 256);
}

}  // namespace

int main(int argc, char** argv) {
  std::string name = "cuda";
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    word == "--json" ? void(options.json = true) : word == "--once" ? void(options.once = true) : void(name = word);
  }
  options.small = name == "shim";
  try {
    Backend on = options.small ? testing::make_shim() : cuda::make();
    const Ops::Limits limits{.tokens = 4096, .q_heads = 28, .shape = {4, 128}, .rows = 16384, .dim = 512};
    Memory memory(*on.device);
    on.ops->set_scratch(memory.room(on.ops->scratch_bytes(limits)), limits);
    bench_kernels(on, bench_copies(*on.device, memory));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kernels_bench: %s\n", error.what());
    return 1;
  }
}
