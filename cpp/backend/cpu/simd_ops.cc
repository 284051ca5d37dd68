// The vectorised kernels of one instruction set: this file is compiled once for each (simd.cmake), and cpu_ops.cc
// chooses at run time. The kernels are in the *_simd.h files; here they are cut into tasks and given their scratch.
#include "backend/cpu/simd_ops.h"

#include "backend/cpu/assign_bf16_simd.h"
#include "backend/cpu/mass_simd.h"
#include "backend/cpu/pages_simd.h"
#include "backend/cpu/plain_ops.h"
#include "backend/cpu/records_simd.h"
#include "backend/cpu/scratch_simd.h"
#include "backend/cpu/signals_simd.h"
#include "backend/cpu/top_k.h"

#if !defined(MOSAIC_SIMD)  // compiled without simd.cmake: the architecture's baseline
#if defined(__aarch64__)
#define MOSAIC_SIMD neon
#else
#define MOSAIC_SIMD sse2
#endif
#endif
#define MOSAIC_TEXT_OF(x) #x
#define MOSAIC_TEXT(x) MOSAIC_TEXT_OF(x)
#define MOSAIC_JOIN_OF(a, b) a##b
#define MOSAIC_JOIN(a, b) MOSAIC_JOIN_OF(a, b)

namespace mosaic::cpu {
namespace {

class SimdOps final : public PlainOps {  // what is not faster here stays plain
 public:
  explicit SimdOps(int threads) : pool_(threads) {}
  const char* name() const override { return MOSAIC_TEXT(MOSAIC_SIMD); }

  size_t scratch_bytes(const Limits& limits) const override {
    const size_t attend = AttendScratch().carve(limits, pool_.threads(), nullptr);
    const size_t assign = AssignScratch().carve(limits, pool_.threads(), nullptr);
    const size_t score = ScoreScratch().carve(limits, pool_.threads(), nullptr);
    const size_t likeness = LikenessScratch().carve(limits, pool_.threads(), nullptr);
    size_t largest = 0;
    for (const size_t bytes : {attend, assign, score, likeness}) largest = bytes > largest ? bytes : largest;
    return largest;
  }
  void set_scratch(void* memory, const Limits& limits) override {
    PlainOps::set_scratch(memory, limits);  // ops that are plain here use the same bytes; no two run at once
    limits_ = limits;
    memory_ = static_cast<std::byte*>(memory);
  }

  void attend(const AttendArgs& a) override;
  void attention_mass(const MassArgs& m) override;
  void likeness(const LikenessArgs& a) override;
  void add_recent_keys(const RecentKeysArgs& a) override;
  void temporal_redundancy(const RedundancyArgs& a) override;
  void row_norm(const NormArgs& a) override;
  void spectral_energy(const SpectralArgs& a) override;
  void assign(const AssignArgs& a) override;
  void update_centroids(const UpdateArgs& u) override;
  void score(const ScoreArgs& a) override;
  int top_k(const float* score, int n, int k, int32_t* index) override { return select_top_k(score, n, k, index); }
  void merge(const MergeArgs& args) override;
  void encode(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int count, std::byte* data,
              const float* key_mean = nullptr) override {
    uint8_t codes[kMaxHead + kLanes];
    if (shape.head_dim > kMaxHead) return PlainOps::encode(codec, shape, k, v, stride, count, data, key_mean);
    const bool planes = with_planes(codec, [&](auto c) {
      std::byte* pages[kUnit];
      int32_t at[kUnit];
      for (int i = 0; i < kUnit; ++i) pages[i] = data, at[i] = i;
      std::memset(data, 0, static_cast<size_t>(shape.heads) * head_bytes_of<decltype(c)>(shape.head_dim));
      encode_record_items<decltype(c)>(shape, k, v, stride, 0, count, pages, at, key_mean);
    });
    if (planes) return;
    if (!has_page_path(codec)) return PlainOps::encode(codec, shape, k, v, stride, count, data, key_mean);
    encode_page(codec, shape, k, v, stride, count, codes, data);
  }
  void encode_row(CodecId codec, PageShape shape, const float* k, const float* v, int at, std::byte* data,
                  const float* key_mean = nullptr) override {
    if (shape.head_dim > kMaxHead || codec != CodecId::kFp16 || v == nullptr)
      return PlainOps::encode_row(codec, shape, k, v, at, data, key_mean);
    const int d = shape.head_dim;
    for (int head = 0; head < shape.heads; ++head, data += head_bytes_of<Fp16>(d)) {
      encode_half_token(data, k_panel_of<Fp16>(d), d, at, k + head * d, v + head * d);
    }
  }
  void encode_rows(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int items,
                   std::byte* const* pages, const int32_t* at, const float* key_mean = nullptr) override {
    const bool planes = shape.head_dim <= kMaxHead && with_planes(codec, [&](auto c) {
                          const int groups = (items + kLanes - 1) / kLanes;
                          for_parts(groups, parts_of(16 * items, shape.row()), [&](int begin, int end) {
                            encode_record_items<decltype(c)>(shape, k, v, stride, begin * kLanes,
                                                             least(items, end * kLanes), pages, at, key_mean);
                          });
                        });
    if (!planes) PlainOps::encode_rows(codec, shape, k, v, stride, items, pages, at, key_mean);
  }
  void decode(CodecId codec, PageShape shape, const std::byte* data, int begin, int end, float* k, float* v,
              size_t stride, const float* key_mean = nullptr) override {
    if (shape.head_dim > kMaxHead) return PlainOps::decode(codec, shape, data, begin, end, k, v, stride, key_mean);
    decode_page(codec, shape, data, begin, end, k, v, stride, key_mean);
  }

