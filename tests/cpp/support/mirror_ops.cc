#include "support/mirror_ops.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "support/mirror.h"

namespace mosaic::testing {
namespace {

class MirrorOps final : public Ops {
 public:
  explicit MirrorOps(Backend backend) : backend_(std::move(backend)) {}
  ~MirrorOps() override { device().release(scratch_, scratch_size_); }
  const char* name() const override { return ops().name(); }
  size_t scratch_bytes(const Limits& limits) const override { return ops().scratch_bytes(limits); }
  void set_scratch(void* memory, const Limits& limits) override {
    scratch_size_ = ops().scratch_bytes(limits);
    scratch_ = device().allocate_private(scratch_size_);
    device().copy_async(scratch_, memory, scratch_size_);
    ops().set_scratch(scratch_, limits);
  }

  void copy(void* to, const void* from, size_t bytes) override {
    Mirror m(device());
    std::byte* const there = m.inout(static_cast<std::byte*>(to), bytes);
    ops().copy(there, m.in(static_cast<const std::byte*>(from), bytes), bytes);
    m.back();
  }
  void check_numbers(const float* x, size_t n, NumberFaults* faults, float* cut) override {
    Mirror m(device());
    NumberFaults* const there = m.inout(faults, 1);
    float* const cut_there = cut != nullptr ? m.inout(cut, n) : nullptr;
    ops().check_numbers(m.in(x, n), n, there, cut_there);
    m.back();
  }
  void attend(const AttendArgs& a) override {
    Mirror m(device());
    RopeTable rope;
    ops().attend(mirror(m, a, &rope));
    m.back();
  }
  void stage(const StageArgs& a) override {
    Mirror m(device());
    StageArgs b = a;
    for (StageArgs::Numbers& numbers : b.numbers)
      numbers.x = m.in(numbers.x, numbers.n), numbers.cut = m.inout(numbers.cut, numbers.n);
    b.faults = m.inout(a.faults, 1);
    if (a.count > 0) {
      const size_t row = size_of(a.shape.row()), lanes = size_of(a.lanes - 1);
      b.k = m.in(a.k, extent(a.count, a.stride, a.shape.row()) + lanes * row);
      b.v = m.in(a.v, extent(a.count, a.stride, a.shape.row()) + lanes * row);
      b.pages = m.inout(a.pages, lanes * a.lane_pitch + run_bytes(a.codec, a.shape, a.first + a.count, a.pitch));
    }
    std::vector<StageArgs::Piece> pieces(a.pieces.begin(), a.pieces.end());
    for (StageArgs::Piece& piece : pieces) {
      piece.to = m.inout(static_cast<std::byte*>(piece.to), piece.bytes);
      piece.from = m.in(static_cast<const std::byte*>(piece.from), piece.bytes);
    }
    b.pieces = pieces;
    ops().stage(b);
    m.back();
  }
  void attend_lanes(std::span<const AttendArgs> lanes) override {
    Mirror m(device());
    std::vector<RopeTable> ropes(lanes.size());
    std::vector<AttendArgs> there;
    for (size_t i = 0; i < lanes.size(); ++i) there.push_back(mirror(m, lanes[i], &ropes[i]));
    ops().attend_lanes(there);
    m.back();
  }
  void mass_lanes(std::span<const MassArgs> lanes) override {
    Mirror m(device());
    std::vector<RopeTable> ropes(lanes.size());
    std::vector<AttendArgs> attend(lanes.size());
    std::vector<MassArgs> there(lanes.begin(), lanes.end());
    for (size_t i = 0; i < lanes.size(); ++i) {
      attend[i] = mirror(m, *lanes[i].attend, &ropes[i]);
      there[i].attend = &attend[i];
      there[i].page_mass = m.inout(lanes[i].page_mass, page_tokens(*lanes[i].attend));
      there[i].row_mass = m.inout(lanes[i].row_mass, size_of(attend[i].n_rows));
      there[i].block_mass = m.inout(lanes[i].block_mass, size_of(attend[i].tokens));
    }
    ops().mass_lanes(there);
    m.back();
  }
  void encode_lane_rows(const LaneRowsArgs& a) override {
    Mirror m(device());
    LaneRowsArgs b = a;
    const size_t items = size_of(a.items), size = table_rows(a.row, a.items) * a.stride;
    std::map<std::byte*, std::byte*> there;
    std::vector<std::byte*>& list = pages_.emplace_back();
    for (size_t i = 0; i < items; ++i) {
      const auto [found, fresh] = there.try_emplace(a.pages[i], nullptr);
      if (fresh) found->second = m.inout(a.pages[i], data_bytes(a.codec, a.shape));
      list.push_back(found->second);
    }
    b.k = m.in(a.k, size), b.v = m.in(a.v, size), b.row = m.in(a.row, items), b.lane = m.in(a.lane, items);
    b.pages = m.in(list.data(), items), b.at = m.in(a.at, items);
    b.key_mean = m.in(a.key_mean, table_rows(a.lane, a.items) * size_of(a.shape.row()));
    ops().encode_lane_rows(b);
    m.back();
    pages_.clear();
  }
  void enter_lanes(const EnterArgs& a) override {
    Mirror m(device());
    EnterArgs b = a;
    const size_t items = size_of(a.items), moves = size_of(a.n_moves), row = size_of(a.shape.row());
    std::map<const std::byte*, std::byte*> there;
    const auto mirrored = [&](const std::byte* page) {
      const auto [found, fresh] = there.try_emplace(page, nullptr);
      if (fresh) found->second = m.inout(const_cast<std::byte*>(page), data_bytes(a.codec, a.shape));
      return found->second;
    };
    std::vector<std::byte*>& list = pages_.emplace_back();
    for (size_t i = 0; i < items; ++i) list.push_back(mirrored(a.pages[i]));
    std::vector<RowMove> moved(a.moves, a.moves + moves);
    for (RowMove& move : moved) move.from = mirrored(move.from), move.to = mirrored(const_cast<std::byte*>(move.to));
    const size_t lanes = table_rows(a.lane, a.items), tokens = table_rows(a.row, a.items);
    b.from = items == 0
                 ? nullptr
                 : m.in(a.from, (lanes - 1) * a.lane_pitch +
                                    run_bytes(a.from_codec, a.shape, a.first + static_cast<int>(tokens), a.pitch));
    b.row = m.in(a.row, items), b.lane = m.in(a.lane, items), b.pages = m.in(list.data(), items);
    b.at = m.in(a.at, items), b.key_mean = m.in(a.key_mean, lanes * row);
    b.norm = m.inout(a.norm, items == 0 ? 0 : (lanes - 1) * a.norm_pitch + tokens);
    b.moves = m.in(moved.data(), moves), b.leaves = m.in(a.leaves, items), b.followed = m.in(a.followed, moves);
    b.room_k = b.room_v = nullptr;  // kernels have room of their own
    ops().enter_lanes(b);
    m.back();
    pages_.clear();
  }
  void pack_pages(PageShape shape, std::span<const PackArgs> runs, float*, float*) override {
    Mirror m(device());
    std::vector<PackArgs> there(runs.begin(), runs.end());
    std::vector<std::vector<PackPage>> lists;
    lists.reserve(runs.size());
    for (PackArgs& run : there) {
      std::vector<PackPage>& list = lists.emplace_back(run.pages, run.pages + run.n_pages);
      for (PackPage& page : list) page.data = m.inout(page.data, data_bytes(page.codec, shape));
      run.pages = m.in(list.data(), list.size());
    }
    ops().pack_pages(shape, there, nullptr, nullptr);
    m.back();
  }
  void add_recent_pages(std::span<const PotArgs> lanes) override {
    Mirror m(device());
    std::vector<PotArgs> there;
    for (const PotArgs& a : lanes) there.push_back(mirror(m, a));
    ops().add_recent_pages(there);
    m.back();
  }
  void page_signals(std::span<const PotArgs> lanes) override {
    Mirror m(device());
    std::vector<PotArgs> there;
    for (const PotArgs& a : lanes) there.push_back(mirror(m, a));
    ops().page_signals(there);
    m.back();
  }
  void attend_and_measure(std::span<const AttendArgs> lanes, std::span<const MassArgs> mass) override {
    Mirror m(device());
    std::vector<RopeTable> ropes(lanes.size());
    std::vector<AttendArgs> attend;
    for (size_t i = 0; i < lanes.size(); ++i) attend.push_back(mirror(m, lanes[i], &ropes[i]));
    std::vector<MassArgs> there(mass.begin(), mass.end());
    for (size_t i = 0; i < there.size(); ++i) {
      there[i].attend = &attend[i];
      there[i].page_mass = m.inout(mass[i].page_mass, page_tokens(lanes[i]));
      there[i].row_mass = m.inout(mass[i].row_mass, size_of(lanes[i].n_rows));
      there[i].block_mass = m.inout(mass[i].block_mass, size_of(lanes[i].tokens));
    }
    ops().attend_and_measure(attend, there);
    m.back();
  }
  void attention_mass(const MassArgs& args) override {
    Mirror m(device());
    RopeTable rope;
    const AttendArgs b = mirror(m, *args.attend, &rope);
    MassArgs mass = args;
    mass.attend = &b;
    const size_t heads = args.by_head ? size_of(args.attend->q_heads) : 1, tokens = page_tokens(*args.attend);
    mass.page_mass = m.inout(args.page_mass, (heads - 1) * args.mass_stride + tokens);
    mass.row_mass = m.inout(args.row_mass, heads * size_of(args.attend->n_rows));
    mass.block_mass = m.inout(args.block_mass, heads * size_of(args.attend->tokens));
    ops().attention_mass(mass);
    m.back();
  }
  void likeness(const LikenessArgs& a) override {
    Mirror m(device());
    ops().likeness(mirror(m, a));
    m.back();
  }
  void likeness_lanes(std::span<const LikenessArgs> lanes) override {
    Mirror m(device());
    std::vector<LikenessArgs> there;
    for (const LikenessArgs& a : lanes) there.push_back(mirror(m, a));
    ops().likeness_lanes(there);
    m.back();
  }
  void add_recent_keys(const RecentKeysArgs& a) override {
    Mirror m(device());
    RecentKeysArgs b = a;
    const size_t places = table_rows(a.place, a.items);
    b.k = m.in(a.k, extent(a.items, a.stride, a.dim)), b.place = m.in(a.place, size_of(a.items));
    b.sum = m.inout(a.sum, places * size_of(a.dim)), b.count = m.inout(a.count, places);
    ops().add_recent_keys(b);
    m.back();
  }
  void temporal_redundancy(const RedundancyArgs& a) override {
    Mirror m(device());
    RedundancyArgs b = a;
    const size_t places = table_rows(a.place, a.items);
    b.k = m.in(a.k, extent(a.items, a.stride, a.dim)), b.place = m.in(a.place, size_of(a.items));
    b.sum = m.in(a.sum, places * size_of(a.dim)), b.count = m.in(a.count, places);
    b.score = m.inout(a.score, size_of(a.items));
    ops().temporal_redundancy(b);
    m.back();
  }
  void row_norm(const NormArgs& a) override {
    Mirror m(device());
    NormArgs b = a;
    b.x = m.in(a.x, extent(a.items, a.stride, a.dim)), b.norm = m.inout(a.norm, size_of(a.items));
    ops().row_norm(b);
    m.back();
  }
  void spectral_energy(const SpectralArgs& a) override {
    Mirror m(device());
    SpectralArgs b = a;
    b.x = m.in(a.x, extent(a.items, a.stride, a.dim)), b.energy = m.inout(a.energy, size_of(a.items));
    ops().spectral_energy(b);
    m.back();
  }
  void assign(const AssignArgs& a) override {
    Mirror m(device());
    ops().assign(mirror(m, a));
    m.back();
  }
  void assign_lanes(std::span<const AssignArgs> lanes) override {
    Mirror m(device());
    std::vector<AssignArgs> there;
    for (const AssignArgs& a : lanes) there.push_back(mirror(m, a));
    ops().assign_lanes(there);
    m.back();
  }
  void update_centroids(const UpdateArgs& u) override {
    Mirror m(device());
    UpdateArgs b = u;
    const size_t rows = u.items == 0 ? 0 : table_rows(u.labels, u.items), items = extent(u.items, u.stride, u.dim);
    b.k = m.in(u.k, items), b.v = m.in(u.v, items), b.labels = m.in(u.labels, size_of(u.items));
    b.mean_k = m.inout(u.mean_k, rows * size_of(u.dim)), b.mean_v = m.inout(u.mean_v, rows * size_of(u.dim));
    b.count = m.inout(u.count, rows), b.variance = m.inout(u.variance, rows);
    ops().update_centroids(b);
    m.back();
  }
  void score(const ScoreArgs& a) override {
    Mirror m(device());
    ScoreArgs b = a;
    b.q = m.in(a.q, extent(a.tokens, a.q_stride, a.q_heads * a.shape.head_dim));
    b.mean_k = m.in(a.mean_k, table_rows(a.rows, a.n_rows) * size_of(a.shape.row()));
    b.rows = m.in(a.rows, size_of(a.n_rows)), b.row_bias = m.in(a.row_bias, size_of(a.n_rows));
    b.score = m.inout(a.score, size_of(a.n_rows));
    ops().score(b);
    m.back();
  }
  int top_k(const float* score, int n, int k, int32_t* index) override {
    Mirror m(device());
    int32_t* const to = m.inout(index, size_of(std::max(0, std::min(k, n))));
    const int kept = ops().top_k(m.in(score, size_of(n)), n, k, to);
    m.back();
    return kept;
  }
  void merge(const MergeArgs& a) override {
    Mirror m(device());
    MergeArgs b = a;
    const size_t size = extent(a.tokens, a.q_stride, a.q_heads * a.head_dim), rows = size_of(a.tokens * a.q_heads);
    b.out = m.inout(a.out, size), b.lse = m.inout(a.lse, rows);
    b.other_out = m.in(a.other_out, a.group > 0 ? size_of(a.q_heads / a.group * a.head_dim) : size);
    b.other_lse = m.in(a.other_lse, a.group > 0 ? size_of(a.q_heads) : rows);
    ops().merge(b);
    m.back();
  }
  void encode(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int count, std::byte* page,
              const float* key_mean) override {
    Mirror m(device());
    const size_t size = extent(count, stride, shape.row());
    std::byte* const to = m.inout(page, data_bytes(codec, shape));
    ops().encode(codec, shape, m.in(k, size), m.in(v, size), stride, count, to, mean(m, key_mean, shape));
    ops().wait();  // a call for a page may be held back, and what comes back comes by the device
    m.back();
  }
  void grow_page(const GrowArgs& a) override {
    Mirror m(device());
    GrowArgs b = a;
    const size_t size = extent(a.count, a.stride, a.shape.row());
    b.to = m.inout(a.to, data_bytes(a.codec, a.shape));
    b.from = a.from == a.to ? b.to : m.in(a.from, data_bytes(a.from_codec, a.shape));
    b.k = m.in(a.k, size), b.v = m.in(a.v, size), b.room_k = b.room_v = nullptr;  // kernels have room of their own
    ops().grow_page(b);
    ops().wait();
    m.back();
  }
  void encode_row(CodecId codec, PageShape shape, const float* k, const float* v, int at, std::byte* page,
                  const float* key_mean) override {
    Mirror m(device());
    std::byte* const to = m.inout(page, data_bytes(codec, shape));
    const size_t row = size_of(shape.row());
    ops().encode_row(codec, shape, m.in(k, row), m.in(v, row), at, to, mean(m, key_mean, shape));
    ops().wait();
    m.back();
  }
  void encode_rows(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int items,
                   std::byte* const* pages, const int32_t* at, const float* key_mean) override {
    Mirror m(device());
    const size_t size = extent(items, stride, shape.row());
    std::map<std::byte*, std::byte*> there;  // a page may be given several times
    std::vector<std::byte*>& list = pages_.emplace_back();
    for (int i = 0; i < items; ++i) {
      const auto [found, fresh] = there.try_emplace(pages[i], nullptr);
      if (fresh) found->second = m.inout(pages[i], data_bytes(codec, shape));
      list.push_back(found->second);
    }
    ops().encode_rows(codec, shape, m.in(k, size), m.in(v, size), stride, items, m.in(list.data(), list.size()),
                      m.in(at, size_of(items)), mean(m, key_mean, shape));
    m.back();
    pages_.clear();
  }
  void move_row(CodecId codec, PageShape shape, const std::byte* from, int from_at, std::byte* to, int to_at) override {
    Mirror m(device());
    const size_t size = data_bytes(codec, shape);
    std::byte* const there = m.inout(to, size);
    ops().move_row(codec, shape, from == to ? there : m.in(from, size), from_at, there, to_at);
    m.back();
  }
  void decode(CodecId codec, PageShape shape, const std::byte* page, int begin, int end, float* k, float* v,
              size_t stride, const float* key_mean) override {
    Mirror m(device());
    const size_t size = extent(end - begin, stride, shape.row());
    float *const to_k = m.inout(k, size), *const to_v = m.inout(v, size);
    const std::byte* const from = m.in(page, data_bytes(codec, shape));
    ops().decode(codec, shape, from, begin, end, to_k, to_v, stride, mean(m, key_mean, shape));
    ops().wait();
    m.back();
  }
  void encode_run(CodecId codec, PageShape shape, const float* k, const float* v, size_t stride, int first, int count,
                  std::byte* pages, size_t pitch, const float* key_mean) override {
    Mirror m(device());
    const size_t size = extent(count, stride, shape.row());
    std::byte* const to = m.inout(pages, run_bytes(codec, shape, first + count, pitch));
    ops().encode_run(codec, shape, m.in(k, size), m.in(v, size), stride, first, count, to, pitch,
                     mean(m, key_mean, shape));
    m.back();
  }
  void decode_run(CodecId codec, PageShape shape, const std::byte* pages, size_t pitch, int first, int count, float* k,
                  float* v, size_t stride, const float* key_mean) override {
    Mirror m(device());
    const size_t size = extent(count, stride, shape.row());
    float *const to_k = m.inout(k, size), *const to_v = m.inout(v, size);
    const std::byte* const from = m.in(pages, run_bytes(codec, shape, first + count, pitch));
    ops().decode_run(codec, shape, from, pitch, first, count, to_k, to_v, stride, mean(m, key_mean, shape));
    ops().wait();
    m.back();
  }
  void gather_lanes(const PageEntry* pages, const int32_t* at, const int32_t* lane, int items, PageShape shape,
                    float* k, float* v, size_t stride, const float* key_means) override {
    Mirror m(device());
    const size_t size = extent(items, stride, shape.row()), n = size_of(items);
    float *const to_k = m.inout(k, size), *const to_v = m.inout(v, size);
    ops().gather_lanes(entries(m, pages, items, shape), m.in(at, n), m.in(lane, n), items, shape, to_k, to_v, stride,
                       m.in(key_means, table_rows(lane, items) * size_of(shape.row())));
    m.back();
  }
  void gather(const PageEntry* pages, const int32_t* at, int items, PageShape shape, float* k, float* v, size_t stride,
              const float* key_mean) override {
    Mirror m(device());
    const size_t size = extent(items, stride, shape.row());
    float *const to_k = m.inout(k, size), *const to_v = m.inout(v, size);
    ops().gather(entries(m, pages, items, shape), m.in(at, size_of(items)), items, shape, to_k, to_v, stride,
                 mean(m, key_mean, shape));
    m.back();
  }

