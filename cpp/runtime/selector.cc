#include "runtime/selector.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/trace.h"
#include "runtime/positions.h"

namespace mosaic {

BlockSelection& Selector::ready(int lane, const Reader& reader, const float* q) {
  BlockSelection& s = selection(lane, reader.kind);
  const bool anew = !scratch_.apart && (records_ || reads_kept(reader.kind));
  if (anew) backend_.ops->wait();  // until the lane before this one has read the table
  if (anew || !s.ready) {
    const bool frames_alone = reader.kind == BlockKind::kFrame && model().video_window > 0;
    if (reader.kind == BlockKind::kPrefix || frames_alone) {
      select_window(lane, reader);
    } else if (records_) {
      select_records(lane, reader);
    } else {
      select_stored(lane, reader, q);
    }
  }
  if (reader.kind == BlockKind::kQuestion) append_branch(&s, lane, reader.next_position);
  resolve(&s);
  return s;
}

void Selector::fetch_recalled(int first, int lanes, BlockKind kind) {
  if (!scratch_.apart || !records_ || !records_->must_fetch(first, lanes)) return;
  backend_.ops->wait();  // until the lanes before these have read their copies
  std::array<int, kLanesTogether> before;
  for (int i = 0; i < lanes; ++i) before[static_cast<size_t>(i)] = records_->recalled_tokens(first + i);
  records_->fetch(first, lanes);
  for (int i = 0; i < lanes; ++i)  // copies come to lie where they lay, but for a page that was lost since
    if (records_->recalled_tokens(first + i) != before[static_cast<size_t>(i)])
      selection(first + i, kind).ready = false;
}

void Selector::add_strip(BlockSelection* s, int lane, Strip strip, int tokens, int frame) {
  for (int i = 0; i < tokens;) {
    const Window::Piece piece = window_.piece(strip, lane, i, tokens, frame);
    s->add_page(kNone, piece.page, plan_.window.codec, piece.begin, piece.end);
    i += piece.tokens();
  }
}

void Selector::select_window(int lane, const Reader& reader) {
  BlockSelection* s = &selection(lane, reader.kind);
  s->clear();
  s->reserve(0, 0);
  add_strip(s, lane, Strip::kPrefix, window_.prefix_tokens);
  if (reader.kind == BlockKind::kFrame)
    for (int i = std::max(0, window_.frames() - (model().video_window - 1)); i < window_.frames(); ++i)
      add_strip(s, lane, Strip::kFrame, window_.frame(i).tokens, i);
  finish(s, lane);
}

// Room is left behind what was added for dialogue, question and the block itself.
void Selector::finish(BlockSelection* s, int lane) {
  s->finish(plan_.original, plan_.context - plan_.config.branch_tokens - plan_.max_block, model().rope,
            scratch_.order_of(lane));
}

SelectResult Selector::choose_clusters(int lane, const Reader& reader, const float* q) {
  SelectQuery query;
  query.lane = lane;
  query.q_heads = model().q_heads / plan_.layer_lanes;
  query.q_stride = static_cast<size_t>(model().q_heads) * static_cast<size_t>(model().head_dim);
  int first = 0, end = reader.tokens;
  if (query_ != PolicyNeeds::Reading::Query::kAll) {
    first = reader.lead;
    end -= reader.trail;
    if (query_ == PolicyNeeds::Reading::Query::kLast && reader.kind == BlockKind::kQuestion) first = end - 1;
  }
  query.q = q + static_cast<size_t>(first) * query.q_stride;
  query.tokens = end - first;
  if (reads_query_) {
    const size_t row = static_cast<size_t>(query.q_heads) * static_cast<size_t>(model().head_dim);
    query.q = staging_.readable(query.q, static_cast<size_t>(query.tokens - 1) * query.q_stride + row, backend_);
  }
  query.scale = model().scale;
  query.max_tokens = plan_.config.retrieve_tokens;
  query.max_summaries = plan_.select_rows;
  query.since_ms = reader.since.ms;
  SelectResult result = scratch_.result;
  policy_.select(store_, query, scratch_.select, &result);
  // Clusters of one token cost nothing where every mean is attended; where none is, they are read as members are.
  const ClusterIndex& index = store_.index(lane);
  if (!attends_means() && index.has_means()) keep_within(index, query.max_tokens, &result);
  return result;
}

void Selector::keep_within(const ClusterIndex& index, int max_tokens, SelectResult* result) const {
  int kept = 0;
  for (int i = 0; i < result->n; ++i) {
    const ClusterId c = result->chosen[i];
    const int tokens = std::max(index[c].paged, 1);
    if (tokens > max_tokens) continue;
    max_tokens -= tokens;
    result->score[kept] = result->score[i];
    result->chosen[kept++] = c;
  }
  result->n = kept;
}

// Returns the tokens of the page that are read, or are not wanted; the rest is attended through the mean.
int Selector::add_page(BlockSelection* s, PageId id, Since since) {
  const int count = store_.pages()[id].count;
  if (store_.pages()[id].last_time < since.ms) return count;
  CodecId codec{};
  const PageView view = s->entries_left() > 0 && s->tokens_left() >= count ? store_.resident(id, &codec) : PageView{};
  if (view.data == nullptr) {
    ++unread_pages_;
    return 0;
  }
  // After a merge the tokens of a page may be out of time order: the runs of wanted ones are read.
  const auto old = [&](int i) { return !since.wants(view.meta[i].position, view.meta[i].time_low); };
  int read = 0;
  for (int begin = 0, end = 0; begin < count; begin = end) {
    for (end = begin + 1; end < count && old(end) == old(begin);) ++end;
    if (old(begin) || s->add_page(id, view, codec, begin, end)) {
      read += end - begin;
    } else {
      ++unread_pages_;
    }
  }
  return read;
}

void Selector::add_cluster(BlockSelection* s, int lane, ClusterId c, Since since, bool from_disk) {
  const ClusterIndex& index = store_.index(lane);
  const Cluster& cluster = index[c];
  int read = 0;
  for (PageId id = cluster.head; id != kNone;) {
    const PageId next = store_.pages()[id].next;  // a page that is lost leaves the chain
    if (from_disk || !store_.tiers().is_disk(store_.pages()[id].tier)) read += add_page(s, id, since);
    id = next;
  }
  // What is not in the pages that were read is attended through the mean.
  const int rest = index.count(c) - read;
  const bool is_token = rest == 1 && index.count(c) == 1;  // exact, in the mean
  // A mean over older tokens too is not what since= asks for.
  if ((attends_means() || is_token) && rest > 0 && cluster.first_time >= since.ms) s->add_summary(c, cluster, rest);
}

// Empty but for what is read before anything else: prefix and first frame. Room is kept for the dialogue.
BlockSelection* Selector::begin(int lane, const Reader& reader) {
  BlockSelection* s = &selection(lane, reader.kind);
  s->clear();
  const int branch = reader.kind == BlockKind::kQuestion ? plan_.config.branch_tokens : 0;
  s->reserve(Window::most_pieces(branch), branch);
  add_strip(s, lane, Strip::kPrefix, window_.prefix_tokens);
  if (window_.has_first_frame() &&
      reader.since.wants(window_.first_frame().first_position, window_.first_frame().time_low))
    add_strip(s, lane, Strip::kFirstFrame, window_.first_frame().tokens);
  return s;
}

void Selector::add_newest_frames(BlockSelection* s, int lane, const Reader& reader) {
  for (int i = 0; i < window_.frames(); ++i)
    if (reader.since.wants(window_.frame(i).first_position, window_.frame(i).time_low))
      add_strip(s, lane, Strip::kFrame, window_.frame(i).tokens, i);
}

void Selector::select_stored(int lane, const Reader& reader, const float* q) {
  const trace::Span span("select", lane);
  BlockSelection* s = begin(lane, reader);
  add_newest_frames(s, lane, reader);  // what never yields comes first, so that there is always room for it
  if (!selects_) {
    read_everything(s, lane, reader);
  } else if (reads_kept(reader.kind)) {
    read_kept(s, lane);
  } else {
    read_chosen(s, lane, reader, q);
  }
  finish(s, lane);
  const int next = lane + plan_.layer_lanes;
  const bool question = reader.kind == BlockKind::kQuestion;
  if (selects_ && question && plan_.config.prefetch && next < plan_.window.lanes) request_ahead(next, reader, q);
}

// All that the lane keeps: its log between the first frame and the window.
void Selector::select_records(int lane, const Reader& reader) {
  const trace::Span span("select", lane);
  BlockSelection* s = begin(lane, reader);
  records_->read(lane, reader.since, s);
  if (reader.kind != BlockKind::kPrefix) records_->read_recalled(lane, s);
  add_newest_frames(s, lane, reader);  // last: Records::listen counts on it
  finish(s, lane);
}

void Selector::read_everything(BlockSelection* s, int lane, const Reader& reader) {
  const ClusterIndex& index = store_.index(lane);
  for (const ClusterId c : index.live())
    if (index[c].last_time >= reader.since.ms) add_cluster(s, lane, c, reader.since);
}

// Newest first: what finds no room in the table, or is older than what a frame may read, is read as its summary.
void Selector::read_kept(BlockSelection* s, int lane) {
  const ClusterIndex& index = store_.index(lane);
  int32_t* const order = scratch_.select.rows;
  const auto n = static_cast<ptrdiff_t>(index.live().size());
  std::copy(index.live().begin(), index.live().end(), order);
  std::sort(order, order + n, [&](ClusterId a, ClusterId b) {
    return index[a].touched != index[b].touched ? index[a].touched > index[b].touched : a < b;
  });
  const int most = newest_ == PolicyNeeds::Reading::kAll ? std::numeric_limits<int>::max() : newest_;
  const int before = s->attended();
  for (int32_t* c = order; c < order + n; ++c) {
    if (s->attended() - before + index[*c].paged <= most) {
      add_cluster(s, lane, *c, {}, false);
    } else if (attends_means()) {
      s->add_summary(*c, index[*c], index.count(*c));
    }
  }
}

void Selector::read_chosen(BlockSelection* s, int lane, const Reader& reader, const float* q) {
  const ClusterIndex& index = store_.index(lane);
  const SelectResult result = choose_clusters(lane, reader, q);
  std::memset(scratch_.chosen, 0, static_cast<size_t>(index.capacity()));
  for (int i = 0; i < result.n; ++i) {  // ask for all before waiting for the first
    scratch_.chosen[result.chosen[i]] = 1;
    for (PageId id = index[result.chosen[i]].head; id != kNone; id = store_.pages()[id].next) store_.request(id);
  }
  // Best first: where the table of pages is too short, the least of the chosen are read as their summary.
  for (int i = 0; i < result.n; ++i) add_cluster(s, lane, result.chosen[i], reader.since);
  if (!attends_means()) return;
  const auto add_summary = [&](ClusterId c) {
    if (scratch_.chosen[c] == 0 && index[c].first_time >= reader.since.ms) s->add_summary(c, index[c], index.count(c));
  };
  if (result.attended != SelectResult::kAll) {
    std::for_each_n(result.attend, result.attended, add_summary);
  } else {
    for (ClusterId c = 0; c < index.capacity(); ++c)
      if (index.is_live(c)) add_summary(c);
  }
}

// This layer's query guesses what the next layer will choose (Mosaic); the true query completes what is missing.
void Selector::request_ahead(int lane, const Reader& reader, const float* q) {
  if (store_.tiers().spill() == nullptr) return;
  const trace::Span span("prefetch", lane);
  const SelectResult guess = choose_clusters(lane, reader, q);
  const ClusterIndex& index = store_.index(lane);
  for (int i = 0; i < guess.n; ++i)
    for (PageId id = index[guess.chosen[i]].head; id != kNone; id = store_.pages()[id].next)
      if (!store_.request(id)) return;
}

// Dialogue and question behind everything else.
void Selector::append_branch(BlockSelection* s, int lane, int32_t next_position) {
  s->rewind();
  const int first = first_of_text(s->positions(), s->behind(), next_position, 0);
  for (int i = 0; i < window_.branch_tokens;) {
    const Window::Piece piece = window_.piece(Strip::kBranch, lane, i, window_.branch_tokens);
    s->append_page(piece.page.data, plan_.window.codec, piece.begin, piece.end, first + i);
    i += piece.tokens();
  }
}

// Read copies of disk pages may have moved since the last token: find them again, or do without.
void Selector::resolve(BlockSelection* s) {
  if (store_.tiers().spill() == nullptr) return;
  // A page that was forgotten is gone from the store too: its id may be free, or another page's.
  // One page may have several entries: once it is lost, none of them may be asked for.
  const auto in_store = [&](int e) {
    return s->page(e) != kNone && s->entry(e).rows != 0 && store_.pages()[s->page(e)].tier >= 0;
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

}  // namespace mosaic
