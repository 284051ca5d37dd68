// infinipot-v: a hard cap that needs no question, after InfiniPot-V (arXiv 2506.15745). A lane is one KV head and keeps its
// tokens in one cluster, the pot. When the slots are used up every pot is compressed to `keep` of what a lane may hold:
//   TaR  temporal redundancy: the newest frames stay whole, an older token stays if its key is unlike the newest frames'
//        keys at the same place of the grid. Share `alpha` of what is kept. Survivors keep their (t, h, w), so the places
//        still match when the grid has holes (the published code counts positions instead).
//   VaN  value norm, averaged over neighbours, decides the rest. TaR's picks stand above every VaN score.
// Frames are told apart by time, or by a place that does not rise. The newest frames are as many as fit in `recent` of the
// tokens, at least a whole one: with full grids that is the published share of the frames. Among equal scores the older goes.
// Everything stored is read; positions are contiguous, as the runtime has them.
#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <utility>

#include "policy/policy.h"

namespace mosaic {

namespace {

enum class Order : uint8_t { kBoth, kTar, kVan, kReversed, kUniform };

struct InfiniPotSettings {
  double alpha = 0.5;     // share of TaR in what is kept
  double keep = 0.75;     // of a full pot
  double recent = 0.125;  // of the tokens, in whole frames
  bool pool = false;      // average the value norms over neighbours
  Order order = Order::kBoth;
};

// Neighbours a value norm is averaged over, to either side. The less the norms of a pot differ (coefficient of variation),
// the less one of them says, so the wider it is averaged: kernel 7 in time, rows and columns; 5 in rows and columns; 3 along
// the row; none. The paper gives no thresholds; random values of 16 to 128 channels vary by 0.18 to 0.06.
struct Kernel {
  double below;  // variation up to which it is used
  int frames, rows, columns;
};
constexpr Kernel kKernels[] = {{0.1, 3, 3, 3}, {0.2, 0, 2, 2}, {0.4, 0, 0, 1}};

constexpr int kFewPages = 64;  // of a pot that are asked about at a time, where a call costs little
constexpr uint64_t kTableShare =
    32;  // of the pages, for the tables of pots that are compressed together where it does not

class InfiniPotV final : public Policy {
 public:
  explicit InfiniPotV(const InfiniPotSettings& settings) : s_(settings) {
    if (s_.order == Order::kTar) s_.alpha = 1;
    if (s_.order == Order::kVan) s_.alpha = 0;
  }
  const char* name() const override { return "infinipot-v"; }
  PolicyNeeds needs() const override {
    return {.group = {.by_token = true, .by_meta = true, .per_head = true, .unbounded = true},
            .share = {.clusters = 1}};
  }

  void bind(const StoreShape& shape, Region& region) override {
    int slots = 0;
    for (const TierSpec& tier : shape.tiers) slots += tier.medium == Medium::disk ? 0 : tier.slots;
    const Size each = slots / shape.lanes, row = shape.page.row();
    full_ = (each * kPageTokens).to_int("tokens of a pot");
    // A batch more than its share.
    lane_tokens_ = ((each + pages_for(shape.max_run) + 1) * kPageTokens).to_int("tokens of a pot and a batch");
    cells_ = (Size(shape.max_run) * 2).to_int("cells of a grid");  // the box of a frame whose last row is not full
    const Size cells = Size(cells_) + 1;
    const Size together = region.has_private() ? pots_together(shape) : 1, tokens = together * lane_tokens_;
    pots_.resize(static_cast<size_t>(together.value()));
    asked_.reserve(pots_.size());
    keep_ = region.take<uint8_t>("policy", Size(slots) * kPageTokens);
    score_ = region.take<float>("policy", tokens);
    norm_ = region.take<float>("policy", tokens);
    cell_ = region.take<int32_t>("policy", tokens);
    frame_ = region.take<int32_t>("policy", s_.pool ? tokens : Size(lane_tokens_));
    order_ = region.take<int32_t>("policy", lane_tokens_);
    const auto take = [&](Size n) { return region.take_for_kernels("policy", together * n * sizeof(float)); };
    recent_sum_ = reinterpret_cast<float*>(take(cells * row));
    recent_count_ = reinterpret_cast<int32_t*>(take(cells));
    near_count_ = region.take<int32_t>("policy", cells);
    near_sum_ = region.take<double>("policy", cells);
    const Size room = region.has_private() ? 0 : kPageTokens;
    room_k_ = region.take<float>("policy", row * room);
    room_v_ = region.take<float>("policy", row * room);
    if (region.has_private()) pages_ = region.take<PageEntry>("policy", slots);
  }

