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
#include <cmath>
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

// Pages decoded at a time where each launch costs: so many at most, and a share of a pot, so that little of a small cap goes.
constexpr int kChunkPages = 64, kChunkShare = 8;

class InfiniPotV final : public Policy {
 public:
  explicit InfiniPotV(const InfiniPotSettings& settings) : s_(settings) {
    if (s_.order == Order::kTar) s_.alpha = 1;
    if (s_.order == Order::kVan) s_.alpha = 0;
  }
  const char* name() const override { return "infinipot-v"; }
  PolicyNeeds needs() const override {
    return {.group = {.by_token = true, .per_head = true, .unbounded = true}, .share = {.clusters = 1}};
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
    keep_ = region.take<uint8_t>("policy", Size(slots) * kPageTokens);
    score_ = region.take<float>("policy", lane_tokens_);
    norm_ = region.take<float>("policy", lane_tokens_);
    cell_ = region.take<int32_t>("policy", lane_tokens_);
    frame_ = region.take<int32_t>("policy", lane_tokens_);
    order_ = region.take<int32_t>("policy", lane_tokens_);
    recent_sum_ = region.take<float>("policy", cells * row);
    recent_count_ = region.take<int32_t>("policy", cells);
    near_count_ = region.take<int32_t>("policy", cells);
    near_sum_ = region.take<double>("policy", cells);
    const int pages = region.has_private() ? std::clamp(lane_tokens_ / (kChunkShare * kPageTokens), 1, kChunkPages) : 1;
    chunk_ = pages * kPageTokens;
    k_ = region.take<float>("policy", row * chunk_);
    v_ = region.take<float>("policy", row * chunk_);
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
    for (int i = 0; i < lanes && n < capacity; ++i) {
      const int lane = (need.lane + i) % lanes;
      if (store.index(lane).live().empty()) continue;
      const ClusterId pot = store.index(lane).live()[0];
      const int members = store.index(lane)[pot].paged;
      const int filed = lane == need.lane ? static_cast<int>(store.account().seen - seen_) : 0;
      const int coming = lane < need.lane ? 0 : batch_tokens_ - filed;
      const int target = std::max(0, static_cast<int>(s_.keep * full_) - coming);
      if (members <= target) continue;
      choose(store, lane, pot, members, target, filed > 0 && coming > 0, keep);
      out[n++] = {.kind = Eviction::Kind::kThin, .lane = lane, .cluster = pot, .keep = keep};
      keep += members;
    }
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

  // Marks the `target` of the members that stay. `cut`: the last frame is not all here yet.
  void choose(const ClusterStore& store, int lane, ClusterId pot, int members, int target, bool cut, uint8_t* keep) {
    std::fill_n(keep, members, uint8_t{0});
    if (s_.order == Order::kUniform) {
      for (int64_t i = 0; i < members; ++i) keep[i] = (i + 1) * target / members > i * target / members;
      return;
    }
    // Lanes take the same tokens, so none is a batch longer than its share. Were one, its oldest would go unseen.
    const int skip = std::max(0, members - lane_tokens_);
    const int n = members - skip, first = lay_on_grid(store, lane, pot, skip, n, cut);
    keep += skip;
    read(store, lane, pot, skip, n, first);
    if (s_.pool) pool(n);
    if (s_.order == Order::kReversed) {
      for (int i = 0; i < n; ++i) score_[i] = -score_[i], norm_[i] = -norm_[i];
    }
    int kept = 0;
    if (s_.alpha > 0) {
      kept = std::min(n - first, target);
      std::fill_n(keep + n - kept, kept, uint8_t{1});
      kept += take_highest(score_, first, static_cast<int>(s_.alpha * target) - kept, keep);
    }
    take_highest(norm_, n, target - kept, keep);
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

  // Frame and cell of the grid of every member; returns where the newest frames begin.
  int lay_on_grid(const ClusterStore& store, int lane, ClusterId pot, int skip, int n, bool cut) {
    int low_h = 1 << 16, high_h = -1, low_w = 1 << 16, high_w = -1;
    int at = -skip, newest = 0;  // where the last frame begins
    TokenMeta last{};            // the last one with a place in the grid, if this frame has had any
    int32_t time = 0;
    for (PageId id = store.index(lane)[pot].head; id != kNone; id = store.pages()[id].next) {
      const Page& page = store.pages()[id];
      const TokenMeta* meta = store.tiers().page(page.tier, page.slot).meta;
      for (int i = 0; i < page.count; ++i, ++at) {
        if (at < 0) continue;
        const TokenMeta& m = meta[i];
        const bool text = m.h == kText;
        const bool rises = text || last.h == kText || m.h > last.h || (m.h == last.h && m.w > last.w);
        const bool opens = at == 0 || m.time_low != time || !rises;
        frame_[at] = at == 0 ? 0 : frame_[at - 1] + (opens ? 1 : 0);
        if (opens) newest = at;
        time = m.time_low;
        if (opens || !text) last = m;
        cell_[at] = text ? -1 : m.h << 16 | m.w;
        if (text) continue;
        low_h = std::min<int>(low_h, m.h), high_h = std::max<int>(high_h, m.h);
        low_w = std::min<int>(low_w, m.w), high_w = std::max<int>(high_w, m.w);
      }
    }
    int first = newest;
    for (int i = newest - 1; i >= 0 && ((cut && frame_[i] + 1 == frame_[newest]) || n - i <= s_.recent * n); --i)
      if (i == 0 || frame_[i - 1] != frame_[i]) first = i;
    // Frames of several shapes may span a box that is too large: then the newest frame's is the grid, which always fits.
    if ((high_h - low_h + 1) * int64_t{high_w - low_w + 1} > cells_) {
      low_h = low_w = 1 << 16, high_h = high_w = -1;
      for (int i = newest; i < n; ++i) {
        if (cell_[i] < 0) continue;
        low_h = std::min(low_h, cell_[i] >> 16), high_h = std::max(high_h, cell_[i] >> 16);
        low_w = std::min(low_w, cell_[i] & 0xffff), high_w = std::max(high_w, cell_[i] & 0xffff);
      }
    }
    if (high_h < 0) low_h = high_h = low_w = high_w = 0;  // nothing but text
    rows_ = high_h - low_h + 1;
    columns_ = high_w - low_w + 1;
    for (int i = 0; i < n; ++i) {
      const int h = cell_[i] < 0 ? -1 : (cell_[i] >> 16) - low_h, w = (cell_[i] & 0xffff) - low_w;
      // Text and what stands outside have no place.
      cell_[i] = h >= 0 && h < rows_ && w >= 0 && w < columns_ ? h * columns_ + w : kNone;
    }
    return first;
  }

  // TaR scores of the members before `first`, value norms of all.
  void read(const ClusterStore& store, int lane, ClusterId pot, int skip, int n, int first) {
    const int row = store.shape().page.row();
    const auto stride = static_cast<size_t>(row);
    const auto pages =
        [&](int from, auto&& visit) {  // of members from `from` on, decoded, as many at a time as there is room for
          int at = -skip, held = 0, held_from = 0;
          for (PageId id = store.index(lane)[pot].head; id != kNone; id = store.pages()[id].next) {
            const Page& page = store.pages()[id];
            const int begin = std::max(0, from - at);
            if (begin < page.count) {
              if (held + kPageTokens > chunk_) visit(held_from, std::exchange(held, 0));
              if (held == 0) held_from = at + begin;
              const size_t to = static_cast<size_t>(held) * stride;
              store.ops().decode(store.tiers().spec(page.tier).codec, store.shape().page,
                                 store.tiers().page(page.tier, page.slot).data, begin, page.count, k_ + to, v_ + to,
                                 stride);
              held += page.count - begin;
            }
            at += page.count;
          }
          if (held > 0) visit(held_from, held);
        };
    std::fill_n(recent_sum_, static_cast<size_t>(cells_ + 1) * stride, 0.0f);
    std::fill_n(recent_count_, cells_ + 1, 0);
    if (s_.alpha > 0)
      pages(first, [&](int at, int count) {
        store.ops().add_recent_keys({k_, cell_ + at, count, row, stride, recent_sum_, recent_count_});
      });
    pages(0, [&](int at, int count) {
      store.ops().row_norm({v_, count, row, stride, norm_ + at});
      if (s_.alpha > 0)
        store.ops().temporal_redundancy({k_, cell_ + at, count, row, stride, recent_sum_, recent_count_, score_ + at});
    });
    store.ops().wait();
    // An exact page of half precision may have overflowed: what is not a number is as dull, or as large, as can be.
    for (int i = 0; i < n; ++i) {
      if (s_.alpha > 0 && !std::isfinite(score_[i])) score_[i] = -1;
      if (!std::isfinite(norm_[i])) norm_[i] = std::numeric_limits<float>::max();
    }
  }

  // Averages norm_ over the neighbours that survive. The window of frames slides: every token enters and leaves it once.
  void pool(int n) {
    double sum = 0, squares = 0;
    for (int i = 0; i < n; ++i) sum += norm_[i];
    const double mean = sum / n;
    for (int i = 0; i < n; ++i) squares += (norm_[i] - mean) * (norm_[i] - mean);
    const double variation = mean > 0 ? std::sqrt(squares / n) / mean : 0;
    const auto kernel =
        std::find_if(std::begin(kKernels), std::end(kKernels), [&](const Kernel& k) { return variation < k.below; });
    if (mean == 0 || kernel == std::end(kKernels)) return;
    std::fill_n(near_sum_, cells_ + 1, 0.0);
    std::fill_n(near_count_, cells_ + 1, 0);
    float* pooled = reinterpret_cast<float*>(order_);  // free until something is taken
    const auto cell = [&](int i) { return cell_[i] != kNone ? cell_[i] : cells_; };
    for (int i = 0, in = 0, out = 0; i < n; ++i) {
      for (; in < n && frame_[in] <= frame_[i] + kernel->frames; ++in) {
        near_sum_[cell(in)] += norm_[in];
        ++near_count_[cell(in)];
      }
      for (; frame_[out] < frame_[i] - kernel->frames; ++out) {
        if (--near_count_[cell(out)] == 0)
          near_sum_[cell(out)] = 0;
        else
          near_sum_[cell(out)] -= norm_[out];
      }
      if (cell_[i] == kNone) {
        pooled[i] = norm_[i];
        continue;
      }
      const int h = cell_[i] / columns_, w = cell_[i] % columns_;
      double total = 0;
      int count = 0;
      for (int y = std::max(0, h - kernel->rows); y <= std::min(rows_ - 1, h + kernel->rows); ++y)
        for (int x = std::max(0, w - kernel->columns); x <= std::min(columns_ - 1, w + kernel->columns); ++x) {
          total += near_sum_[y * columns_ + x];
          count += near_count_[y * columns_ + x];
        }
      pooled[i] = static_cast<float>(total / count);
    }
    std::copy_n(pooled, n, norm_);
  }

  InfiniPotSettings s_;
  int full_ = 0;         // tokens of a full pot, |M|
  int lane_tokens_ = 0;  // most members that are scored
  int cells_ = 0;        // of the grid
  int rows_ = 0, columns_ = 0;
  int batch_tokens_ = 0;     // of the batch that is being admitted
  int64_t seen_ = 0;         // tokens the store had seen before this lane's part of it
  uint8_t* keep_ = nullptr;  // [members of all lanes]
  float* score_ = nullptr;   // [lane tokens] TaR
  float* norm_ = nullptr;    // [lane tokens] VaN
  int32_t* cell_ = nullptr;
  int32_t* frame_ = nullptr;
  int32_t* order_ = nullptr;
  float* recent_sum_ = nullptr;  // [cells + 1, row]
  int32_t* recent_count_ = nullptr;
  int32_t* near_count_ = nullptr;
  double* near_sum_ = nullptr;
  int chunk_ = 0;       // members that are decoded at a time
  float* k_ = nullptr;  // [chunk, row]
  float* v_ = nullptr;
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
