#include "policy/mukv_search.h"

#include <algorithm>
#include <cmath>

#include "core/cosine.h"
#include "policy/retrieval.h"

namespace mosaic::mukv {

namespace {

float likeness(const float* a, const float* b, size_t n) {
  const double value = cosine(a, b, n);
  return std::isfinite(value) ? static_cast<float>(value) : 0.0f;  // keys beyond half precision
}

constexpr Kind kAllKinds[] = {kSegment, kFrame, kPatch};

}  // namespace

void Search::bind(const StoreShape& shape, Region& region) {
  row_ = static_cast<size_t>(shape.page.row());
  taken_ = region.take<uint8_t>("policy", shape.index.capacity);
  query_ = region.take<float>("policy", row_);
  context_ = region.take<float>("policy", row_);
  for (float*& sum : sum_) sum = region.take<float>("policy", row_);
  for (const Kind kind : kAllKinds) best_[kind] = region.take<Unit>("policy", wanted(kind));
}

void Search::select(const ClusterStore& store, const SelectQuery& query, const SelectScratch& scratch,
                    SelectResult* result) {
  const ClusterIndex& index = store.index(query.lane);
  const PageShape page = store.shape().page;
  order_clusters(index, query, scratch);
  mean_query(query, static_cast<size_t>(page.heads), static_cast<size_t>(page.head_dim));
  if (s_.mass) {
    score_rows(store, query, ScoreMode::kMass, n_, scratch);
    store.ops().wait();
  }
  count_ = {};
  if (s_.retrieval == Retrieval::kStrict) {  // what is chosen of one granularity bounds the next
    scan(index, scratch, false, false, true);
    scan(index, scratch, false, true, false);
    scan(index, scratch, true, false, false);
  } else {
    scan(index, scratch, true, true, true);
  }
  if (s_.mass)
    for (const Kind kind : kAllKinds)
      for (int i = count_[kind] - 1; i >= 0 && best_[kind][0].score > 0; --i)
        best_[kind][i].score /= best_[kind][0].score;
  if (s_.retrieval == Retrieval::kSemi) rank_by_context(index, scratch.rows);
  take(index, query.max_tokens, scratch, result);
}

void Search::order_clusters(const ClusterIndex& index, const SelectQuery& query, const SelectScratch& scratch) {
  n_ = 0;
  for (const ClusterId c : index.live())
    if (index[c].last_time >= query.since_ms) scratch.rows[n_++] = c;
  std::sort(scratch.rows, scratch.rows + n_, [&](ClusterId a, ClusterId b) {
    if (index[a].born != index[b].born) return index[a].born < index[b].born;
    return index[a].tag != index[b].tag ? index[a].tag < index[b].tag : a < b;
  });
}

// Mean over the question's tokens and the query heads that share a KV head.
void Search::mean_query(const SelectQuery& query, size_t heads, size_t d) {
  const size_t group = static_cast<size_t>(query.q_heads) / heads;
  std::fill_n(query_, row_, 0.0f);
  for (size_t t = 0; t < static_cast<size_t>(query.tokens); ++t)
    for (size_t h = 0; h < heads * group; ++h)
      for (size_t i = 0; i < d; ++i) query_[h / group * d + i] += query.q[t * query.q_stride + h * d + i];
  for (size_t i = 0; i < row_; ++i) query_[i] /= static_cast<float>(static_cast<size_t>(query.tokens) * group);
}

// One pass over the order: sums of keys grow with each cluster, and a unit is scored where its range ends.
void Search::scan(const ClusterIndex& index, const SelectScratch& scratch, bool patches, bool frames, bool segments) {
  std::array<int, kKinds> begin{};
  std::array<double, kKinds> mass{};
  const auto ends = [&](Kind kind, int i) {  // the unit of this kind that holds number i ends with it
    if (i + 1 == n_) return true;
    const Cluster &here = index[scratch.rows[i]], &next = index[scratch.rows[i + 1]];
    return here.born != next.born || (kind == kFrame && here.tag / 4 != next.tag / 4);
  };
  const auto close = [&](Kind kind, int i) {
    consider(kind, begin[kind], i + 1, s_.mass ? static_cast<float>(mass[kind]) : likeness(sum_[kind], query_, row_));
  };
  for (int i = 0; i < n_; ++i) {
    const ClusterId c = scratch.rows[i];
    const Kind kind = kind_of(index[c].tag);
    const auto count = static_cast<float>(index.count(c));
    for (const Kind of : kAllKinds) {
      const bool first = of == kPatch || i == 0 || ends(of, i - 1);
      if (first) {
        begin[of] = i;
        mass[of] = 0;
        std::fill_n(sum_[of], row_, 0.0f);
      }
      if (s_.mass) mass[of] += scratch.score[i];
    }
    const half_t* const mean = index.mean_k() + static_cast<size_t>(c) * row_;
    for (size_t e = 0; e < row_ && !s_.mass; ++e) {
      const float x = half_to_float(mean[e]) * count;
      sum_[kPatch][e] = x;
      sum_[kFrame][e] += x;
      sum_[kSegment][e] += x;
    }
    if (patches && kind == kPatch) close(kPatch, i);
    if (frames && kind != kSegment && ends(kFrame, i)) close(kFrame, i);
    if (segments && ends(kSegment, i)) close(kSegment, i);
  }
}

// Keeps the best in falling order; of equals the earlier one first.
void Search::consider(Kind kind, int begin, int end, float score) {
  if (s_.retrieval == Retrieval::kStrict && kind != kSegment) {
    const size_t above = size_t{kind} + 1;
    const auto holds = [&](const Unit& b) { return b.begin <= begin && end <= b.end; };
    if (std::none_of(best_[above], best_[above] + count_[above], holds)) return;
  }
  Unit* const best = best_[kind];
  int& n = count_[kind];
  int at = n < wanted(kind) ? n++ : n;
  if (at == n && (n == 0 || !(best[n - 1].score < score))) return;
  if (at == n) --at;
  for (; at > 0 && best[at - 1].score < score; --at) best[at] = best[at - 1];
  best[at] = {begin, end, score};
}

void Search::representative(const ClusterIndex& index, const int32_t* order, int begin, int end, float* out) const {
  std::fill_n(out, row_, 0.0f);
  float total = 0;
  for (int i = begin; i < end; ++i) {
    const auto count = static_cast<float>(index.count(order[i]));
    const half_t* const mean = index.mean_k() + static_cast<size_t>(order[i]) * row_;
    for (size_t e = 0; e < row_; ++e) out[e] += half_to_float(mean[e]) * count;
    total += count;
  }
  for (size_t e = 0; e < row_; ++e) out[e] /= std::max(total, 1.0f);
}

// (1 - w) s + w cos(representative, mean of the best segments' representatives), over the 2k candidates.
void Search::rank_by_context(const ClusterIndex& index, const int32_t* order) {
  const int segments = std::min(s_.context, count_[kSegment]);
  std::fill_n(context_, row_, 0.0f);
  for (int i = 0; i < segments; ++i) {
    representative(index, order, best_[kSegment][i].begin, best_[kSegment][i].end, sum_[0]);
    for (size_t e = 0; e < row_; ++e) context_[e] += sum_[0][e] / static_cast<float>(segments);
  }
  for (const Kind kind : kAllKinds) {
    const auto w = static_cast<float>(s_.weight[kind]);
    if (w > 0 && segments > 0) {
      for (int i = 0; i < count_[kind]; ++i) {
        Unit& unit = best_[kind][i];
        representative(index, order, unit.begin, unit.end, sum_[0]);
        unit.score = (1 - w) * unit.score + w * likeness(sum_[0], context_, row_);
      }
      std::sort(best_[kind], best_[kind] + count_[kind], [](const Unit& a, const Unit& b) {
        return a.score != b.score ? a.score > b.score : a.begin < b.begin;
      });
    }
    count_[kind] = std::min(count_[kind], s_.k[kind]);
  }
}

// The granularities take turns in proportion to their k, so that a small budget of tokens keeps the mixture. What is in a
// unit already taken costs nothing; a unit that does not fit is left out, and smaller ones after it may still be taken.
void Search::take(const ClusterIndex& index, int max_tokens, const SelectScratch& scratch, SelectResult* result) {
  std::fill_n(taken_, static_cast<size_t>(n_), uint8_t{0});
  std::array<int, kKinds> next{};
  int tokens = 0;
  result->n = 0;
  for (;;) {
    Kind kind = kSegment;
    double least = std::numeric_limits<double>::infinity();
    for (const Kind one : kAllKinds) {
      if (next[one] == count_[one]) continue;
      const double at = (next[one] + 0.5) / s_.k[one];
      if (at < least) {
        kind = one;
        least = at;
      }
    }
    if (next[kind] == count_[kind]) return;
    const Unit unit = best_[kind][next[kind]++];
    int cost = 0;
    for (int i = unit.begin; i < unit.end; ++i)
      if (taken_[i] == 0) cost += std::max(index[scratch.rows[i]].paged, 1);  // one token alone may lie in the mean
    if (tokens + cost > max_tokens) continue;
    tokens += cost;
    for (int i = unit.begin; i < unit.end; ++i) {
      if (taken_[i] != 0) continue;
      taken_[i] = 1;
      result->score[result->n] = unit.score;
      result->chosen[result->n++] = scratch.rows[i];
    }
  }
}

}  // namespace mosaic::mukv