  void admit(const ClusterStore& store, const AdmitBatch& batch, Placement* out) override {
    const auto live = store.index(batch.lane).live();
    for (int i = 0; i < batch.tokens.n; ++i) {
      out[i] = {};
      if (live.empty()) {
        out[i].together = 0;
      } else {
        out[i].cluster = live[0];
      }
    }
    batch_tokens_ = batch.tokens.n;
    seen_ = store.account().seen;
  }

  int evict(const ClusterStore& store, const Need& need, Eviction* out, int capacity) override {
    if (need.kind == Need::Kind::kHotSlots) return demote_one(store, need.lane, out, capacity);
    if (need.kind != Need::Kind::kSlots) return 0;
    // All pots are compressed at once, and lanes that this batch has not come to make room for it too: with the batch in,
    // they are as long as the others, so no lane ever holds more than its share.
    const int lanes = store.shape().lanes;
    uint8_t* keep = keep_;
    int n = 0;
    size_t waiting = 0;  // pots that are not chosen from yet
    for (int i = 0; i < lanes && n < capacity; ++i) {
      const int lane = (need.lane + i) % lanes;
      if (store.index(lane).live().empty()) continue;
      const ClusterId pot = store.index(lane).live()[0];
      const int members = store.index(lane)[pot].paged;
      const int filed = lane == need.lane ? static_cast<int>(store.account().seen - seen_) : 0;
      const int coming = lane < need.lane ? 0 : batch_tokens_ - filed;
      const int target = std::max(0, static_cast<int>(s_.keep * full_) - coming);
      if (members <= target) continue;
      pots_[waiting++] = {
          .lane = lane, .id = pot, .members = members, .target = target, .cut = filed > 0 && coming > 0, .keep = keep};
      out[n++] = {.kind = Eviction::Kind::kThin, .lane = lane, .cluster = pot, .keep = keep};
      keep += members;
      if (waiting == pots_.size()) choose(store, {pots_.data(), std::exchange(waiting, 0)});
    }
    choose(store, {pots_.data(), waiting});
    return n;
  }
  void serialize(Snapshot&, const ClusterStore&) override {}  // what it knows of a batch ends with the batch

 private:
  // Exact slots for the next tokens: the lane whose turn to grow comes last lets its full pages go. Those that are still
  // exact are the newest, so a pot without one at its end has none.
  int demote_one(const ClusterStore& store, int lane, Eviction* out, int capacity) const {
    const TierChain& tiers = store.tiers();
    if (capacity < 1 || tiers.size() < 2 || tiers.is_disk(1) || tiers.free_slots(1) == 0) return 0;
    const int lanes = store.shape().lanes;
    for (int i = 0; i < lanes; ++i) {
      const int at = (lane + lanes - 1 - i) % lanes;
      const ClusterIndex& index = store.index(at);
      if (index.live().empty()) continue;
      const Cluster& pot = index[index.live()[0]];
      if (pot.tail == kNone || store.pages()[pot.tail].tier != 0) continue;
      out[0] = {.kind = Eviction::Kind::kDemote, .lane = at, .cluster = index.live()[0], .tier = 0};
      return 1;
    }
    return 0;
  }

  // One that is compressed, and what is worked out of it. Its tables are those of its place among the others.
  struct Pot {
    int lane = 0;
    ClusterId id = kNone;
    int members = 0, target = 0;
    bool cut = false;  // the last frame is not all here yet
    uint8_t* keep = nullptr;
    int skip = 0, n = 0;                      // members that go unseen, and the others
    int first = 0;                            // of the newest frames
    int rows = 0, columns = 0;                // of the grid
    float *score = nullptr, *norm = nullptr;  // [n]
    int32_t *cell = nullptr, *frame = nullptr;
  };

  // Pots whose tables take a share of what the pages do; those of a layer at least.
  int pots_together(const StoreShape& shape) const {
    uint64_t bytes = 0;
    for (const TierSpec& tier : shape.tiers)
      if (tier.medium != Medium::disk) bytes += static_cast<uint64_t>(tier.slots) * data_bytes(tier.codec, shape.page);
    const Size tables = Size(lane_tokens_) * (3 * sizeof(float)) + Size(cells_) * shape.page.row() * sizeof(float);
    const auto fit = static_cast<int64_t>(bytes / kTableShare / tables.bytes());
    return static_cast<int>(std::clamp<int64_t>(fit, std::min(shape.layer_lanes, shape.lanes), shape.lanes));
  }

