// Pages that are written from rows, and read into rows, a page a call: what is asked for waits here and goes to the device
// together, one launch for what is read and one for what is written. Reads go first, so a read is held back only while
// nothing that waits is in its way; else that is launched before it. Writes that stand in each other's way - of one page, or
// of a page that another takes tokens from - are a chain, which a block for each head goes through in its order; what
// stands in the way of two chains, or of a page that lay otherwise, is launched before it. Nobody sees that it waits: the
// host may touch what it gave, or was given, only after Ops::wait(), and every other op launches this first. Not
// thread-safe.
#pragma once

#include "backend/cuda/simt.h"
#include "backend/ops.h"

namespace mosaic::MOSAIC_SIMT {

// Tokens [first, first + count) of a page, rows one behind the other.
struct PageWrite {
  static constexpr int kMost = 80;  // what a launch's arguments hold
  static constexpr uint8_t kLast = 0xff;
  CodecId codec;
  bool whole;  // the page holds these and no others; else one token, and the others stay
  uint8_t first, count;
  // A whole page whose rows stand behind the first `held` tokens of this page or another one.
  uint8_t held;
  CodecId from_codec;
  uint8_t next;  // job of the same chain; kLast: none
  const float *k, *v;
  const float* key_mean;
  std::byte* page;
  const std::byte* from;
};
struct PageRead {
  static constexpr int kMost = 96;
  CodecId codec;
  uint8_t first, count;
  float *k, *v;
  const float* key_mean;
  const std::byte* page;
};

// As a launch is given them: one shape, one stride.
template <class Job>
struct PageJobs {
  PageShape shape;
  size_t stride;  // between rows
  int n = 0;
  Job job[Job::kMost];
};
struct PageWrites : PageJobs<PageWrite> {
  int chains = 0;
  uint8_t chain[PageWrite::kMost];  // first job of each
};
static_assert(sizeof(PageWrites) <= 4096 && sizeof(PageJobs<PageRead>) <= 4096);

void write_pages(const simt::Queue& on, const PageWrites& jobs);
void read_pages(const simt::Queue& on, const PageJobs<PageRead>& jobs);

class PageCalls {
 public:
  void write(const simt::Queue& on, PageShape shape, size_t stride, const PageWrite& w) {
    int chain = kNoChain;  // that it has to follow
    if (!has_room(writes_, shape, stride) || !find_chain(w, &chain)) {
      launch(on);
      chain = kNoChain;
    }
    const auto job = static_cast<uint8_t>(put(&writes_, on, shape, stride, w));
    if (chain == kNoChain) {
      chain = writes_.chains++;
      writes_.chain[chain] = job;
    } else {
      writes_.job[last_[chain]].next = job;
    }
    writes_.job[job].next = PageWrite::kLast;
    chain_of_[job] = static_cast<uint8_t>(chain);
    last_[chain] = job;
  }
  void read(const simt::Queue& on, PageShape shape, size_t stride, const PageRead& r) {
    const auto meets = [&](const auto& other, size_t others) {
      return rows_meet(r.k, other.k, shape, stride, r.count, others, other.count) ||
             rows_meet(r.v, other.v, shape, stride, r.count, others, other.count);
    };
    if (!has_room(reads_, shape, stride) ||
        any(writes_, [&](const PageWrite& w) { return w.page == r.page || meets(w, writes_.stride); }) ||
        any(reads_, [&](const PageRead& other) { return meets(other, reads_.stride); }))
      launch(on);
    put(&reads_, on, shape, stride, r);
  }
  void launch(const simt::Queue& on) {
    if (reads_.n > 0) read_pages(on, reads_);
    if (writes_.n > 0) write_pages(on, writes_);
    reads_.n = writes_.n = writes_.chains = 0;
  }

 private:
  static constexpr int kNoChain = -1;

  // Whether `w` may only be written when `before` has been.
  static bool follows(const PageWrite& w, const PageWrite& before) {
    const bool same = before.page == w.page && (w.whole || before.whole || before.first == w.first);
    return same || takes_from(w, before.page) || takes_from(before, w.page);
  }
  static bool takes_from(const PageWrite& w, const std::byte* page) { return w.held > 0 && w.from == page; }
  // Whether a page that both have to do with is laid out alike: else a head lies where another one did.
  static bool alike(const PageWrite& w, const PageWrite& before) {
    return (before.page != w.page || before.codec == w.codec) &&
           (!takes_from(before, w.page) || before.from_codec == w.codec);
  }
  // The chain that w follows; false: it cannot be in one.
  bool find_chain(const PageWrite& w, int* chain) const {
    for (int i = 0; i < writes_.n; ++i) {
      if (!follows(w, writes_.job[i])) continue;
      if (!alike(w, writes_.job[i]) || (*chain != kNoChain && *chain != chain_of_[i])) return false;
      *chain = chain_of_[i];
    }
    return true;
  }
  template <class Job>
  static bool has_room(const PageJobs<Job>& jobs, PageShape shape, size_t stride) {
    return jobs.n == 0 || (jobs.n < Job::kMost && jobs.stride == stride && jobs.shape.heads == shape.heads &&
                           jobs.shape.head_dim == shape.head_dim);
  }
  template <class Job, class Test>
  static bool any(const PageJobs<Job>& jobs, const Test& test) {
    for (int i = 0; i < jobs.n; ++i)
      if (test(jobs.job[i])) return true;
    return false;
  }
  template <class Job>
  static int put(PageJobs<Job>* jobs, const simt::Queue& on, PageShape shape, size_t stride, const Job& job) {
    on.mark();
    jobs->shape = shape, jobs->stride = stride;
    jobs->job[jobs->n] = job;
    return jobs->n++;
  }
  static bool rows_meet(const float* a, const float* b, PageShape shape, size_t a_stride, int a_rows, size_t b_stride,
                        int b_rows) {
    const auto end = [&](const float* x, size_t stride, int rows) {
      return reinterpret_cast<uintptr_t>(x) +
             (static_cast<size_t>(rows - 1) * stride + static_cast<size_t>(shape.row())) * sizeof(float);
    };
    return a != nullptr && b != nullptr && reinterpret_cast<uintptr_t>(a) < end(b, b_stride, b_rows) &&
           reinterpret_cast<uintptr_t>(b) < end(a, a_stride, a_rows);
  }

  PageJobs<PageRead> reads_;
  PageWrites writes_;
  uint8_t chain_of_[PageWrite::kMost];  // of each job that is to be written
  uint8_t last_[PageWrite::kMost];      // job of each chain
};

}  // namespace mosaic::MOSAIC_SIMT
