// Pages that are written from rows, and read into rows, a page a call: what is asked for waits here and goes to the device
// together, one launch for what is read and one for what is written. Reads go first, so a call is held back only while
// nothing that waits is in its way; else that is launched before it. Nobody sees that it waits: the host may touch what it
// gave, or was given, only after Ops::wait(), and every other op launches this first. Not thread-safe.
#pragma once

#include "backend/cuda/simt.h"
#include "backend/ops.h"

namespace mosaic::MOSAIC_SIMT {

// Tokens [first, first + count) of a page, rows one behind the other.
struct PageWrite {
  CodecId codec;
  bool whole;  // the page holds these and no others; else one token, and the others stay
  uint8_t first, count;
  const float *k, *v;
  const float* key_mean;
  std::byte* page;
};
struct PageRead {
  CodecId codec;
  uint8_t first, count;
  float *k, *v;
  const float* key_mean;
  const std::byte* page;
};

// As a launch is given them: one shape, one stride.
template <class Job>
struct PageJobs {
  static constexpr int kMost = 96;  // what a launch's arguments hold
  PageShape shape;
  size_t stride;  // between rows
  int n = 0;
  Job job[kMost];
};
static_assert(sizeof(PageJobs<PageWrite>) <= 4096 && sizeof(PageJobs<PageRead>) <= 4096);

void write_pages(const simt::Queue& on, const PageJobs<PageWrite>& jobs);
void read_pages(const simt::Queue& on, const PageJobs<PageRead>& jobs);

class PageCalls {
 public:
  void write(const simt::Queue& on, PageShape shape, size_t stride, const PageWrite& w) {
    if (!has_room(writes_, shape, stride) || any(writes_, [&](const PageWrite& other) {
          return other.page == w.page && (w.whole || other.whole || other.first == w.first);
        }))
      launch(on);
    put(&writes_, on, shape, stride, w);
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
    const auto all = [&](auto* jobs, const auto& kernel) {
      if (jobs->n > 0) kernel(on, *jobs);
      jobs->n = 0;
    };
    all(&reads_, read_pages);
    all(&writes_, write_pages);
  }

 private:
  template <class Job>
  static bool has_room(const PageJobs<Job>& jobs, PageShape shape, size_t stride) {
    return jobs.n == 0 || (jobs.n < PageJobs<Job>::kMost && jobs.stride == stride && jobs.shape.heads == shape.heads &&
                           jobs.shape.head_dim == shape.head_dim);
  }
  template <class Job, class Test>
  static bool any(const PageJobs<Job>& jobs, const Test& test) {
    for (int i = 0; i < jobs.n; ++i)
      if (test(jobs.job[i])) return true;
    return false;
  }
  template <class Job>
  static void put(PageJobs<Job>* jobs, const simt::Queue& on, PageShape shape, size_t stride, const Job& job) {
    on.mark();
    jobs->shape = shape, jobs->stride = stride;
    jobs->job[jobs->n++] = job;
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
  PageJobs<PageWrite> writes_;
};

}  // namespace mosaic::MOSAIC_SIMT