  // Marks the `target` of the members that stay, in each pot.
  void choose(const ClusterStore& store, std::span<Pot> pots) {
    for (size_t i = 0; i < pots.size(); ++i) {
      Pot& pot = pots[i];
      std::fill_n(pot.keep, pot.members, uint8_t{0});
      if (s_.order == Order::kUniform) {
        const int64_t members = pot.members;
        for (int64_t m = 0; m < members; ++m) pot.keep[m] = (m + 1) * pot.target / members > m * pot.target / members;
        continue;
      }
      // Lanes take the same tokens, so none is a batch longer than its share. Were one, its oldest would go unseen.
      pot.skip = std::max(0, pot.members - lane_tokens_);
      pot.n = pot.members - pot.skip;
      const size_t at = i * static_cast<size_t>(lane_tokens_);
      pot.score = score_ + at, pot.norm = norm_ + at, pot.cell = cell_ + at, pot.frame = frame_ + (s_.pool ? at : 0);
      lay_on_grid(store, &pot);
    }
    if (s_.order == Order::kUniform) return;
    read(store, pots);
    for (const Pot& pot : pots) choose_by_signals(pot);
  }

  void choose_by_signals(const Pot& pot) {
    const int n = pot.n;
    uint8_t* const keep = pot.keep + pot.skip;
    if (s_.pool) pool(pot);
    if (s_.order == Order::kReversed) {
      for (int i = 0; i < n; ++i) pot.score[i] = -pot.score[i], pot.norm[i] = -pot.norm[i];
    }
    int kept = 0;
    if (s_.alpha > 0) {
      kept = std::min(n - pot.first, pot.target);
      std::fill_n(keep + n - kept, kept, uint8_t{1});
      kept += take_highest(pot.score, pot.first, static_cast<int>(s_.alpha * pot.target) - kept, keep);
    }
    take_highest(pot.norm, n, pot.target - kept, keep);
  }

  // The `wanted` highest of those of [0, n) that are not kept yet, older ones yielding among equals. Returns how many.
  int take_highest(const float* score, int n, int wanted, uint8_t* keep) {
    int left = 0;
    for (int i = 0; i < n; ++i)
      if (keep[i] == 0) order_[left++] = i;
    wanted = std::clamp(wanted, 0, left);
    std::nth_element(order_, order_ + wanted, order_ + left,
                     [&](int32_t a, int32_t b) { return score[a] > score[b] || (score[a] == score[b] && a > b); });
    for (int i = 0; i < wanted; ++i) keep[order_[i]] = 1;
    return wanted;
  }

  // Frame and cell of the grid of every member, and where the newest frames begin.
  void lay_on_grid(const ClusterStore& store, Pot* pot) {
    int32_t *const cell = pot->cell, *const frame = pot->frame;
    const int n = pot->n;
    int low_h = 1 << 16, high_h = -1, low_w = 1 << 16, high_w = -1;
    int at = -pot->skip, newest = 0;  // where the last frame begins
    TokenMeta last{};                 // the last one with a place in the grid, if this frame has had any
    int32_t time = 0;
    for (PageId id = store.index(pot->lane)[pot->id].head; id != kNone; id = store.pages()[id].next) {
      const Page& page = store.pages()[id];
      const TokenMeta* meta = store.tiers().page(page.tier, page.slot).meta;
      for (int i = 0; i < page.count; ++i, ++at) {
        if (at < 0) continue;
        const TokenMeta& m = meta[i];
        const bool text = m.h == kText;
        const bool rises = text || last.h == kText || m.h > last.h || (m.h == last.h && m.w > last.w);
        const bool opens = at == 0 || m.time_low != time || !rises;
        frame[at] = at == 0 ? 0 : frame[at - 1] + (opens ? 1 : 0);
        if (opens) newest = at;
        time = m.time_low;
        if (opens || !text) last = m;
        cell[at] = text ? -1 : m.h << 16 | m.w;
        if (text) continue;
        low_h = std::min<int>(low_h, m.h), high_h = std::max<int>(high_h, m.h);
        low_w = std::min<int>(low_w, m.w), high_w = std::max<int>(high_w, m.w);
      }
    }
    int first = newest;
    for (int i = newest - 1; i >= 0 && ((pot->cut && frame[i] + 1 == frame[newest]) || n - i <= s_.recent * n); --i)
      if (i == 0 || frame[i - 1] != frame[i]) first = i;
    // Frames of several shapes may span a box that is too large: then the newest frame's is the grid, which always fits.
    if ((high_h - low_h + 1) * int64_t{high_w - low_w + 1} > cells_) {
      low_h = low_w = 1 << 16, high_h = high_w = -1;
      for (int i = newest; i < n; ++i) {
        if (cell[i] < 0) continue;
        low_h = std::min(low_h, cell[i] >> 16), high_h = std::max(high_h, cell[i] >> 16);
        low_w = std::min(low_w, cell[i] & 0xffff), high_w = std::max(high_w, cell[i] & 0xffff);
      }
    }
    if (high_h < 0) low_h = high_h = low_w = high_w = 0;  // nothing but text
    pot->rows = high_h - low_h + 1;
    pot->columns = high_w - low_w + 1;
    pot->first = first;
    for (int i = 0; i < n; ++i) {
      const int h = cell[i] < 0 ? -1 : (cell[i] >> 16) - low_h, w = (cell[i] & 0xffff) - low_w;
      // Text and what stands outside have no place.
      cell[i] = h >= 0 && h < pot->rows && w >= 0 && w < pot->columns ? h * pot->columns + w : kNone;
    }
  }