 private:
  Device& device() const { return *backend_.device; }
  Ops& ops() const { return *backend_.ops; }

  static const float* mean(Mirror& m, const float* key_mean, PageShape shape) {
    return m.in(key_mean, size_of(shape.row()));
  }
  static AssignArgs mirror(Mirror& m, const AssignArgs& a) {
    AssignArgs b = a;
    const size_t table = table_rows(a.rows, a.n_rows) * size_of(a.dim), items = extent(a.items, a.stride, a.dim);
    b.k = m.in(a.k, items), b.v = m.in(a.v, items), b.mean_k = m.in(a.mean_k, table), b.mean_v = m.in(a.mean_v, table);
    b.rows = m.in(a.rows, size_of(a.n_rows));
    b.best = m.inout(a.best, size_of(a.items)), b.similarity = m.inout(a.similarity, size_of(a.items));
    return b;
  }
  static size_t run_bytes(CodecId codec, PageShape shape, int count, size_t pitch) {
    return count == 0 ? 0 : size_of((count - 1) / kPageTokens) * pitch + data_bytes(codec, shape);
  }
  static size_t page_tokens(const AttendArgs& a) {
    int tokens = 0;
    for (int i = 0; i < a.n_pages; ++i) {
      tokens = std::max(tokens, a.pages[i].first + a.pages[i].span());
    }
    return size_of(tokens);
  }
  static const PageEntry* entries(Mirror& m, const PageEntry* pages, int n, PageShape shape) {
    std::vector<PageEntry>& there = m.keep(std::vector<PageEntry>(pages, pages + n));
    for (PageEntry& page : there) page.data = m.in(page.data, data_bytes(page.codec, shape));
    return m.in(there.data(), there.size());
  }
  static LikenessArgs mirror(Mirror& m, const LikenessArgs& a) {
    LikenessArgs b = a;
    const size_t items = extent(a.items, a.stride, a.shape.row()), row = size_of(a.shape.row());
    size_t tokens = 0;
    for (int i = 0; i < a.n_pages; ++i) tokens = std::max(tokens, size_of(a.pages[i].first + a.pages[i].span()));
    b.k = m.in(a.k, items), b.v = m.in(a.v, items);
    b.key_mean = m.in(a.key_mean, row), b.value_mean = m.in(a.value_mean, row);
    b.pages = entries(m, a.pages, a.n_pages, a.shape);
    b.item_score = m.in(a.item_score, size_of(a.items)), b.token_score = m.in(a.token_score, tokens);
    b.item_like = m.inout(a.item_like, size_of(a.items)), b.token_like = m.inout(a.token_like, tokens);
    return b;
  }
  static PotArgs mirror(Mirror& m, const PotArgs& a) {
    PotArgs b = a;
    size_t items = 0;
    for (int i = 0; i < a.n_pages; ++i) items = std::max(items, size_of(a.pages[i].first + a.pages[i].span()));
    b.pages = entries(m, a.pages, a.n_pages, a.shape);
    b.place = m.in(a.place, items);
    b.sum = m.inout(a.sum, size_of(a.places) * size_of(a.shape.row())), b.count = m.inout(a.count, size_of(a.places));
    b.score = m.inout(a.score, items), b.norm = m.inout(a.norm, items);
    b.room_k = b.room_v = nullptr;  // kernels have room of their own
    return b;
  }
  static AttendArgs mirror(Mirror& m, const AttendArgs& a, RopeTable* rope) {
    AttendArgs b = a;
    const int q_width = a.q_heads * a.shape.head_dim;
    const size_t q = extent(a.tokens, a.q_stride, q_width), block = extent(a.tokens, a.kv_stride, a.shape.row());
    const size_t means = a.n_rows == 0 ? 0 : table_rows(a.rows, a.n_rows) * size_of(a.shape.row());
    b.q = m.in(a.q, q), b.q_positions = m.in(a.q_positions, 3 * size_of(a.tokens));
    if (a.rope != nullptr) *rope = m.rope(*a.rope), b.rope = rope;
    b.pages = entries(m, a.pages, a.n_pages, a.shape), b.positions = m.in(a.positions, page_tokens(a));
    b.places = m.in(a.places, 2 * page_tokens(a)), b.key_mean = mean(m, a.key_mean, a.shape);
    b.mean_k = m.in(a.mean_k, means), b.mean_v = m.in(a.mean_v, means), b.rows = m.in(a.rows, size_of(a.n_rows));
    b.row_positions = m.in(a.row_positions, 3 * size_of(a.n_rows));
    b.row_bias = m.in(a.row_bias, size_of(a.n_rows));
    b.block_k = m.in(a.block_k, block), b.block_v = m.in(a.block_v, block);
    b.out = m.inout(a.out, q), b.lse = m.inout(a.lse, size_of(a.tokens * a.q_heads));
    return b;
  }

  Backend backend_;
  std::vector<std::vector<std::byte*>> pages_;  // of a call, until its copies have run
  void* scratch_ = nullptr;
  size_t scratch_size_ = 0;
};

}  // namespace

std::unique_ptr<Ops> make_mirror(Backend backend) { return std::make_unique<MirrorOps>(std::move(backend)); }

}  // namespace mosaic::testing
