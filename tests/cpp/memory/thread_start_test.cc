// Threads that cannot start: an error that names the knob, and nothing left behind. New threads are refused by asking for
// stacks larger than any address space.
#include <doctest/doctest.h>
#include <pthread.h>

#include <cstdint>
#include <string>
#include <vector>

#include "backend/cpu/thread_pool.h"
#include "core/error.h"
#include "memory/copy_engine.h"
#include "support/memory_fakes.h"

namespace {

using namespace mosaic;
using namespace mosaic::testing;

class NoMoreThreads {
 public:
  NoMoreThreads() {
    REQUIRE(pthread_getattr_default_np(&usual_) == 0);
    pthread_attr_t huge;
    REQUIRE(pthread_attr_init(&huge) == 0);
    REQUIRE(pthread_attr_setstacksize(&huge, size_t{1} << 52) == 0);
    REQUIRE(pthread_setattr_default_np(&huge) == 0);
    pthread_attr_destroy(&huge);
  }
  ~NoMoreThreads() {
    pthread_setattr_default_np(&usual_);
    pthread_attr_destroy(&usual_);
  }

 private:
  pthread_attr_t usual_;
};

template <class Make>
std::string refusal(const Make& make) {
  const NoMoreThreads none;
  try {
    make();
  } catch (const DeviceError& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("a worker that cannot start is an error that names its knob, and a pool can be made afterwards") {
  const std::string said = refusal([] { const cpu::ThreadPool pool(5); });
  CHECK(said.starts_with("kernel_threads=5: only 1 could start ("));
  CHECK(said.find("Lower kernel_threads=") != std::string::npos);
  cpu::ThreadPool pool(5);
  std::vector<int> ran(13);
  pool.run(13, [&](int task, int) { ran[static_cast<size_t>(task)] = task + 1; });
  for (int i = 0; i < 13; ++i) CHECK(ran[static_cast<size_t>(i)] == i + 1);
}

TEST_CASE("a copy thread that cannot start is an error that names its knobs") {
  TemporaryDirectory directory;
  std::vector<uint64_t> lists(SpillFile::bytes_for(8) / 8 + 1), ring(CopyEngine::bytes_for(4) / 8 + 1);
  SpillFile file(directory.path, 4096, 8, lists.data());
  const std::string said = refusal([&] { const CopyEngine copies(file, 4, ring.data()); });
  CHECK(said.find("could not start (") != std::string::npos);
  for (const char* const knob : {"kernel_threads=", "disk="}) CHECK(said.find(knob) != std::string::npos);
}

}  // namespace