  // TaR scores of the members, and value norms.
  void read(const ClusterStore& store, std::span<Pot> pots) {
    Ops& ops = store.ops();
    const auto add_recent = [&] {
      if (s_.alpha > 0) ops.add_recent_pages(asked_);
    };
    const auto measure = [&] { ops.page_signals(asked_); };
    if (pages_ != nullptr) {
      for_pages(store, pots, [&] { add_recent(), measure(); });  // all of them are listed
    } else {
      for_pages(store, pots, add_recent);
      for_pages(store, pots, measure);
    }
    ops.wait();
    // An exact page of half precision may have overflowed: what is not a number is as dull, or as large, as can be.
    for (const Pot& pot : pots)
      for (int i = 0; i < pot.n; ++i) {
        if (s_.alpha > 0 && !std::isfinite(pot.score[i])) pot.score[i] = -1;
        if (!std::isfinite(pot.norm[i])) pot.norm[i] = std::numeric_limits<float>::max();
      }
  }

  // Calls ask() with asked_ about the pages of all pots, as many at a time as can be listed.
  template <class Ask>
  void for_pages(const ClusterStore& store, std::span<const Pot> pots, const Ask& ask) {
    std::array<PageEntry, kFewPages> few;
    PageEntry* const pages = pages_ != nullptr ? pages_ : few.data();
    const int most = pages_ != nullptr ? std::numeric_limits<int>::max() : kFewPages;  // pages_ has room for all
    int listed = 0;
    asked_.clear();
    for (size_t i = 0; i < pots.size(); ++i) {
      const Pot& pot = pots[i];
      asked_.push_back(args_of(store, pot, i));
      asked_.back().pages = pages + listed;
      int at = -pot.skip;
      for (PageId id = store.index(pot.lane)[pot.id].head; id != kNone; id = store.pages()[id].next) {
        const Page& page = store.pages()[id];
        const int begin = std::max(0, -at);
        if (begin < page.count) {
          if (listed == most) {
            ask();
            listed = 0;
            asked_.erase(asked_.begin(), asked_.end() - 1);
            asked_.back().pages = pages, asked_.back().n_pages = 0, asked_.back().fresh = false;
          }
          pages[listed++] = {store.tiers().page(page.tier, page.slot).data, at + begin, rows_of(begin, page.count),
                             store.tiers().spec(page.tier).codec};
          ++asked_.back().n_pages;
        }
        at += page.count;
      }
    }
    ask();
  }

  PotArgs args_of(const ClusterStore& store, const Pot& pot, size_t i) const {
    PotArgs a;
    a.shape = store.shape().page;
    a.place = pot.cell, a.places = pot.rows * pot.columns, a.recent = pot.first;
    a.sum = recent_sum_ + i * static_cast<size_t>(cells_ + 1) * static_cast<size_t>(a.shape.row());
    a.count = recent_count_ + i * static_cast<size_t>(cells_ + 1);
    a.score = s_.alpha > 0 ? pot.score : nullptr, a.norm = pot.norm;
    a.room_k = room_k_, a.room_v = room_v_;
    return a;
  }

