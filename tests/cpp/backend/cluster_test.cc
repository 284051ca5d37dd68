// assign, update_centroids, score, top_k: every instruction set against the plain loops, and what must always hold.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "support/ops_world.h"
#include "support/rounds.h"

using namespace mosaic;
using namespace mosaic::testing;

namespace {

struct Items {
  AssignArgs args;
  std::vector<float> k, v, similarity;
  std::vector<half_t> mean_k, mean_v;
  std::vector<int32_t> rows, best;

  // cone: everything shares a large offset, so that all cosines are close together, as those of keys are.
  Items(int items, int table, int candidates, int dim, float value_weight, float cone, unsigned seed) {
    Random random(seed);
    const size_t stride = static_cast<size_t>(dim + 3);
    k = random.normals(static_cast<size_t>(items) * stride);
    v = random.normals(static_cast<size_t>(items) * stride);
    for (float& x : k) x += cone;
    for (int i = 0; i < table * dim; ++i) {
      mean_k.push_back(float_to_half(random.normal() + cone));
      mean_v.push_back(float_to_half(random.normal()));
    }
    for (int i = 0; i < candidates; ++i) rows.push_back(random.below(table));
    best.assign(static_cast<size_t>(items), -9);
    similarity.assign(static_cast<size_t>(items), -9);
    args.k = k.data(), args.v = v.data(), args.items = items, args.dim = dim, args.stride = stride;
    args.mean_k = mean_k.data(), args.mean_v = mean_v.data(), args.value_weight = value_weight;
    args.rows = candidates > 0 ? rows.data() : nullptr, args.n_rows = candidates > 0 ? candidates : table;
    args.best = best.data(), args.similarity = similarity.data();
  }
  Items(const Items&) = delete;
  Ops::Limits limits() const {
    return {.tokens = args.items, .q_heads = 1, .shape = {1, args.dim}, .rows = args.n_rows};
  }
};

}  // namespace

TEST_CASE("every instruction set assigns an item to the centroid the plain loops choose") {
  struct Case {
    int items, table, candidates, dim;
    float value_weight, cone;
  };
  const Case cases[] = {{0, 5, 0, 8, 0, 0},         {1, 1, 0, 1, 0, 0},         {5, 7, 3, 5, 0.5f, 0},
                        {7, 13, 0, 33, 0, 0},       {13, 33, 31, 64, 1, 0},     {65, 100, 0, 80, 0, 3},
                        {196, 300, 257, 64, 0, 20}, {64, 129, 0, 256, 0.3f, 1}, {130, 64, 0, 512, 0, 5},
                        {200, 500, 0, 48, 0.7f, 50}};
  unsigned seed = 1;
  for (const Case& c : cases) {
    Items items(c.items, c.table, c.candidates, c.dim, c.value_weight, c.cone, ++seed);
    Kernels plain("plain", 1, items.limits());
    plain->assign(items.args);
    const auto best = items.best;
    const auto similarity = items.similarity;
    for (const std::string& name : implementations()) {
      for (int threads : {1, 3}) {
        Kernels kernels(name, threads, items.limits());
        std::fill(items.best.begin(), items.best.end(), -9);
        kernels->assign(items.args);
        int other = 0;
        for (size_t i = 0; i < best.size(); ++i) {
          // A GPU's tensor cores cut sums off where the CPU rounds them: five bits more, by the worst model of it.
          CHECK(items.similarity[i] == doctest::Approx(similarity[i]).epsilon(name == "cuda" ? 1e-5 : 2e-6));
          other += items.best[i] != best[i];  // only where two centroids are equally near to rounding
        }
        CAPTURE(name);
        CAPTURE(seed);
        CHECK(other <= c.items / 50);
      }
    }
  }
}

TEST_CASE("equal centroids are a tie that the lowest row wins, wherever they stand in the list") {
  for (const std::string& name : implementations()) {
    for (int table : {3, 70, 200}) {
      Items items(9, table, 0, 96, 0, 0, 4);
      for (int row = 1; row < table; ++row) {
        std::copy_n(items.mean_k.begin(), 96, items.mean_k.begin() + static_cast<ptrdiff_t>(row) * 96);
      }
      std::vector<int32_t> rows(static_cast<size_t>(table));
      std::iota(rows.rbegin(), rows.rend(), 0);
      items.args.rows = rows.data();
      Kernels kernels(name, 2, items.limits());
      kernels->assign(items.args);
      for (int32_t best : items.best) CHECK(best == 0);
    }
  }
}

