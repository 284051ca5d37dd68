// Benches of the kernels that decide a frame's and a question's time, on a GPU: `kernels_bench [cuda|shim]` prints a
// table; with --json, rows with the sizes, for tools/bench/gpu.py to put torch beside. shim: tiny sizes, to see that
// it runs, no numbers to quote.
//   copy     256 MiB within the device, and between pinned memory and the device: the ceilings of the others
//   attend   one token, and a frame of them, over pages of the device's memory, in the shapes of a 3B and a 7B model
//   assign   items to the most similar of n centroids
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

struct Row {
  std::string op, name;
  std::string sizes;  // JSON members, ready to print
  double seconds;
  double rate;     // bytes or multiply-adds a second
  double ceiling;  // the same, of what it is compared with; 0: nothing
};

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

// Seconds of one call: the median of 5 runs of as many calls as fill 20 ms.
double time_of(Device& device, const std::function<void()>& call) {
  const auto run = [&](int calls) {
    device.wait(device.record());
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < calls; ++i) call();
    device.wait(device.record());
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / calls;
  };
  const int calls = static_cast<int>(std::clamp(0.02 / run(3), 1.0, 10000.0));
  std::vector<double> seconds;
  for (int i = 0; i < 5; ++i) seconds.push_back(run(calls));
  std::sort(seconds.begin(), seconds.end());
  return seconds[2];
}

void bench_attend(Backend& on, PageShape shape, int group, int queries, int tokens, double copy_rate,
                  std::vector<Row>* rows) {
  const int pages = tokens / kPageTokens, q_heads = shape.heads * group;
  testing::Random random(1);
  const auto plain = cpu::make_ops("plain", 1);
  const auto k = random.normals(static_cast<size_t>(kPageTokens * shape.row()));
  for (const CodecId codec : {CodecId::kFp16, CodecId::kInt8, CodecId::kInt4, CodecId::kK5V3}) {
    Memory memory(*on.device);
    const size_t bytes = data_bytes(codec, shape);
    std::vector<std::byte> all(bytes * static_cast<size_t>(pages));
    plain->encode(codec, shape, k.data(), k.data(), static_cast<size_t>(shape.row()), kPageTokens, all.data());
    for (size_t p = 1; p < static_cast<size_t>(pages); ++p) std::memcpy(&all[p * bytes], all.data(), bytes);
    const std::byte* const data = memory.put(all);
    std::vector<PageEntry> table;
    std::vector<int32_t> positions;
    for (int p = 0; p < pages; ++p) {
      table.push_back({data + static_cast<size_t>(p) * bytes, p * kPageTokens, rows_of(0, kPageTokens), codec});
      for (int i = 0; i < kPageTokens; ++i) positions.push_back(p * kPageTokens + i);
    }
    RopeSpec spec;
    spec.head_dim = spec.rotary_dim = shape.head_dim;
    const size_t rope_bytes = RopeTable::bytes_for(spec, tokens + 1);
    void* const rope_memory =
        on.device->allocate(rope_bytes);  // written here, so of the host; small enough for a cache
    memory.pieces.emplace_back(rope_memory, rope_bytes);
    const RopeTable rope(spec, tokens + 1, rope_memory);
    AttendArgs a;
    const std::vector<int32_t> at(3 * static_cast<size_t>(queries), tokens);
    a.q = memory.put(random.normals(static_cast<size_t>(queries * q_heads * shape.head_dim)));
    a.tokens = queries, a.q_heads = q_heads, a.q_stride = static_cast<size_t>(q_heads * shape.head_dim);
    a.q_positions = memory.put(at), a.shape = shape, a.rope = &rope, a.scale = 0.09f;
    a.pages = memory.put(table), a.n_pages = pages, a.positions = memory.put(positions);
    a.out = static_cast<float*>(memory.room(static_cast<size_t>(queries) * a.q_stride * sizeof(float)));
    a.lse = static_cast<float*>(memory.room(static_cast<size_t>(queries * q_heads) * sizeof(float)));
    const double seconds = time_of(*on.device, [&] { on.ops->attend(a); });
    rows->push_back({"attend",
                     std::string("attend ") + codec_name(codec) + ", " + std::to_string(queries) + " of " +
                         std::to_string(q_heads) + "/" + std::to_string(shape.heads) + " heads, " +
                         std::to_string(tokens) + " tokens",
                     std::string(", \"codec\": \"") + codec_name(codec) + "\"" + member("queries", queries) +
                         member("q_heads", q_heads) + member("kv_heads", shape.heads) +
                         member("head_dim", shape.head_dim) + member("tokens", tokens) +
                         member("bytes", static_cast<int64_t>(all.size())),
                     seconds, static_cast<double>(all.size()) / seconds, copy_rate});
  }
}

