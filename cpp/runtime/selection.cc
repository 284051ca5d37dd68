// What a block reads: for video tokens of a windowed model the last frames, for everything else prefix, first frame,
// selected clusters, summaries and the window. Disk pages of the next layer are asked for while this one computes.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/trace.h"
#include "runtime/kv_memory.h"

namespace mosaic {

void KvMemory::add_strip(BlockSelection* s, int lane, Strip strip, int tokens, int frame) {
  for (int at = 0, page = 0; at < tokens; at += kPageTokens, ++page)
    s->add_page(kNone, window_.page(strip, lane, page, frame), plan_.window.codec, 0,
                std::min(kPageTokens, tokens - at));
}

void KvMemory::select_window(int lane) {
  BlockSelection* s = &selection_[static_cast<size_t>(lane)];
  s->clear();
  s->reserve(0, 0);
  add_strip(s, lane, Strip::kPrefix, window_.prefix_tokens);
  if (block_ == Block::kFrame)
    for (int i = std::max(0, window_.frames() - (model().video_window - 1)); i < window_.frames(); ++i)
      add_strip(s, lane, Strip::kFrame, window_.frame(i).tokens, i);
  s->finish(original_positions(), model().rope, shared_);
}

// The policy's choice in shared_.result, best first; returns how many.
int KvMemory::run_policy_select(int lane, const float* q) {
  SelectQuery query;
  query.lane = lane;
  query.q = q;
  query.tokens = block_tokens_;
  query.q_heads = model().q_heads / plan_.layer_lanes;
  query.q_stride = static_cast<size_t>(model().q_heads) * static_cast<size_t>(model().head_dim);
  if (policy_->needs().reads_query) {
    const size_t row = static_cast<size_t>(query.q_heads) * static_cast<size_t>(model().head_dim);
    query.q = staging_.readable(q, static_cast<size_t>(block_tokens_ - 1) * query.q_stride + row, backend_);
  }
  query.scale = model().scale;
  query.max_tokens = plan_.config.retrieve_tokens;
  query.max_summaries = plan_.select_rows;
  if (asking_) query.since_ms = since_ms_;
  shared_.result.n = 0;
  shared_.result.attended = SelectResult::kAll;
  policy_->select(store_, query, &shared_.result);
  // Clusters of one token cost nothing where every mean is attended; where none is, they are read as members are.
  const ClusterIndex& index = store_.index(lane);
  if (attends_means() || !index.has_means()) return shared_.result.n;
  int kept = 0;
  for (int i = 0, left = query.max_tokens; i < shared_.result.n; ++i) {
    const ClusterId c = shared_.result.chosen[i];
    const int tokens = std::max(index[c].paged, 1);
    if (tokens > left) continue;
    left -= tokens;
    shared_.result.score[kept] = shared_.result.score[i];
    shared_.result.chosen[kept++] = c;
  }
  return shared_.result.n = kept;
}

void KvMemory::add_cluster(BlockSelection* s, int lane, ClusterId c) {
  const ClusterIndex& index = store_.index(lane);
  const Cluster& cluster = index[c];
  int read = 0;
  for (PageId id = cluster.head; id != kNone;) {
    const PageId next = store_.blocks()[id].next;
    const int count = store_.blocks()[id].count;
    const bool wanted = !asking_ || store_.blocks()[id].last_time >= since_ms_;
    if (wanted) {
      CodecId codec{};
      const PageView view =
          s->entries_left() > 0 && s->tokens_left() >= count ? store_.resident(id, &codec) : PageView{};
      if (view.data == nullptr) ++unread_pages_;
      // After a merge the tokens of a page may be out of time order: the runs of wanted ones are read.
      const auto old = [&](int i) { return asking_ && view.meta[i].time_ms < since_ms_; };
      for (int begin = 0, end = 0; view.data != nullptr && begin < count; begin = end) {
        for (end = begin + 1; end < count && old(end) == old(begin);) ++end;
        if (old(begin) || s->add_page(id, view, codec, begin, end)) {
          read += end - begin;
        } else {
          ++unread_pages_;
        }
      }
    } else {
      read += count;
    }
    id = next;
  }
  // What is not in the pages that were read is attended through the mean.
  const int rest = index.count(c) - read;
  const bool is_token = rest == 1 && index.count(c) == 1;  // exact, in the mean
  // A mean over older tokens too is not what since= asks for.
  if ((attends_means() || is_token) && rest > 0 && (!asking_ || cluster.first_time >= since_ms_))
    s->add_row(c, cluster, rest);
}

void KvMemory::select_stored(int lane, const float* q) {
  const trace::Span span("select", lane);
  BlockSelection* s = &selection_[static_cast<size_t>(lane)];
  s->clear();
  const bool question = block_ == Block::kQuestion;
  const int32_t since = question ? since_ms_ : std::numeric_limits<int32_t>::min();
  const ClusterIndex& index = store_.index(lane);
  s->reserve(question ? pages_for(plan_.config.branch_tokens) : 0, question ? plan_.config.branch_tokens : 0);
  // What never yields comes first, so that there is always room for it.
  add_strip(s, lane, Strip::kPrefix, window_.prefix_tokens);
  if (window_.has_first_frame() && window_.first_frame().time_ms >= since)
    add_strip(s, lane, Strip::kFirstFrame, window_.first_frame().tokens);
  for (int i = 0; i < window_.frames(); ++i)
    if (window_.frame(i).time_ms >= since) add_strip(s, lane, Strip::kFrame, window_.frame(i).tokens, i);

  if (!policy_->needs().selects) {
    for (const ClusterId c : index.live())
      if (index[c].last_time >= since) add_cluster(s, lane, c);
  } else {
    const int chosen = run_policy_select(lane, q);
    std::memset(shared_.chosen, 0, static_cast<size_t>(index.capacity()));
    for (int i = 0; i < chosen; ++i) {  // ask for all before waiting for the first
      const ClusterId c = shared_.result.chosen[i];
      shared_.chosen[c] = 1;
      for (PageId id = index[c].head; id != kNone; id = store_.blocks()[id].next) store_.request(id);
    }
    // Best first: where the table of pages is too short, the least of the chosen are read as their summary.
    for (int i = 0; i < chosen; ++i) add_cluster(s, lane, shared_.result.chosen[i]);
    const auto add_summary = [&](ClusterId c) {
      if (shared_.chosen[c] == 0 && index[c].first_time >= since && attends_means())
        s->add_row(c, index[c], index.count(c));
    };
    if (shared_.result.attended != SelectResult::kAll) {
      std::for_each_n(shared_.result.attend, shared_.result.attended, add_summary);
    } else {
      for (ClusterId c = 0; c < index.capacity(); ++c)
        if (index.is_live(c)) add_summary(c);
    }
    if (question && plan_.config.prefetch && lane + plan_.layer_lanes < lanes()) prefetch(lane + plan_.layer_lanes, q);
  }
  s->finish(original_positions(), model().rope, shared_);
}

// This layer's query guesses what the next layer will choose (Mosaic); the true query completes what is missing.
void KvMemory::prefetch(int lane, const float* q) {
  if (store_.tiers().spill() == nullptr) return;
  const trace::Span span("prefetch", lane);
  const int chosen = run_policy_select(lane, q);
  const ClusterIndex& index = store_.index(lane);
  for (int i = 0; i < chosen; ++i)
    for (PageId id = index[shared_.result.chosen[i]].head; id != kNone; id = store_.blocks()[id].next)
      if (!store_.request(id)) return;
}

// Dialogue and question behind everything else.
void KvMemory::append_branch(BlockSelection* s, int lane) {
  s->rewind();
  int base = s->next_position();
  if (original_positions()) base = std::max(base, next_position_);
  for (int at = 0, page = 0; at < window_.branch_tokens; at += kPageTokens, ++page) {
    const PageView view = window_.page(Strip::kBranch, lane, page);
    const int n = std::min(kPageTokens, window_.branch_tokens - at);
    s->append_page(view, plan_.window.codec, n, base + at);
  }
}

// Read copies of disk pages may have moved since the last token: find them again, or do without.
void KvMemory::resolve(BlockSelection* s) {
  if (store_.tiers().spill() == nullptr) return;
  // A page that was forgotten is gone from the store too: its id may be free, or another page's.
  // One page may have several entries: once it is lost, none of them may be asked for.
  const auto in_store = [&](int e) {
    return s->page(e) != kNone && s->entry(e).begin != s->entry(e).end && store_.blocks()[s->page(e)].tier >= 0;
  };
  for (int e = 0; e < s->entries(); ++e)
    if (in_store(e)) store_.request(s->page(e));
  for (int e = 0; e < s->entries(); ++e) {
    if (!in_store(e)) {
      if (s->page(e) != kNone) s->forget(e);
      continue;
    }
    CodecId codec{};
    if (const PageView view = store_.resident(s->page(e), &codec); view.data != nullptr) {
      s->move(e, view, codec);
    } else {
      ++unread_pages_;
      s->forget(e);
    }
  }
}

// What this frame's queries pay to the frames of the window and to the frame itself (METHODS: MuKV).
void KvMemory::collect_received(const AttendArgs& args, BlockSelection* s, int lane) {
  MassArgs mass;
  mass.attend = &args;
  mass.page_mass = shared_.page_mass;
  mass.row_mass = shared_.row_mass;
  mass.first_query = 0;
  mass.block_mass = window_.received(lane, window_.frames());
  backend_.ops->attention_mass(mass);
  for (int e = 0; e < s->entries(); ++e) {
    const PageEntry& entry = s->entry(e);
    if (s->page(e) != kNone) continue;
    // Pages of the window are known by their place, and never move while the frame is read.
    for (int f = 0; f < window_.frames(); ++f)
      for (int page = 0; page < pages_for(window_.frame(f).tokens); ++page)
        if (window_.page(Strip::kFrame, lane, page, f).data == entry.data)
          for (int i = entry.begin; i < entry.end; ++i)
            window_.received_now(lane, f)[page * kPageTokens + i] += mass.page_mass[entry.first + i - entry.begin];
  }
}

void KvMemory::collect_evidence(const AttendArgs& args, BlockSelection* s, int lane) {
  MassArgs mass;
  mass.attend = &args;
  mass.page_mass = shared_.page_mass;
  mass.row_mass = shared_.row_mass;
  backend_.ops->attention_mass(mass);
  for (int e = 0; e < s->entries(); ++e) {
    const PageEntry& entry = s->entry(e);
    for (int i = entry.begin; i < entry.end; ++i) {
      const TokenMeta& meta = s->meta(e)[i];
      if (meta.time_ms >= 0)
        evidence_.add(meta.time_ms, meta.time_ms, shared_.page_mass[entry.first + i - entry.begin]);
    }
  }
  const ClusterIndex& index = store_.index(lane);
  for (int i = 0; i < s->rows(); ++i) {
    // Summaries are many, and most are hardly looked at: those would crowd out what was read.
    const Cluster& cluster = index[s->row(i)];
    const float mass = shared_.row_mass[i];
    if (mass < 1e-3f * static_cast<float>(args.q_heads)) {
      evidence_.add_other(mass);
    } else {
      evidence_.add(cluster.first_time, cluster.last_time, mass);
    }
  }
}

}  // namespace mosaic
