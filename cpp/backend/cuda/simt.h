// The few words the kernels are written in, defined twice: for a GPU (nvcc), and for a CPU, where a block is a loop
// over its threads and a thread is a fibre that meets the others at barriers and shuffles (simt_cpu.cc). The same .cu
// files compile as both; tests run them on the CPU under ASan against the plain loops. Blocks are one-dimensional and a
// multiple of a warp; every lane of a warp takes part in a shuffle; shared memory is the launch's, never static.
// The CPU's definition is stricter than a GPU: a barrier or shuffle that some thread misses is an error, shared memory
// begins as NaN, wide loads must be aligned, and threads can be run in another order, which shows a missing barrier.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "core/dtype.h"
#include "core/error.h"

#if defined(__CUDACC__)
#define MOSAIC_SIMT cuda
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "backend/cuda/cuda_check.h"
#define MOSAIC_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define MOSAIC_DEVICE __device__ __forceinline__
#define MOSAIC_DEVICE_CALL __device__ __noinline__  // what many kernels of a file have in common
#define MOSAIC_PARAMETER const __grid_constant__    // of a kernel, indexed where it lies
#else
#define MOSAIC_SIMT shim
#include <functional>
#include <vector>
#define MOSAIC_KERNEL(threads, blocks) void
#define MOSAIC_DEVICE inline
#define MOSAIC_DEVICE_CALL inline
#define MOSAIC_PARAMETER const
#endif

namespace mosaic::MOSAIC_SIMT::simt {

inline constexpr int kWarp = 32;
// Bytes of shared memory that a block has without asking, and the most it may ask for on every GPU from sm_80 on.
inline constexpr size_t kSharedUnasked = size_t{48} << 10, kSharedMost = size_t{99} << 10;

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};

// Where kernels are queued, and how wide that device is: kernels cut their work by it, in the same way every time.
struct Queue {
  void* stream = nullptr;   // cudaStream_t; on the CPU a Stream, or null: kernels run at once
  int processors = 1;       // streaming multiprocessors
  int device = 0;           // the stream's
  bool* pending = nullptr;  // set by whoever queues something; where nothing is, nobody has to wait

  void mark() const {
    if (pending != nullptr) *pending = true;
  }
};

struct alignas(16) Bytes16 {
  uint32_t word[4];
};
struct alignas(8) Bytes8 {
  uint32_t word[2];
};

#if defined(__CUDACC__)

MOSAIC_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
MOSAIC_DEVICE int threads() { return static_cast<int>(blockDim.x); }
MOSAIC_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
MOSAIC_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
MOSAIC_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
MOSAIC_DEVICE int blocks_x() { return static_cast<int>(gridDim.x); }
// x, which the compiler then knows nothing of: what comes of it is worked out where it is wanted, and no register keeps it.
MOSAIC_DEVICE int anew(int x) {
  asm volatile("mov.b32 %0, %0;" : "+r"(x));
  return x;
}
MOSAIC_DEVICE void barrier() { __syncthreads(); }
// The lanes of a warp meet; what they wrote before is seen by all of them.
MOSAIC_DEVICE void meet_warp() { __syncwarp(); }
MOSAIC_DEVICE float shuffle_xor(float x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }
MOSAIC_DEVICE int shuffle_xor(int x, int lanes) { return __shfl_xor_sync(0xffffffffu, x, lanes); }
MOSAIC_DEVICE unsigned ballot(bool x) { return __ballot_sync(0xffffffffu, x); }
MOSAIC_DEVICE int ones(unsigned bits) { return __popc(bits); }
// One more, by threads that do not know of each other. A count: the order does not show.
MOSAIC_DEVICE void count_one(int* counter) { atomicAdd(counter, 1); }

// The larger of what is there and x, both not negative, by threads that do not know of each other.
MOSAIC_DEVICE void raise(float* to, float x) { atomicMax(reinterpret_cast<int*>(to), __float_as_int(x)); }

template <class T>
MOSAIC_DEVICE T* shared() {
  extern __shared__ __align__(16) unsigned char mosaic_shared[];
  return reinterpret_cast<T*>(mosaic_shared);
}