 private:
  template <class Scratch>
  Scratch carve() const {
    Scratch scratch;
    scratch.carve(limits_, pool_.threads(), memory_);
    return scratch;
  }
  static void check(bool fits, const char* op) {
    if (!fits) beyond_limits(op);
  }

  // A lane may be some of the heads, but its groups are as large.
  void check_attend(const AttendArgs& a, const char* op) const {
    check(a.q_heads <= limits_.q_heads && a.shape.head_dim <= limits_.shape.head_dim &&
              a.q_heads * limits_.shape.heads <= limits_.q_heads * a.shape.heads,
          op);
  }

  int parts_of(int items, int dim) const;
  // fn(begin, end) over ranges of [0, n), one for each part.
  template <class Fn>
  void for_parts(int n, int parts, Fn&& fn) {
    pool_.run(parts, [&](int part, int) {
      const auto cut = [&](int i) { return static_cast<int>(static_cast<int64_t>(n) * i / parts); };
      fn(cut(part), cut(part + 1));
    });
  }

  ThreadPool pool_;
  Limits limits_;
  std::byte* memory_ = nullptr;
};

void SimdOps::attend(const AttendArgs& a) {
  check_attend(a, "attend");
  const Units units(a);
  const AttendPlan plan(limits_, a, units.total(), pool_.threads());
  const auto scratch = carve<AttendScratch>();
  const int heads = a.shape.heads, group = a.q_heads / heads, d = a.shape.head_dim;
  const size_t rows = static_cast<size_t>(plan.tile_tokens) * a.q_heads;  // of a task, [Hkv][token][group]
  const size_t v_stride = static_cast<size_t>(round_up(d, kLanes));
  // out and lse of one row from its sum of weighted values, sum of weights and largest logit.
  auto finish = [&](int token, int head, const float* sum, float total, float top) {
    scale_row(sum, d, total > 0 ? 1.0f / total : 0.0f, a.out + token * a.q_stride + static_cast<size_t>(head) * d);
    a.lse[static_cast<size_t>(token) * a.q_heads + head] = total > 0 ? (top + log2f(total)) * kLn2 : kMinusInfinity;
  };
  pool_.run(plan.tiles * plan.splits, [&](int task, int worker) {
    AttendState& s = scratch.workers[worker];
    const int tile = task / plan.splits, split = task % plan.splits, first = tile * plan.tile_tokens;
    const int count = least(plan.tile_tokens, a.tokens - first), tile_rows = count * group;
    // Of the block's own tokens only those up to this task's last query matter.
    const int end = units.seen() + (units.block > 0 ? (first + count + kUnit - 1) / kUnit : 0);
    const auto cut = [&](int i) { return static_cast<int>(static_cast<int64_t>(end) * i / plan.splits); };
    attend_range(a, first, count, cut(split), cut(split + 1), s);
    for (int h = 0; h < heads; ++h) {
      for (int r = 0; r < tile_rows; ++r) {
        const size_t row = static_cast<size_t>(h) * tile_rows + r;
        const float total = stdx::reduce(load(s.total + row * kLanes));
        if (plan.splits == 1) {
          finish(first + r / group, h * group + r % group, s.sum + row * v_stride, total, s.top[row]);
        } else {
          const size_t to = static_cast<size_t>(task) * rows + row;
          copy_row(s.sum + row * v_stride, static_cast<int>(v_stride), scratch.sum + to * v_stride);
          scratch.total[to] = total;
          scratch.top[to] = s.top[row];
        }
      }
    }
  });
  if (plan.splits == 1) return;
  for (int tile = 0; tile < plan.tiles; ++tile) {
    const int first = tile * plan.tile_tokens, tile_rows = least(plan.tile_tokens, a.tokens - first) * group;
    for (int row = 0; row < tile_rows * heads; ++row) {
      const size_t at = static_cast<size_t>(tile) * plan.splits * rows + row;  // of the first range; next is + rows
      float top = -FLT_MAX, total = 0;
      for (int i = 0; i < plan.splits; ++i) top = scratch.top[at + i * rows] > top ? scratch.top[at + i * rows] : top;
      float* const sum = scratch.sum + at * v_stride;
      for (int i = 0; i < plan.splits; ++i) {
        const float weight = exp2f(scratch.top[at + i * rows] - top);
        total += weight * scratch.total[at + i * rows];
        const float* const from = scratch.sum + (at + i * rows) * v_stride;
        for (size_t c = 0; c < v_stride; c += kLanes) {
          store(sum + c, (i == 0 ? Vec(0.0f) : load(sum + c)) + load(from + c) * weight);
        }
      }
      const int r = row % tile_rows;
      finish(first + r / group, row / tile_rows * group + r % group, sum, total, top);
    }
  }
}

void SimdOps::attention_mass(const MassArgs& m) {
  const AttendArgs& a = *m.attend;
  if (a.tokens == 0) return;
  check_attend(a, "attention_mass");
  const auto scratch = carve<AttendScratch>();
  const Units units(a);
  const int first = m.first_query < 0 ? a.tokens - 1 : m.first_query;
  const int total = WantedUnits(m, units).count();
  const int per_task = most(kMinUnits, (total + 4 * pool_.threads() - 1) / (4 * pool_.threads()));
  const int tile_tokens = AttendPlan(limits_, a, units.total(), pool_.threads()).tile_tokens;
  const int results = m.by_head ? a.q_heads : 1;
  for (int i = 0; i < results * a.tokens && m.block_mass != nullptr; ++i) m.block_mass[i] = 0;  // without a block too
  pool_.run((total + per_task - 1) / per_task, [&](int task, int worker) {
    mass_range(m, first, tile_tokens, task * per_task, least(total, (task + 1) * per_task), scratch.workers[worker]);
  });
}

void SimdOps::likeness(const LikenessArgs& a) {
  const int row = a.shape.row(), units = a.n_pages + (a.items + kUnit - 1) / kUnit;
  check(a.items <= limits_.tokens && row <= limits_.shape.row() && a.shape.head_dim <= limits_.shape.head_dim,
        "likeness");
  const auto scratch = carve<LikenessScratch>();
  for (int i = 0; i < a.items; ++i) {
    float* const item = scratch.items + static_cast<size_t>(i) * 2 * row;
    unit_row(a.k + i * a.stride, a.key_mean, row, item);
    unit_row(a.v + i * a.stride, a.value_mean, row, item + row);
  }
  const double work = static_cast<double>(a.items) * units * kUnit * 2 * row;
  const int parts = work < kWorthThreads ? 1 : pool_.threads();
  for (int part = 0; part < parts; ++part)
    for (int i = 0; i < a.items; ++i) scratch.workers[part].like[i] = 0;
  pool_.run(parts, [&](int part, int) {
    const auto cut = [&](int i) { return static_cast<int>(static_cast<int64_t>(units) * i / parts); };
    likeness_range(a, scratch.items, cut(part), cut(part + 1), scratch.workers[part]);
  });
  for (int i = 0; i < a.items; ++i) {
    float& like = a.item_like[i];
    for (int part = 0; part < parts; ++part)
      like = scratch.workers[part].like[i] > like ? scratch.workers[part].like[i] : like;
  }
}

// Parts of `items` items of `dim` channels that are worth a thread each.
int SimdOps::parts_of(int items, int dim) const {
  return static_cast<double>(items) * dim < kWorthThreads / 8 ? 1 : pool_.threads();
}

void SimdOps::add_recent_keys(const RecentKeysArgs& a) {
  const int parts = parts_of(a.items, a.dim);
  pool_.run(parts, [&](int part, int) { add_recent_part(a, part, parts); });
}

void SimdOps::temporal_redundancy(const RedundancyArgs& a) {
  for_parts(a.items, parts_of(a.items, a.dim), [&](int begin, int end) { redundancy_range(a, begin, end); });
}

void SimdOps::row_norm(const NormArgs& a) {
  for_parts(a.items, parts_of(a.items, a.dim), [&](int begin, int end) { norm_range(a, begin, end); });
}

void SimdOps::spectral_energy(const SpectralArgs& a) {
  const int n = a.items;
  if (n > kMaxSpectral || a.dim < kLanes) return PlainOps::spectral_energy(a);
  float table[2 * kMaxSpectral];
  for (int shift = 0; shift < n; ++shift) table[n - 1 + shift] = table[n - 1 - shift] = lower_frequencies(shift, n);
  const int tiles = (n + kGemmRows - 1) / kGemmRows;
  for_parts(tiles, static_cast<double>(n) * n * a.dim < kWorthThreads ? 1 : pool_.threads(),
            [&](int begin, int end) { spectral_range(a, table, begin * kGemmRows, least(n, end * kGemmRows)); });
}

void SimdOps::assign(const AssignArgs& a) {
  const int depth = a.value_weight != 0 ? 2 * a.dim : a.dim;
  check(a.items <= limits_.tokens && a.dim <= most(limits_.dim, limits_.shape.row()), "assign");
  const auto scratch = carve<AssignScratch>();
  const int item_tiles = (a.items + kItemTile - 1) / kItemTile;
  const double work = static_cast<double>(a.items) * a.n_rows * depth;
  constexpr int kStep = kHasPairs ? kPairTile : kTile;
  const int tiles = (a.n_rows + kStep - 1) / kStep, chunks = work < kWorthThreads ? 1 : least(pool_.threads(), tiles);
  pool_.run(work < kWorthThreads ? 1 : item_tiles, [&](int task, int) {
    const int begin = task * kItemTile, end = work < kWorthThreads ? a.items : least(a.items, begin + kItemTile);
    for (int i = begin; i < end; ++i) {
      float* const item = scratch.items + static_cast<size_t>(i) * depth;
      unit_item(a, i, item);
#if defined(__AVX512BF16__)
      item_pairs(item, depth, scratch.pairs + static_cast<size_t>(i) * round_up(depth, 32) / 2);
#endif
    }
  });
  pool_.run(most(1, chunks), [&](int chunk, int worker) {
    const int begin = chunks > 0 ? tiles * chunk / chunks * kStep : 0;
    const int end = chunks > 0 ? least(a.n_rows, tiles * (chunk + 1) / chunks * kStep) : 0;
    const size_t at = static_cast<size_t>(chunk) * limits_.tokens;
#if defined(__AVX512BF16__)
    assign_chunk_bf16(a, scratch.items, scratch.pairs, begin, end, scratch.best + at, scratch.best_row + at,
                      scratch.shift + at, scratch.workers[worker]);
#else
    assign_chunk(a, scratch.items, begin, end, scratch.best + at, scratch.best_row + at, scratch.workers[worker]);
#endif
  });
  for (int i = 0; i < a.items; ++i) {
    float best = kMinusInfinity;
    int32_t row = kNone;
    for (int chunk = 0; chunk < most(1, chunks); ++chunk) {
      const size_t at = static_cast<size_t>(chunk) * limits_.tokens + i;
      if (scratch.best_row[at] == kNone) continue;
      if (scratch.best[at] > best || (scratch.best[at] == best && scratch.best_row[at] < row)) {
        best = scratch.best[at];
        row = scratch.best_row[at];
      }
    }
    a.best[i] = row;
    a.similarity[i] = best / (1.0f + a.value_weight);
  }
}

void SimdOps::update_centroids(const UpdateArgs& u) {
  check(u.dim <= most(limits_.dim, limits_.shape.row()), "update_centroids");
  const auto scratch = carve<AssignScratch>();
  const int parts = static_cast<double>(u.items) * u.dim < kWorthThreads / 8 ? 1 : pool_.threads();
  pool_.run(parts, [&](int part, int) {  // rows are independent: each part takes every parts-th row
    float* const mean = scratch.means + static_cast<size_t>(part) * 2 * u.dim;
    for (int i = 0; i < u.items; ++i) {
      const int row = u.labels[i];
      bool skip = row == kNone || row % parts != part;
      for (int j = 0; j < i && !skip; ++j) skip = u.labels[j] == row;  // its first item has taken it along
      if (!skip) update_row(u, i, mean);
    }
  });
}

void SimdOps::score(const ScoreArgs& a) {
  check(a.n_rows <= limits_.rows && a.shape.row() <= limits_.shape.row(), "score");
  const auto scratch = carve<ScoreScratch>();
  if (a.n_rows == 0) return;
  const int group = a.q_heads / a.shape.heads, d = a.shape.head_dim;
  if (a.mode == ScoreMode::kDot) {
    float* const mean_q = scratch.mean_q;
    clear(mean_q, a.shape.row());
    for (int t = 0; t < a.tokens; ++t) {
      for (int h = 0; h < a.q_heads; ++h) {
        const float* const q = a.q + t * a.q_stride + static_cast<size_t>(h) * d;
        float* const to = mean_q + static_cast<size_t>(h / group) * d;
        for (int c = 0; c < d; ++c) to[c] += q[c];
      }
    }
    if (a.tokens > 0) scale_row(mean_q, a.shape.row(), 1.0f / static_cast<float>(a.tokens * group), mean_q);
    const int parts = static_cast<double>(a.n_rows) * a.shape.row() < kWorthThreads ? 1 : 4 * pool_.threads();
    pool_.run(parts, [&](int part, int) {
      const auto cut = [&](int i) { return static_cast<int>(static_cast<int64_t>(a.n_rows) * i / parts); };
      score_dots(a, mean_q, cut(part), cut(part + 1));
    });
    return;
  }
  // Query rows of all heads in tiles; each part takes a run of tiles and sums into its own mass.
  const int rows = a.tokens * group, per_head = (rows + kScoreRows - 1) / kScoreRows, tiles = per_head * a.shape.heads;
  const double work = static_cast<double>(rows) * a.n_rows * a.shape.row();
  const int parts = most(1, work < kWorthThreads ? 1 : least(pool_.threads(), tiles));
  pool_.run(parts, [&](int part, int) {
    ScoreState& s = scratch.workers[part];
    for (int i = 0; i < a.n_rows; ++i) s.mass[i] = 0;
    const auto cut = [&](int i) { return static_cast<int>(static_cast<int64_t>(tiles) * i / parts); };
    for (int i = cut(part); i < cut(part + 1); ++i) {
      const int first = i % per_head * kScoreRows;
      score_mass(a, i / per_head, first, least(kScoreRows, rows - first), s);
    }
  });
  for (int i = 0; i < a.n_rows; ++i) {
    float sum = 0;
    for (int part = 0; part < parts; ++part) sum += scratch.workers[part].mass[i];
    a.score[i] = sum;
  }
}

void SimdOps::merge(const MergeArgs& a) {
  for (int row = 0; row < a.tokens * a.q_heads; ++row) {
    const int t = row / a.q_heads, head = row % a.q_heads;
    const float lse = a.lse[row], other = a.other_lse_of(t, head), top = lse > other ? lse : other;
    if (top == kMinusInfinity) continue;
    const float mine = expf(lse - top), theirs = expf(other - top), share = 1.0f / (mine + theirs);
    float* const to = a.out + t * a.q_stride + static_cast<size_t>(head) * a.head_dim;
    const float* const from = a.other_row(t, head);
    int c = 0;
    for (; c + kLanes <= a.head_dim; c += kLanes) {
      store(to + c, load(to + c) * (mine * share) + load(from + c) * (theirs * share));
    }
    for (; c < a.head_dim; ++c) to[c] = to[c] * (mine * share) + from[c] * (theirs * share);
    a.lse[row] = top + logf(mine + theirs);
  }
}

}  // namespace

Ops* MOSAIC_JOIN(make_ops_, MOSAIC_SIMD)(int threads) { return new SimdOps(threads); }

}  // namespace mosaic::cpu