TEST_CASE("an item without candidates belongs nowhere, and a zero vector is similar to nothing") {
  for (const std::string& name : implementations()) {
    Items items(3, 5, 0, 16, 0, 0, 4);
    Kernels kernels(name, 1, items.limits());
    items.args.n_rows = 0;
    kernels->assign(items.args);
    for (int i = 0; i < 3; ++i) {
      CHECK(items.best[i] == kNone);
      CHECK(items.similarity[i] == -std::numeric_limits<float>::infinity());
    }
    items.args.n_rows = 5;
    std::fill_n(items.k.begin(), 16, 0.0f);
    kernels->assign(items.args);
    CHECK(items.best[0] == 0);
    CHECK(items.similarity[0] == 0);
  }
}

TEST_CASE("centroids follow the running rule: mean, variance and count, in the order of the items") {
  for (const std::string& name : implementations()) {
    for (int dim : {1, 5, 16, 33, 512}) {
      for (float weight : {0.0f, 0.5f}) {
        const int rows = 9, items = 196;
        Random random(static_cast<unsigned>(dim));
        const auto k = random.normals(static_cast<size_t>(items * dim)),
                   v = random.normals(static_cast<size_t>(items * dim));
        auto mean_k = random.halves(static_cast<size_t>(rows * dim)),
             mean_v = random.halves(static_cast<size_t>(rows * dim));
        std::vector<int32_t> labels, count;
        std::vector<float> variance;
        for (int i = 0; i < items; ++i) labels.push_back(random.below(rows + 1) - 1);
        for (int r = 0; r < rows; ++r)
          count.push_back(random.below(4) == 0 ? 0 : random.below(40)),
              variance.push_back(0.1f * static_cast<float>(r));
        // The rule itself, in double.
        std::vector<double> ck(mean_k.size()), cv(mean_v.size()), s2(variance.begin(), variance.end());
        for (size_t i = 0; i < ck.size(); ++i) ck[i] = half_to_float(mean_k[i]), cv[i] = half_to_float(mean_v[i]);
        auto n = count;
        for (int i = 0; i < items; ++i) {
          const int r = labels[i];
          if (r == kNone) continue;
          double dot[2] = {}, xx[2] = {}, cc[2] = {};
          for (int c = 0; c < dim; ++c) {
            double* const mean[2] = {&ck[r * dim + c], &cv[r * dim + c]};
            const double x[2] = {k[i * dim + c], v[i * dim + c]};
            for (int part = 0; part < 2; ++part) {
              *mean[part] = (n[r] * *mean[part] + x[part]) / (n[r] + 1);
              dot[part] += x[part] * *mean[part], xx[part] += x[part] * x[part], cc[part] += *mean[part] * *mean[part];
            }
          }
          const double similarity =
              (dot[0] / std::sqrt(xx[0] * cc[0]) + weight * dot[1] / std::sqrt(xx[1] * cc[1])) / (1 + weight);
          s2[r] = (n[r] * s2[r] + 2 - 2 * similarity) / (n[r] + 1);
          ++n[r];
        }
        UpdateArgs u;
        u.k = k.data(), u.v = v.data(), u.items = items, u.dim = dim, u.stride = static_cast<size_t>(dim),
        u.labels = labels.data();
        u.mean_k = mean_k.data(), u.mean_v = mean_v.data(), u.count = count.data(), u.variance = variance.data(),
        u.value_weight = weight;
        Kernels kernels(name, 3, {.tokens = items, .q_heads = 1, .shape = {1, dim}, .rows = rows});
        kernels->update_centroids(u);
        CAPTURE(name);
        CAPTURE(dim);
        CHECK(count == n);
        for (int r = 0; r < rows; ++r) CHECK(variance[r] == doctest::Approx(s2[r]).epsilon(1e-4));
        for (size_t i = 0; i < ck.size(); ++i) {
          CHECK(std::abs(half_to_float(mean_k[i]) - ck[i]) <= 1e-3 * std::abs(ck[i]) + 1e-4);
          CHECK(std::abs(half_to_float(mean_v[i]) - cv[i]) <= 1e-3 * std::abs(cv[i]) + 1e-4);
        }
      }
    }
  }
}

