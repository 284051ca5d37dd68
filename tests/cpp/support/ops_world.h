// Random inputs for the kernels' tests: pages of mixed codecs with odd counts, subranges and holes, summaries, a causal block.
#pragma once

#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "backend/cpu/cpu_ops.h"
#include "backend/ops.h"
#include "support/mirror_ops.h"

namespace mosaic::testing {

struct Random {
  std::mt19937 engine;
  explicit Random(unsigned seed) : engine(seed) {}
  float normal() { return std::normal_distribution<float>()(engine); }
  int below(int n) { return static_cast<int>(engine() % static_cast<unsigned>(n)); }
  std::vector<float> normals(size_t n, float size = 1) {
    std::vector<float> x(n);
    for (float& value : x) value = size * normal();
    return x;
  }
  std::vector<half_t> halves(size_t n, float size = 1) {
    std::vector<half_t> x(n);
    for (half_t& value : x) value = float_to_half(size * normal());
    return x;
  }
};

// An implementation with its scratch. Scratch begins as NaN: a kernel that reads before it writes is found out.
struct Kernels {
  std::unique_ptr<Ops> ops;
  std::vector<std::byte> memory;
  Kernels(const std::string& name, int threads, const Ops::Limits& limits) : ops(make_ops(name, threads)) {
    memory.resize(ops->scratch_bytes(limits) + 64, std::byte{0xff});
    std::byte* const aligned = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    ops->set_scratch(aligned, limits);
  }
  Ops* operator->() const { return ops.get(); }
};

// Whether attend rounds what it multiplies to halves, but for fp32 pages and the causal block (cuda/attend_tensor.h).
inline bool on_tensor_cores(const std::string& name, int head_dim) {
  return (name == "shim" || name == "cuda") && head_dim <= 128;
}

struct AttendShape {
  int heads = 2, group = 2, head_dim = 32, tokens = 1, pages = 3, rows = 0;
  bool block = false;
  RopeSpec rope{};
  int codec = -1;  // -1: every page another one
};

// Everything AttendArgs points at.
struct AttendWorld {
  AttendArgs args;
  std::vector<std::vector<std::byte>> page_data;
  std::vector<PageEntry> pages;
  std::vector<int32_t> positions, q_positions, rows, row_positions;
  std::vector<uint16_t> places;
  std::vector<half_t> mean_k, mean_v;
  std::vector<float> q, block_k, block_v, row_bias, out, lse, key_mean;
  std::vector<std::byte> rope_memory;
  RopeTable rope;
  static constexpr int kPositions = 5000;

  AttendWorld(const AttendShape& s, unsigned seed) {
    Random random(seed);
    const PageShape shape{s.heads, s.head_dim};
    const auto plain = cpu::make_ops("plain", 1);
    const int q_heads = s.heads * s.group, row = shape.row();
    int next = 0;
    key_mean = random.normals(static_cast<size_t>(row), 0.5f);
    for (int p = 0; p < s.pages; ++p) {
      const CodecId codec = static_cast<CodecId>(s.codec >= 0 ? s.codec : p % kCodecs);
      const int count = p % 3 == 0 ? kPageTokens : 1 + random.below(kPageTokens);
      const auto k = random.normals(static_cast<size_t>(count * row)),
                 v = random.normals(static_cast<size_t>(count * row));
      const int begin = p % 2 == 1 ? random.below(count) : 0;
      const int end = p % 4 == 3 ? begin + random.below(count - begin + 1) : count;
      uint16_t mask = rows_of(begin, end);
      if (p % 3 != 1) mask &= static_cast<uint16_t>(random.below(0x10000));
      // Stale bytes, NaN in every format, in the rows of a record page that are not attended, as reused slots have them.
      page_data.emplace_back(data_bytes(codec, shape), std::byte{0});
      std::byte* const page = page_data.back().data();
      if (codec_is_record(codec)) {
        std::memset(page, 0xff, page_data.back().size());
        for (int t = 0; t < count; ++t) {
          const auto at = static_cast<size_t>(t * row);
          if ((mask >> t & 1) != 0) plain->encode_row(codec, shape, &k[at], &v[at], t, page, key_mean.data());
        }
      } else {
        plain->encode(codec, shape, k.data(), v.data(), static_cast<size_t>(row), count, page);
      }
      pages.push_back({page, static_cast<int32_t>(positions.size()), mask, codec});
      for (int t = pages.back().begin(); t < pages.back().end(); ++t) {
        positions.push_back(pages.back().has(t) ? next += random.below(9) : 1 << 30);  // nobody may look at a hole's
        for (int axis = 0; axis < 2; ++axis) {
          const bool text = s.rope.is_multi() && (p + t) % 5 == 1;
          places.push_back(text ? kText : static_cast<uint16_t>(random.below(30)));
        }
      }
    }
    const int table = s.rows + 3;
    mean_k = random.halves(static_cast<size_t>(table * row));
    mean_v = random.halves(static_cast<size_t>(table * row));
    for (int i = 0; i < s.rows; ++i) {
      rows.push_back(random.below(table));
      for (int axis = 0; axis < 3; ++axis) row_positions.push_back(random.below(kPositions));
      row_bias.push_back(static_cast<float>(random.below(5)));
    }
    for (int t = 0; t < s.tokens; ++t) {
      for (int axis = 0; axis < 3; ++axis) q_positions.push_back(axis == 0 ? next + t : random.below(40));
    }
    // Padding between tokens: a lane may be some of a layer's heads.
    const size_t q_stride = static_cast<size_t>(q_heads * s.head_dim + 3), kv_stride = static_cast<size_t>(row + 5);
    q = random.normals(static_cast<size_t>(s.tokens) * q_stride, 2);
    block_k = random.normals(static_cast<size_t>(s.tokens) * kv_stride);
    block_v = random.normals(static_cast<size_t>(s.tokens) * kv_stride);
    out.assign(q.size(), -77);
    lse.assign(static_cast<size_t>(s.tokens * q_heads), -77);
    RopeSpec spec = s.rope;
    spec.head_dim = s.head_dim;
    rope_memory.resize(RopeTable::bytes_for(spec, kPositions) + 1);
    rope = RopeTable(spec, kPositions, rope_memory.data());
    args.q = q.data(), args.tokens = s.tokens, args.q_heads = q_heads, args.q_stride = q_stride;
    args.q_positions = q_positions.data(), args.shape = shape, args.rope = &rope, args.scale = 0.3f;
    args.pages = pages.data(), args.n_pages = s.pages, args.positions = positions.data();
    args.places = places.data(), args.key_mean = key_mean.data();
    args.mean_k = mean_k.data(), args.mean_v = mean_v.data(), args.rows = rows.data();
    args.row_positions = row_positions.data(), args.row_bias = row_bias.data(), args.n_rows = s.rows;
    if (s.block) args.block_k = block_k.data(), args.block_v = block_v.data(), args.kv_stride = kv_stride;
    args.out = out.data(), args.lse = lse.data();
  }
  AttendWorld(const AttendWorld&) = delete;
};

}  // namespace mosaic::testing
