// An archive to which the lanes of a device are added together: what all of them bring is encoded by one launch and waited for
// once, behind the tails where a frame is longer than what is written at once; what the host makes of it - sums, clusters,
// writes - is done lane by lane, and the keys that come of it are coded by one launch more.
#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "store/archive.h"

namespace mosaic {

namespace {

constexpr size_t kRowBytes = sizeof(std::byte*) + 3 * sizeof(int32_t);

}  // namespace

struct Archive::Together {
  // Records that are encoded together.
  struct Rows {
    std::byte** pages = nullptr;
    int32_t *at = nullptr, *row = nullptr, *lane = nullptr;
    int n = 0;

    void take(Region& region, const char* name, Size most) {
      pages = region.take<std::byte*>(name, most);
      for (int32_t** list : {&at, &row, &lane}) *list = region.take<int32_t>(name, most);
    }
    void add(std::byte* page, int to, int from, int of_lane) {
      pages[n] = page, at[n] = to, row[n] = from, lane[n] = of_lane;
      ++n;
    }
    LaneRowsArgs args(CodecId codec, PageShape shape, const float* k, const float* v, const float* key_means) const {
      return {{codec, shape, n, row, lane, pages, at, key_means}, k, v, static_cast<size_t>(shape.row())};
    }
  };

  int lanes = 0, frame_tokens = 0;
  std::byte* behind = nullptr;  // [lanes, most_behind()] pages behind the tails
  Rows tokens;                  // [lanes, frame_tokens]
  Rows keys;                    // [lanes, most_keys()]
  float* key_rows = nullptr;    // [lanes, most_keys(), row] keys of tokens, then of groups; or of clusters
};

// Keys that a frame makes of a lane at most.
int Archive::most_keys(int frame_tokens) const {
  if (shape_.stretch == 0) return shape_.groups() > 0 ? frame_tokens : 0;
  return (shape_.stretch - 1 + frame_tokens) / shape_.stretch * shape_.pages_at_once();
}

int Archive::most_behind(int frame_tokens) const {
  return pages_for(shape_.written_at_once() - 1 + frame_tokens) - shape_.pages_at_once();
}

Size Archive::together_bytes(int frame_tokens) const {
  const Size keys = most_keys(frame_tokens);
  return Size(most_behind(frame_tokens)) * page_bytes_ + (keys + frame_tokens) * kRowBytes +
         keys * (static_cast<size_t>(shape_.page.row()) * sizeof(float));
}

void Archive::take_together(Region& region, int lanes, int frame_tokens) {
  const char* const name = "archive";
  Together* const t = region.take<Together>(name, 1);
  const Size keys = Size(lanes) * most_keys(frame_tokens);
  Together taken;
  taken.lanes = lanes, taken.frame_tokens = frame_tokens;
  taken.behind = region.take<std::byte>(name, Size(lanes) * most_behind(frame_tokens) * page_bytes_);
  taken.tokens.take(region, name, Size(lanes) * frame_tokens);
  taken.keys.take(region, name, keys);
  taken.key_rows = region.take<float>(name, keys * shape_.page.row());
  if (region.is_counting()) return;
  *t = taken;
  together_ = t;
}

// The lanes' tokens into their tails and the pages behind them.
void Archive::encode_tails(int first, int lanes, int n, const float* k, const float* v, const float* key_means) {
  Together& t = *together_;
  const int waiting = static_cast<int>(tokens_ - written()), tail = shape_.pages_at_once();
  t.tokens.n = 0;
  for (int place = 0; place < lanes; ++place)
    for (int i = 0; i < n; ++i) {
      const int page = (waiting + i) / kPageTokens, lane = first + place;
      std::byte* const to =
          page < tail ? tail_page(lane, page)
                      : t.behind + static_cast<size_t>(place * most_behind(t.frame_tokens) + page - tail) * page_bytes_;
      t.tokens.add(to, (waiting + i) % kPageTokens, place * n + i, lane);
    }
  ops_.encode_lane_rows(t.tokens.args(shape_.codec, shape_.page, k, v, key_means));
}

// What of a lane is whole goes to disk; what is behind it takes its place in the tail. place: the lane's among those that are
// added together.
void Archive::write_whole(int lane, int place, int n, const float* key_mean) {
  const Together& t = *together_;
  const int at_once = shape_.written_at_once(), tail = shape_.pages_at_once();
  const std::byte* behind = t.behind + static_cast<size_t>(place * most_behind(t.frame_tokens)) * page_bytes_;
  int left = static_cast<int>(tokens_ - written()) + n;
  for (int64_t number = written() / at_once; left >= at_once; ++number) {
    shape_.stretch > 0 ? write_stretch(lane, number, key_mean, true) : write(lane, number);
    left -= at_once;
    const int pages = std::min(tail, pages_for(left));
    if (pages > 0) std::memcpy(tail_page(lane, 0), behind, static_cast<size_t>(pages) * page_bytes_);
    behind += static_cast<size_t>(pages) * page_bytes_;
  }
}

void Archive::cut_together(int lane, int stretch) {
  Together& t = *together_;
  const int n = shape_.pages_at_once();
  Together::Rows& keys = t.keys;
  clusters_.cut(lane, stretch, t.key_rows + static_cast<size_t>(keys.n) * static_cast<size_t>(shape_.page.row()),
                keys.pages + keys.n, keys.at + keys.n);
  for (int i = 0; i < n; ++i) keys.add(keys.pages[keys.n], keys.at[keys.n], keys.n, lane);
}

void Archive::add_lanes(int first, int lanes, int n, const float* k, const float* v, const float* key_means) {
  Together& t = *together_;
  if (lanes > t.lanes || n > t.frame_tokens) throw InvariantError("Archive: more is added together than was planned.");
  const auto row = static_cast<size_t>(shape_.page.row());
  const bool sums = keys_.groups() > 0;
  encode_tails(first, lanes, n, k, v, key_means);
  if (sums) ops_.copy(t.key_rows, k, static_cast<size_t>(lanes * n) * row * sizeof(float));
  ops_.wait();
  t.keys.n = 0;
  for (int place = 0; place < lanes; ++place) {
    const int lane = first + place;
    write_whole(lane, place, n, key_means + static_cast<size_t>(lane) * row);
    if (!sums) continue;
    keys_.sum(lane, tokens_, t.key_rows + static_cast<size_t>(place * n) * row, n,
              [&](int i, std::byte* page, int at) { t.keys.add(page, at, place * n + i, lane); });
  }
  if (t.keys.n == 0) return;
  const CodecId codec = sums ? CoarseKeys::kCodec : TokenClusters::kCodec;
  ops_.encode_lane_rows(t.keys.args(codec, shape_.page, t.key_rows, nullptr, key_means));
}

}  // namespace mosaic