// One instruction: what is below 2^-126 is zero, which exp2f would take four more for.
MOSAIC_DEVICE float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
MOSAIC_DEVICE float log2_of(float x) { return log2f(x); }
MOSAIC_DEVICE double sin_pi(double x) { return sinpi(x); }  // of pi x; no slow path for large angles, so no stack
MOSAIC_DEVICE float widen(half_t x) { return __half2float(__ushort_as_half(x)); }
template <class Bytes>
MOSAIC_DEVICE Bytes load(const void* from) {
  return *static_cast<const Bytes*>(from);
}

// One step of a tensor core: c [16][8] += a [16][16] b [16][8], a and b in half precision, sums in fp32, spread over the
// lanes as PTX has it (m16n8k16): with g = lane / 4 and t = lane % 4,
//   a  a[0] (g, 2t..), a[1] (g + 8, 2t..), a[2] (g, 2t + 8..), a[3] (g + 8, 2t + 8..)   two columns a word
//   b  b[0] (2t.., g), b[1] (2t + 8.., g)                                               two rows a word
//   c  c[0..1] (g, 2t..), c[2..3] (g + 8, 2t..)
MOSAIC_DEVICE void multiply_add(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&c)[4]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// c = start + a b.
MOSAIC_DEVICE void multiply_add(const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&start)[4],
                                float (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(start[0]), "f"(start[1]), "f"(start[2]),
        "f"(start[3]));
}
MOSAIC_DEVICE half_t narrow(float x) { return __half_as_ushort(__float2half_rn(x)); }
// Two numbers as halves in one word, the first in the low one.
MOSAIC_DEVICE uint32_t pack(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
// Said on the host, to be counted where that is wanted.
inline void carried(const Queue&, const void*, const void*, size_t) {}
// The line of memory there will be read soon. A hint: it brings bytes nearer and changes nothing.
MOSAIC_DEVICE void prefetch(const void* line) { asm volatile("prefetch.global.L2 [%0];" ::"l"(line)); }

template <class... P, class... A>
void launch(const Queue& on, const char* what, void (*kernel)(P...), Grid grid, int threads, size_t shared_bytes,
            const A&... args) {
  const cuda::OnDevice there(on.device);
  on.mark();
  if (shared_bytes > kSharedUnasked) {
    cuda::check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                     static_cast<int>(shared_bytes)),
                what, __FILE__, __LINE__);
  }
  kernel<<<dim3(grid.x, grid.y, grid.z), dim3(static_cast<unsigned>(threads)), shared_bytes,
           static_cast<cudaStream_t>(on.stream)>>>(args...);
  cuda::check(cudaGetLastError(), what, __FILE__, __LINE__);
}

#else

// Which thread of which block runs; simt_cpu.cc sets it.
struct Indices {
  int thread, threads, block[3], blocks_x;
  std::byte* shared;
};
extern constinit thread_local Indices indices;
// Threads run in rising order (0), falling (1) or in the order of a seed: what a kernel computes must not depend on it.
extern constinit thread_local unsigned order;
void meet_block(int line);
// Every lane gives 4 bytes and sees those of all 32.
const uint32_t* meet_warp(uint32_t mine, int line);
void run(const char* what, Grid grid, int threads, size_t shared_bytes, const std::function<void()>& body);
[[noreturn]] void fault(const char* what);

inline int thread() { return indices.thread; }
inline int threads() { return indices.threads; }
inline int block_x() { return indices.block[0]; }
inline int block_y() { return indices.block[1]; }
inline int block_z() { return indices.block[2]; }
inline int blocks_x() { return indices.blocks_x; }
inline int anew(int x) { return x; }
inline void barrier(int line = __builtin_LINE()) { meet_block(line); }
inline void meet_warp(int line = __builtin_LINE()) { meet_warp(0u, line); }
template <class T>
T shuffle_xor(T x, int lanes, int line = __builtin_LINE()) {
  return std::bit_cast<T>(meet_warp(std::bit_cast<uint32_t>(x), line)[(indices.thread % kWarp) ^ lanes]);
}
inline unsigned ballot(bool x, int line = __builtin_LINE()) {
  const uint32_t* const all = meet_warp(x, line);
  unsigned bits = 0;
  for (int lane = 0; lane < kWarp; ++lane) bits |= all[lane] << lane;
  return bits;
}

