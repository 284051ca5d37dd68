// CameWith: the numbers that tokens of a lane came with, by position, beside what a page of a device holds of them.
#pragma once

#include <map>

#include "support/played_stream.h"
#include "support/shim_backend.h"

namespace mosaic::testing {

class CameWith {
 public:
  // Lanes are single KV heads.
  CameWith(const PlayedStream& stream, const ShimControl& control, int lane)
      : control_(control),
        d_(static_cast<size_t>(stream.config.model.head_dim)),
        at_(static_cast<size_t>(lane / stream.config.model.kv_heads) * stream.row() +
            static_cast<size_t>(lane % stream.config.model.kv_heads) * d_),
        k_(take()),
        v_(take()) {
    for (const PlayedStream::Token& token : stream.video) came_[token.position] = &token;
  }
  CameWith(const CameWith&) = delete;
  ~CameWith() { control_.device->release(k_, bytes()), control_.device->release(v_, bytes()); }

  // Tokens of `rows` that are not what came at position_of(i), in bits. page: the first `count` are decoded.
  template <class PositionOf>
  int changed(CodecId codec, PageShape shape, const std::byte* page, int count, unsigned rows,
              const PositionOf& position_of) const {
    control_.ops->decode(codec, shape, page, 0, count, k_, v_, d_);
    control_.ops->wait();
    int changed = 0;
    for (int i = 0; i < count; ++i)
      if ((rows >> i & 1) != 0 && !equals(*came_.at(position_of(i)), static_cast<size_t>(i) * d_)) ++changed;
    return changed;
  }

 private:
  bool equals(const PlayedStream::Token& token, size_t got) const {
    for (size_t c = 0; c < d_; ++c)
      if (k_[got + c] != token.k[at_ + c] || v_[got + c] != token.v[at_ + c]) return false;
    return true;
  }
  size_t bytes() const { return kPageTokens * d_ * sizeof(float); }
  float* take() const { return static_cast<float*>(control_.device->allocate(bytes())); }

  const ShimControl& control_;
  size_t d_, at_;
  float *k_, *v_;  // [16, head_dim]
  std::map<int, const PlayedStream::Token*> came_;
};

}  // namespace mosaic::testing
