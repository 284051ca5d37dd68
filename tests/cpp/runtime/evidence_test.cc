// Evidence: mass by moment, and what a table that is full keeps.
#include "runtime/evidence.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <random>

#include "backend/backend.h"

namespace {

using namespace mosaic;

struct Table {
  Backend backend = make_backend("cpu", 1);
  Region region{*backend.device, 1 << 20};
  Evidence evidence;
  explicit Table(uint64_t cap) : evidence(region, cap) { evidence.clear(); }
  std::map<int64_t, double> moments() const {
    std::map<int64_t, double> all;
    for (int i = 0; i < evidence.capacity(); ++i)
      if (const auto m = evidence.moment(i); m.mass > 0) all[m.first_ms] += m.mass;
    return all;
  }
};

TEST_CASE("the mass of a moment is the sum of what came, whatever order it came in") {
  for (const int64_t step : {1, 33, 500, 1000, 4096, 60'000}) {
    Table table(1 << 20);
    std::map<int64_t, double> want;
    std::mt19937 random(3);
    for (int i = 0; i < 3000; ++i) {
      const int64_t moment = random() % 200 * step;
      const double mass = random() % 1000 * 1e-3;
      table.evidence.add(moment, moment, mass);
      if (mass > 0) want[moment] += mass;
    }
    CHECK(table.evidence.lost() == 0);
    CHECK(table.evidence.other() == 0);
    const auto have = table.moments();
    REQUIRE(have.size() == want.size());
    for (const auto& [moment, mass] : want) CHECK(have.at(moment) == doctest::Approx(mass));
  }
}

TEST_CASE("a full table keeps the heaviest moments, though they come last, and counts the others") {
  Table table(1 << 20);
  REQUIRE(table.evidence.capacity() == 512);
  double total = 0;
  for (int round = 0; round < 5; ++round)
    for (int i = 0; i < 4000; ++i) {  // eight times what there is room for
      const bool heavy = i >= 3960;   // forty, and the last
      const double mass = heavy ? 1.0 + i * 1e-3 : 1e-3;
      table.evidence.add(i * 1000, i * 1000, mass);
      total += mass;
    }
  const auto have = table.moments();
  double kept = 0;
  for (const auto& [moment, mass] : have) kept += mass;
  CHECK(kept + table.evidence.other() == doctest::Approx(total));
  CHECK(table.evidence.lost() > 0);
  for (int i = 3960; i < 4000; ++i) {
    REQUIRE(have.count(i * 1000) == 1);
    CHECK(have.at(i * 1000) == doctest::Approx(5 * (1.0 + i * 1e-3)));
  }
}

TEST_CASE("ranges that begin alike and end otherwise are moments of their own") {
  Table table(1 << 20);
  table.evidence.add(1000, 2000, 1);
  table.evidence.add(1000, 3000, 2);
  int found = 0;
  for (int i = 0; i < table.evidence.capacity(); ++i) found += table.evidence.moment(i).mass > 0;
  CHECK(found == 2);
}

}  // namespace
