// RestoredPage: room for a page on its way out of a snapshot, and what must hold of its tokens before anything reads them.
// Its numbers are decoded once: NaN or infinity, which no session takes in, would break the order that selection sorts by.
// Made while a session is restored; not in the cap.
#pragma once

#include <bit>
#include <vector>

#include "backend/ops.h"
#include "core/finite.h"
#include "memory/snapshot.h"

namespace mosaic {

// Where a token of this session may stand.
struct TokenBounds {
  int32_t last_position = 0;
  int most_places = 0;  // rows and columns are below it

  bool hold(int32_t position) const { return position >= 0 && position <= last_position; }
  bool hold(uint16_t h, uint16_t w) const { return (h == kText || h < most_places) && (w == kText || w < most_places); }
  bool hold(const TokenMeta& token) const { return hold(token.position) && hold(token.h, token.w); }
};

class RestoredPage {
 public:
  RestoredPage(Ops& ops, PageShape shape, const TokenBounds& bounds)
      : device_ops_(ops), ops_(ops.for_host()), shape_(shape), bounds_(bounds), k_(rows()), v_(rows()) {}

  const TokenBounds& bounds() const { return bounds_; }
  // A whole page of so many bytes, meta first.
  std::byte* memory(size_t bytes) {
    if (page_.size() < bytes) page_.resize(bytes);
    return page_.data();
  }
  // Tokens of `rows` are numbers. data: the host's. keys_alone: there are no values, as in CoarseKeys.
  bool is_finite(CodecId codec, const std::byte* data, uint16_t rows, const float* key_mean = nullptr,
                 bool keys_alone = false) {
    const auto row = static_cast<size_t>(shape_.row());
    for (uint16_t left = rows; left != 0;) {
      const int begin = std::countr_zero(left), end = begin + std::countr_one(static_cast<uint16_t>(left >> begin));
      ops_.decode(codec, shape_, data, begin, end, k_.data(), keys_alone ? nullptr : v_.data(), row, key_mean);
      ops_.wait();
      const size_t n = static_cast<size_t>(end - begin) * row;
      if (!all_finite(k_.data(), n) || (!keys_alone && !all_finite(v_.data(), n))) return false;
      left = end == kPageTokens ? 0 : static_cast<uint16_t>(left >> end << end);
    }
    return true;
  }
  bool hold(const TokenMeta* meta, int n) const {
    for (int i = 0; i < n; ++i)
      if (!bounds_.hold(meta[i])) return false;
    return true;
  }

  // The page's data between the snapshot and where kernels reach it. is_good: of the host's copy, looked at while reading.
  template <class IsGood>
  void serialize(Snapshot& s, std::byte* data, size_t n, const IsGood& is_good, const char* what) {
    if (!s.is_reading()) return s.kernel_bytes(device_ops_, data, n);
    std::byte* const here = memory(n);
    s.bytes(here, n);
    s.require(is_good(static_cast<const std::byte*>(here)), what);
    device_ops_.copy(data, here, n);
    device_ops_.wait();
  }
  // Pages that hold keys alone, all their rows, lane after lane: page(lane, i) is one of `n` bytes. key_means: a row a lane.
  template <class PageOf>
  void serialize_keys(Snapshot& s, CodecId codec, int lanes, int pages, const PageOf& page, size_t n,
                      const float* key_means, const char* what) {
    for (int lane = 0; lane < lanes; ++lane) {
      const float* const mean = key_means + static_cast<size_t>(lane) * static_cast<size_t>(shape_.row());
      for (int i = 0; i < pages; ++i)
        serialize(
            s, page(lane, i), n, [&](const std::byte* data) { return is_finite(codec, data, 0xffff, mean, true); },
            what);
    }
  }

 private:
  size_t rows() const { return static_cast<size_t>(kPageTokens) * static_cast<size_t>(shape_.row()); }

  Ops& device_ops_;
  Ops& ops_;
  PageShape shape_;
  TokenBounds bounds_;
  std::vector<float> k_, v_;
  std::vector<std::byte> page_;
};

}  // namespace mosaic
