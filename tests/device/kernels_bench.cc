// Benches of the kernels that decide a frame's and a question's time, on a GPU, each beside the ceiling measured in the
// same run: `kernels_bench [cuda|shim]` prints a table; with --json, rows. shim: tiny sizes, to see that it runs.
//   attend   decode over pages of the device's memory, against its copy bandwidth (bytes read a second)
//   assign   4,096 items x 4,096 centroids x 512, in multiply-adds a second
//   extents  128 KiB from pinned memory to the device, against one copy of all of them
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/cuda_backend.h"
#include "ops_world.h"
#include "shim_backend.h"

using namespace mosaic;

namespace {

struct Row {
  std::string name;
  double seconds;
  double rate;     // bytes or multiply-adds a second
  double ceiling;  // the same, of what it is compared with; 0: nothing
};

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

void bench_attend(Backend& on, bool small, double copy_rate, std::vector<Row>* rows) {
  const PageShape shape{4, 128};
  const int group = 7, tokens = small ? 64 : 16384, pages = tokens / kPageTokens, q_heads = shape.heads * group;
  test::Random random(1);
  const auto plain = cpu::make_ops("plain", 1);
  const auto k = random.normals(static_cast<size_t>(kPageTokens * shape.row()));
  for (const CodecId codec : {CodecId::kFp16, CodecId::kInt8, CodecId::kInt4}) {
    Memory memory(*on.device);
    const size_t bytes = data_bytes(codec, shape);
    std::vector<std::byte> all(bytes * static_cast<size_t>(pages));
    plain->encode(codec, shape, k.data(), k.data(), static_cast<size_t>(shape.row()), kPageTokens, all.data());
    for (size_t p = 1; p < static_cast<size_t>(pages); ++p) std::memcpy(&all[p * bytes], all.data(), bytes);
    const std::byte* const data = memory.put(all);
    std::vector<PageEntry> table;
    std::vector<int32_t> positions;
    for (int p = 0; p < pages; ++p) {
      table.push_back({data + static_cast<size_t>(p) * bytes, p * kPageTokens, 0, kPageTokens, codec});
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
    const std::vector<int32_t> at{tokens, 0, 0};
    a.q = memory.put(random.normals(static_cast<size_t>(q_heads * shape.head_dim)));
    a.tokens = 1, a.q_heads = q_heads, a.q_stride = static_cast<size_t>(q_heads * shape.head_dim);
    a.q_positions = memory.put(at), a.shape = shape, a.rope = &rope, a.scale = 0.09f;
    a.pages = memory.put(table), a.n_pages = pages, a.positions = memory.put(positions);
    a.out = static_cast<float*>(memory.room(a.q_stride * sizeof(float)));
    a.lse = static_cast<float*>(memory.room(static_cast<size_t>(q_heads) * sizeof(float)));
    const double seconds = time_of(*on.device, [&] { on.ops->attend(a); });
    rows->push_back({std::string("attend ") + codec_name(codec) + ", " + std::to_string(tokens) + " tokens", seconds,
                     static_cast<double>(all.size()) / seconds, copy_rate});
  }
}

void bench_assign(Backend& on, bool small, std::vector<Row>* rows) {
  const int n = small ? 128 : 4096, dim = small ? 64 : 512;
  test::Random random(2);
  Memory memory(*on.device);
  const size_t size = static_cast<size_t>(n) * static_cast<size_t>(dim);
  AssignArgs a;
  a.k = memory.put(random.normals(size)), a.items = n, a.dim = dim, a.stride = static_cast<size_t>(dim);
  a.mean_k = memory.put(random.halves(size)), a.n_rows = n;
  a.best = static_cast<int32_t*>(memory.room(static_cast<size_t>(n) * 4));
  a.similarity = static_cast<float*>(memory.room(static_cast<size_t>(n) * 4));
  const double seconds = time_of(*on.device, [&] { on.ops->assign(a); });
  rows->push_back({"assign " + std::to_string(n) + " x " + std::to_string(n) + " x " + std::to_string(dim), seconds,
                   static_cast<double>(n) * n * dim / seconds, 0});
}

}  // namespace

int main(int argc, char** argv) {
  bool json = false;
  std::string name = "cuda";
  for (int i = 1; i < argc; ++i) std::strcmp(argv[i], "--json") == 0 ? void(json = true) : void(name = argv[i]);
  const bool small = name == "shim";
  try {
    Backend on = small ? test::make_shim() : cuda::make();
    Device& device = *on.device;
    const Ops::Limits limits{.tokens = 4096, .q_heads = 28, .shape = {4, 128}, .rows = 4096, .dim = 512};
    Memory memory(device);
    on.ops->set_scratch(memory.room(on.ops->scratch_bytes(limits)), limits);

    const size_t bytes = small ? size_t{1} << 20 : size_t{256} << 20, extent = size_t{128} << 10;
    auto* const from = static_cast<std::byte*>(memory.room(bytes));
    auto* const to = static_cast<std::byte*>(memory.room(bytes));
    auto* const pinned = static_cast<std::byte*>(device.allocate(bytes));
    memory.pieces.emplace_back(pinned, bytes);
    std::vector<Row> rows;
    const double copy = time_of(device, [&] { device.copy_async(to, from, bytes); });
    rows.push_back({"copy on the device, read + written", copy, 2.0 * static_cast<double>(bytes) / copy, 0});
    const double link = time_of(device, [&] { device.copy_async(to, pinned, bytes); });
    rows.push_back({"one copy from pinned memory", link, static_cast<double>(bytes) / link, 0});
    const double extents = time_of(device, [&] {
      for (size_t i = 0; i < bytes; i += extent) device.copy_async(to + i, pinned + i, extent);
    });
    rows.push_back({"extents of 128 KiB", extents, static_cast<double>(bytes) / extents, rows[1].rate});
    bench_attend(on, small, rows[0].rate, &rows);
    bench_assign(on, small, &rows);
    if (json) std::printf("[");
    for (const Row& row : rows) {
      if (json) {
        std::printf("%s{\"name\": \"%s\", \"seconds\": %.9f, \"rate\": %.6g, \"ceiling\": %.6g}",
                    &row == rows.data() ? "" : ", ", row.name.c_str(), row.seconds, row.rate, row.ceiling);
      } else {
        std::printf("%-40s %10.1f us %9.1f G/s", row.name.c_str(), row.seconds * 1e6, row.rate / 1e9);
        row.ceiling > 0 ? std::printf(" %5.1f %%\n", 100 * row.rate / row.ceiling) : std::printf("\n");
      }
    }
    if (json) std::printf("]\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "kernels_bench: %s\n", error.what());
    return 1;
  }
}