  // Averages norms over the neighbours that survive. The window of frames slides: every token enters and leaves it once.
  void pool(const Pot& pot) {
    const int n = pot.n;
    float* const norm = pot.norm;
    const int32_t *const at = pot.cell, *const frame = pot.frame;
    double sum = 0, squares = 0;
    for (int i = 0; i < n; ++i) sum += norm[i];
    const double mean = sum / n;
    for (int i = 0; i < n; ++i) squares += (norm[i] - mean) * (norm[i] - mean);
    const double variation = mean > 0 ? std::sqrt(squares / n) / mean : 0;
    const auto kernel =
        std::find_if(std::begin(kKernels), std::end(kKernels), [&](const Kernel& k) { return variation < k.below; });
    if (mean == 0 || kernel == std::end(kKernels)) return;
    std::fill_n(near_sum_, cells_ + 1, 0.0);
    std::fill_n(near_count_, cells_ + 1, 0);
    float* pooled = reinterpret_cast<float*>(order_);  // free until something is taken
    const auto cell = [&](int i) { return at[i] != kNone ? at[i] : cells_; };
    for (int i = 0, in = 0, out = 0; i < n; ++i) {
      for (; in < n && frame[in] <= frame[i] + kernel->frames; ++in) {
        near_sum_[cell(in)] += norm[in];
        ++near_count_[cell(in)];
      }
      for (; frame[out] < frame[i] - kernel->frames; ++out) {
        if (--near_count_[cell(out)] == 0)
          near_sum_[cell(out)] = 0;
        else
          near_sum_[cell(out)] -= norm[out];
      }
      if (at[i] == kNone) {
        pooled[i] = norm[i];
        continue;
      }
      const int h = at[i] / pot.columns, w = at[i] % pot.columns;
      double total = 0;
      int count = 0;
      for (int y = std::max(0, h - kernel->rows); y <= std::min(pot.rows - 1, h + kernel->rows); ++y)
        for (int x = std::max(0, w - kernel->columns); x <= std::min(pot.columns - 1, w + kernel->columns); ++x) {
          total += near_sum_[y * pot.columns + x];
          count += near_count_[y * pot.columns + x];
        }
      pooled[i] = static_cast<float>(total / count);
    }
    std::copy_n(pooled, n, norm);
  }

  InfiniPotSettings s_;
  int full_ = 0;           // tokens of a full pot, |M|
  int lane_tokens_ = 0;    // most members that are scored
  int cells_ = 0;          // of the grid
  int batch_tokens_ = 0;   // of the batch that is being admitted
  int64_t seen_ = 0;       // tokens the store had seen before this lane's part of it
  std::vector<Pot> pots_;  // those that are compressed together
  std::vector<PotArgs> asked_;
  uint8_t* keep_ = nullptr;  // [members of all lanes]
  float* score_ = nullptr;   // [pots, lane tokens] TaR
  float* norm_ = nullptr;    // [pots, lane tokens] VaN
  int32_t* cell_ = nullptr;
  int32_t* frame_ = nullptr;     // of one pot where nothing is pooled
  int32_t* order_ = nullptr;     // [lane tokens]
  float* recent_sum_ = nullptr;  // [pots, cells + 1, row]
  int32_t* recent_count_ = nullptr;
  int32_t* near_count_ = nullptr;  // [cells + 1]
  double* near_sum_ = nullptr;
  PageEntry* pages_ = nullptr;  // [pages of all pots] where they are asked about together
  float* room_k_ = nullptr;     // [16, row] where kernels have no memory of their own
  float* room_v_ = nullptr;
};

}  // namespace

MOSAIC_POLICY("infinipot-v", make_infinipot_v) {
  InfiniPotSettings s;
  int order = 0;
  SettingReader("infinipot-v", settings)
      .number("alpha", &s.alpha, 0, 1)
      .number("keep", &s.keep, 0.05, 0.99)
      .number("recent", &s.recent, 0, 0.9)
      .flag("pool", &s.pool)
      .choice("order", &order, {"both", "tar", "van", "reversed", "uniform"})
      .finish();
  s.order = static_cast<Order>(order);
  return std::make_unique<InfiniPotV>(s);
}

}  // namespace mosaic