TEST_CASE("every instruction set scores as the plain loops do") {
  struct Case {
    int tokens, heads, group, dim, table, candidates;
  };
  const Case cases[] = {{1, 1, 1, 1, 1, 0},     {0, 2, 2, 8, 5, 0},       {5, 2, 3, 20, 7, 13},
                        {1, 4, 7, 128, 300, 0}, {17, 2, 2, 32, 130, 129}, {3, 1, 8, 64, 33, 16}};
  unsigned seed = 5;
  for (const Case& c : cases) {
    for (ScoreMode mode : {ScoreMode::kDot, ScoreMode::kMass}) {
      for (bool with_bias : {false, true}) {
        Random random(++seed);
        const size_t stride = static_cast<size_t>(c.heads * c.group * c.dim + 1);
        const auto q = random.normals(static_cast<size_t>(c.tokens) * stride, 3);
        const auto mean_k = random.halves(static_cast<size_t>(c.table * c.heads * c.dim));
        std::vector<int32_t> rows;
        for (int i = 0; i < c.candidates; ++i) rows.push_back(random.below(c.table));
        const int n = c.candidates > 0 ? c.candidates : c.table;
        const auto bias = random.normals(static_cast<size_t>(n));
        std::vector<float> expected(static_cast<size_t>(n)), got(static_cast<size_t>(n), -9);
        ScoreArgs a;
        a.q = q.data(), a.tokens = c.tokens, a.q_heads = c.heads * c.group, a.q_stride = stride,
        a.shape = {c.heads, c.dim};
        a.scale = 0.2f, a.mode = mode, a.mean_k = mean_k.data(), a.rows = c.candidates > 0 ? rows.data() : nullptr;
        a.row_bias = with_bias ? bias.data() : nullptr, a.n_rows = n, a.score = expected.data();
        const Ops::Limits limits{.tokens = c.tokens, .q_heads = a.q_heads, .shape = a.shape, .rows = n};
        Kernels("plain", 1, limits)->score(a);
        if (mode == ScoreMode::kMass) {
          CHECK(std::accumulate(expected.begin(), expected.end(), 0.0) ==
                doctest::Approx(c.tokens * c.heads * c.group));
        }
        for (const std::string& name : implementations()) {
          for (int threads : {1, 3}) {
            a.score = got.data();
            Kernels(name, threads, limits)->score(a);
            CAPTURE(name);
            CAPTURE(seed);
            for (int i = 0; i < n; ++i)
              CHECK(std::abs(got[i] - expected[i]) <= 2e-5f * std::max(1.0f, std::abs(expected[i])));
          }
        }
      }
    }
  }
}

TEST_CASE("top k is what a stable sort puts first") {
  struct Size {
    int n;
    std::vector<int> k;
  };
  std::vector<Size> sizes;
  for (int n : {0, 1, 5, 7, 13, 100, 4096}) sizes.push_back({n, {0, 1, 5, 13, 64, n - 1, n, n + 1}});
  sizes.push_back({1025, {1024, 1025}});
  sizes.push_back({5003, {1, 4095, 4096, 4097, 5003}});  // 4,097: no longer sorted in shared memory
  const int large = mosaic::testing::rounds(65536);
  sizes.push_back({large, {1, 33, 4096, large}});
  Random random(3);
  const float infinity = std::numeric_limits<float>::infinity();
  for (const std::string& name : implementations()) {
    Kernels kernels(name, 1, {.tokens = 1, .q_heads = 1, .shape = {1, 8}, .rows = 1});
    for (const auto& [n, ks] : sizes) {
      for (int kind : {0, 1, 2, 3}) {  // distinct, many ties, all equal, little but -inf
        std::vector<float> score(static_cast<size_t>(n));
        for (float& x : score) {
          x = kind == 0   ? random.normal()
              : kind == 1 ? static_cast<float>(random.below(4))
              : kind == 2 ? -3.5f
                          : (random.below(50) == 0 ? -1e30f : -infinity);
        }
        if (n > 5) score[3] = -infinity, score[4] = -0.0f, score[5] = 0.0f;
        std::vector<int32_t> order(static_cast<size_t>(n));
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return score[a] > score[b]; });
        for (int k : ks) {
          std::vector<int32_t> index(static_cast<size_t>(std::max(k, 0)) + 1, -7);
          const int kept = kernels->top_k(score.data(), n, k, index.data());
          CAPTURE(name);
          CAPTURE(n);
          CAPTURE(k);
          CAPTURE(kind);
          REQUIRE(kept == std::max(0, std::min(k, n)));
          CHECK(std::equal(order.begin(), order.begin() + kept, index.begin()));
          CHECK(index[static_cast<size_t>(kept)] == -7);
        }
      }
    }
  }
}