void bench_assign(Backend& on, int items, int centroids, int dim, std::vector<Row>* rows) {
  testing::Random random(2);
  Memory memory(*on.device);
  const auto width = static_cast<size_t>(dim);
  AssignArgs a;
  a.k = memory.put(random.normals(static_cast<size_t>(items) * width)), a.items = items, a.dim = dim, a.stride = width;
  a.mean_k = memory.put(random.halves(static_cast<size_t>(centroids) * width)), a.n_rows = centroids;
  a.best = static_cast<int32_t*>(memory.room(static_cast<size_t>(items) * 4));
  a.similarity = static_cast<float*>(memory.room(static_cast<size_t>(items) * 4));
  const double seconds = time_of(*on.device, [&] { on.ops->assign(a); });
  rows->push_back({"assign",
                   "assign " + std::to_string(items) + " x " + std::to_string(centroids) + " x " + std::to_string(dim),
                   member("items", items) + member("centroids", centroids) + member("dim", dim), seconds,
                   static_cast<double>(items) * centroids * dim / seconds, 0});
}

void bench_extents(Device& device, std::byte* there, std::byte* here, size_t bytes, double up, double down,
                   std::vector<Row>* rows) {
  for (size_t extent = size_t{16} << 10; extent <= size_t{4} << 20 && extent <= bytes; extent *= 4) {
    for (const bool to_device : {true, false}) {
      const double seconds = time_of(device, [&] {
        for (size_t i = 0; i < bytes; i += extent)
          to_device ? device.copy_async(there + i, here + i, extent) : device.copy_async(here + i, there + i, extent);
      });
      rows->push_back({"extent", "extents of " + format_bytes(extent) + (to_device ? " to the device" : " to the host"),
                       member("bytes", static_cast<int64_t>(extent)) + member("to_device", to_device), seconds,
                       static_cast<double>(bytes) / seconds, to_device ? up : down});
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  bool json = false;
  std::string name = "cuda";
  for (int i = 1; i < argc; ++i) std::strcmp(argv[i], "--json") == 0 ? void(json = true) : void(name = argv[i]);
  const bool small = name == "shim";
  try {
    Backend on = small ? testing::make_shim() : cuda::make();
    Device& device = *on.device;
    const Ops::Limits limits{.tokens = 4096, .q_heads = 28, .shape = {4, 128}, .rows = 16384, .dim = 512};
    Memory memory(device);
    on.ops->set_scratch(memory.room(on.ops->scratch_bytes(limits)), limits);

    const size_t bytes = small ? size_t{1} << 20 : size_t{256} << 20;
    auto* const from = static_cast<std::byte*>(memory.room(bytes));
    auto* const to = static_cast<std::byte*>(memory.room(bytes));
    auto* const pinned = static_cast<std::byte*>(device.allocate(bytes));
    memory.pieces.emplace_back(pinned, bytes);
    std::vector<Row> rows;
    const auto whole = static_cast<double>(bytes);
    const double copy = time_of(device, [&] { device.copy_async(to, from, bytes); });
    rows.push_back({"copy", "copy on the device, read + written", "", copy, 2 * whole / copy, 0});
    const double up = time_of(device, [&] { device.copy_async(to, pinned, bytes); });
    rows.push_back({"link", "one copy from pinned memory", "", up, whole / up, 0});
    const double down = time_of(device, [&] { device.copy_async(pinned, from, bytes); });
    rows.push_back({"link", "one copy to pinned memory", "", down, whole / down, 0});
    bench_extents(device, to, pinned, bytes, rows[1].rate, rows[2].rate, &rows);
    const int least = small ? 32 : 1024, most = small ? 64 : 65536, factor = small ? 2 : 4;
    for (const auto& [kv_heads, group] : {std::pair{2, 8}, std::pair{4, 7}}) {  // Qwen2.5-VL-3B and -7B
      const PageShape shape{kv_heads, small ? 32 : 128};
      for (int tokens = least; tokens <= most; tokens *= factor)
        bench_attend(on, shape, group, 1, tokens, rows[0].rate, &rows);
      bench_attend(on, shape, group, small ? 5 : 196, small ? 64 : 16384, 0, &rows);
    }
    bench_assign(on, small ? 128 : 4096, small ? 128 : 4096, small ? 64 : 512, &rows);
    bench_assign(on, small ? 13 : 196, small ? 70 : 4096, small ? 64 : 512, &rows);
    bench_assign(on, small ? 13 : 196, small ? 130 : 16384, small ? 64 : 256, &rows);
    if (json) std::printf("[");
    for (const Row& row : rows) {
      if (json) {
        std::printf("%s{\"op\": \"%s\", \"name\": \"%s\"%s, \"seconds\": %.9f, \"rate\": %.6g, \"ceiling\": %.6g}",
                    &row == rows.data() ? "" : ",\n", row.op.c_str(), row.name.c_str(), row.sizes.c_str(), row.seconds,
                    row.rate, row.ceiling);
      } else {
        std::printf("%-48s %10.1f us %9.1f G/s", row.name.c_str(), row.seconds * 1e6, row.rate / 1e9);
        row.ceiling > 0 ? std::printf(" %5.1f %%\n", 100 * row.rate / row.ceiling) : std::printf("\n");
      }
    }
    if (json) std::printf("]\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kernels_bench: %s\n", error.what());
    return 1;
  }
}