inline int ones(unsigned bits) { return std::popcount(bits); }
inline void count_one(int* counter) { ++*counter; }
inline void raise(float* to, float x) { *to = x > *to ? x : *to; }

template <class T>
T* shared() {
  return reinterpret_cast<T*>(indices.shared);
}

inline float exp2_of(float x) { return std::exp2(x); }
inline float log2_of(float x) { return std::log2(x); }
inline double sin_pi(double x) { return std::sin(3.14159265358979323846 * x); }
inline float widen(half_t x) { return half_to_float(x); }
template <class Bytes>
Bytes load(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(Bytes) != 0) fault("a wide load is not aligned");
  Bytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return bytes;
}

void multiply_add(const uint32_t (&a)[4], const uint32_t (&b)[2], float (&c)[4], int line = __builtin_LINE());
inline void multiply_add(const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&start)[4], float (&c)[4],
                         int line = __builtin_LINE()) {
  std::copy(start, start + 4, c);
  multiply_add(a, b, c, line);
}
inline half_t narrow(float x) { return float_to_half(x); }
inline uint32_t pack(float low, float high) {
  return static_cast<uint32_t>(narrow(low)) | static_cast<uint32_t>(narrow(high)) << 16;
}
// Reads what the GPU would bring nearer, so that ASan sees a hint that points too far.
inline void prefetch(const void* line) { static_cast<void>(*static_cast<const volatile char*>(line)); }

// As lazy as a stream may be: what is queued runs when somebody waits for it, in order. So what a caller changes too early
// shows. Arguments are copied when a kernel is launched; what they point at is not.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual void push(std::function<void()> work) { queued_.push_back(std::move(work)); }
  // A kernel of that name, so that what is launched can be counted.
  virtual void launch(const char* /*kernel*/, std::function<void()> work) { push(std::move(work)); }
  // Bytes that a kernel brings from one memory to another.
  virtual void carried(const void* /*to*/, const void* /*from*/, size_t /*bytes*/) {}
  void drain() {
    std::vector<std::function<void()>> now;
    now.swap(queued_);
    for (const auto& work : now) work();
  }

 private:
  std::vector<std::function<void()>> queued_;
};

inline void carried(const Queue& on, const void* to, const void* from, size_t bytes) {
  if (on.stream != nullptr) static_cast<Stream*>(on.stream)->carried(to, from, bytes);
}

template <class... P, class... A>
void launch(const Queue& on, const char* what, void (*kernel)(P...), Grid grid, int threads, size_t shared_bytes,
            const A&... args) {
  on.mark();
  const auto work = [=] { run(what, grid, threads, shared_bytes, [&] { kernel(args...); }); };
  on.stream != nullptr ? static_cast<Stream*>(on.stream)->launch(what, work) : work();
}

#endif

// Sum and maximum over aligned groups of `lanes` lanes (a power of two); every lane has the result.
MOSAIC_DEVICE float sum_lanes(float x, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) x += shuffle_xor(x, step);
  return x;
}
MOSAIC_DEVICE float max_lanes(float x, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) {
    const float other = shuffle_xor(x, step);
    x = other > x ? other : x;
  }
  return x;
}

// Sum over the block, for every thread. `space` is shared memory, a float a warp, free again after the next barrier.
MOSAIC_DEVICE float sum_block(float x, float* space) {
  x = sum_lanes(x, kWarp);
  if (thread() % kWarp == 0) space[thread() / kWarp] = x;
  barrier();
  float sum = 0;
  for (int warp = 0; warp < threads() / kWarp; ++warp) sum += space[warp];
  return sum;
}

}  // namespace mosaic::MOSAIC_SIMT::simt
