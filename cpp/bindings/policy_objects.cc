#include "bindings/policy_objects.h"

#include <pybind11/stl.h>

#include "core/error.h"
#include "policy/retrieval.h"

namespace py = pybind11;

namespace mosaic::bindings {

namespace {

void check(const PolicyNeeds& n) {
  const auto need = [](bool holds, const char* what) {
    if (!holds) throw InvalidInput(std::string("Policy: ") + what);
  };
  need(n.means || !n.summaries, "summaries=True needs means=True.");
  need(n.frames >= 1 && n.frames <= 4096, "frames must be 1 to 4096.");
  need(n.frames == 1 || (n.by_token && !n.scenes), "frames > 1 needs by_token=True and scenes=False.");
  need(n.clusters >= 0 && n.clusters <= 1 << 24, "clusters must be 0 (by the cap) or more.");
  need(n.value_weight >= 0 && n.value_weight <= 100, "value_weight must be 0 to 100.");
  need(!n.unbounded || n.by_token, "unbounded=True needs by_token=True.");
}

// (ids, scores): how much the query would attend to each cluster's mean.
py::tuple scores(const QueryView& view, const std::string& mode) {
  if (view.store == nullptr) throw InvalidInput("Query: it was for one call of select(), which has returned.");
  if (!view.store->index(view.query.lane).has_means()) throw InvalidInput("Query.scores: it needs means=True.");
  if (mode != "mass" && mode != "dot") throw InvalidInput("Query.scores: mode=\"" + mode + "\"; there are mass, dot.");
  const auto n = static_cast<size_t>(view.store->index(view.query.lane).capacity());
  std::vector<int32_t> rows(n);
  std::vector<float> bias(n), score(n);
  const SelectScratch scratch{rows.data(), bias.data(), score.data()};
  const int found =
      score_clusters(*view.store, view.query, mode == "mass" ? ScoreMode::kMass : ScoreMode::kDot, scratch);
  return py::make_tuple(py::array_t<int32_t>(found, rows.data()), py::array_t<float>(found, score.data()));
}

PyRelief relief(Relief::Kind kind, int lane, ClusterId cluster, ClusterId other = kNone, int tier = 0) {
  return {{kind, lane, cluster, other, tier, nullptr}, {}};
}

}  // namespace

void bind_policy_objects(py::module_& m) {
  py::class_<PolicyBase> policy(m, "Policy", R"(A memory's choices, in Python: derive from it.

super().__init__(...) says what the memory must provide; then
  admit(store, block)    where tokens go: None (all into one new cluster), a mask of what is kept, an integer for each
                         token (a cluster's id, Policy.OPEN, Policy.DROP), or a dict of columns cluster, keep, tag,
                         together. by_token=False: one answer for the whole frame
  relieve(store, need)   what yields when need.amount of need.kind ("slots", "clusters") are missing: a list of Relief;
                         called again until there is room, an empty list gives up and the token is dropped
  select(store, query)   with selects=True: ids of the clusters to read, best first; those that fit query.max_tokens are
  scene(store, embedding)  with scenes=True, optional: the id of a frame's scene, or None for a new one
store is a StoreView. Arrays are copies, yours to keep. What a policy remembers is outside the cap. One object serves one
session. An exception reaches the caller of append() or ask(); a question is then refused whole, a frame that was
leaving the window is dropped and counted.)");
  policy
      .def(py::init([](bool by_token, bool per_head, bool means, bool summaries, bool scenes, bool selects,
                       bool received, bool unbounded, int frames, int clusters, float value_weight) {
             PolicyNeeds needs;
             needs.by_token = by_token;
             needs.per_head = per_head;
             needs.means = means;
             needs.summaries = summaries;
             needs.scenes = scenes;
             needs.selects = needs.reads_query = selects;
             needs.received = received;
             needs.unbounded = unbounded;
             needs.frames = frames;
             needs.clusters = clusters;
             needs.value_weight = value_weight;
             check(needs);
             return PolicyBase{needs};
           }),
           py::kw_only(), py::arg("by_token") = false, py::arg("per_head") = false, py::arg("means") = false,
           py::arg("summaries") = false, py::arg("scenes") = false, py::arg("selects") = false,
           py::arg("received") = false, py::arg("unbounded") = false, py::arg("frames") = 1, py::arg("clusters") = 0,
           py::arg("value_weight") = 0.0f)
      .def("needs", [](const PolicyBase& self) {
        const PolicyNeeds& n = self.needs;
        py::dict out;
        out["by_token"] = n.by_token;
        out["per_head"] = n.per_head;
        out["means"] = n.means;
        out["summaries"] = n.summaries;
        out["scenes"] = n.scenes;
        out["selects"] = n.selects;
        out["received"] = n.received;
        out["unbounded"] = n.unbounded;
        out["frames"] = n.frames;
        out["clusters"] = n.clusters;
        out["value_weight"] = n.value_weight;
        return out;
      });
  policy.attr("OPEN") = static_cast<int>(Placement::kOpen);
  policy.attr("DROP") = static_cast<int>(Placement::kDrop);

  py::class_<BlockView>(m, "Block",
                        "What leaves the window: the tokens of a frame, in one lane (by_token), or a frame.")
      .def_readonly("lane", &BlockView::lane, "-1 by frame: the answer holds for every lane.")
      .def_readonly("frame", &BlockView::frame)
      .def_readonly("frames", &BlockView::frames)
      .def_readonly("scene", &BlockView::scene)
      .def_readonly("k", &BlockView::k, "[n, row] float32 before rotation; a view. By frame: empty.")
      .def_readonly("v", &BlockView::v, "[n, row] float32; a view.")
      .def_readonly("received", &BlockView::received, "[n] attention received in the window, with received=True.")
      .def_readonly("position", &BlockView::position)
      .def_readonly("time_ms", &BlockView::time_ms)
      .def_readonly("h", &BlockView::h, "Row of the grid; 65535 of text around a picture, which has none.")
      .def_readonly("w", &BlockView::w, "Column of the grid; 65535 of text.");

  py::class_<QueryView>(m, "Query", "A question at one layer.")
      .def_property_readonly("lane", [](const QueryView& q) { return q.query.lane; })
      .def_readonly("q", &QueryView::q, "[T, heads, D] float32 before rotation; a view.")
      .def_property_readonly("scale", [](const QueryView& q) { return q.query.scale; })
      .def_property_readonly("max_tokens", [](const QueryView& q) { return q.query.max_tokens; })
      .def_property_readonly(
          "since_ms",
          [](const QueryView& q) -> std::optional<int32_t> {
            if (q.query.since_ms == std::numeric_limits<int32_t>::min()) return std::nullopt;
            return q.query.since_ms;
          },
          "Clusters that ended before are not wanted; None: all are.")
      .def("scores", &scores, py::arg("mode") = "mass",
           "(ids, scores) of the clusters since_ms allows, by attention mass or by dot product with their mean.");

  py::class_<Need>(m, "Need", "What is missing.")
      .def_property_readonly("kind",
                             [](const Need& n) { return n.kind == Need::Kind::kClusters ? "clusters" : "slots"; })
      .def_readonly("lane", &Need::lane)
      .def_readonly("amount", &Need::amount)
      .def_readonly("frame", &Need::frame);

  py::class_<PyRelief>(m, "Relief", "Something that yields: made by drop, summarise, merge, demote and thin.")
      .def_static(
          "drop", [](int lane, ClusterId c) { return relief(Relief::Kind::kDrop, lane, c); }, py::arg("lane"),
          py::arg("cluster"), "The cluster goes, summary and all.")
      .def_static(
          "summarise", [](int lane, ClusterId c) { return relief(Relief::Kind::kSummarise, lane, c); }, py::arg("lane"),
          py::arg("cluster"), "Its members go, the mean stays.")
      .def_static(
          "merge", [](int lane, ClusterId c, ClusterId other) { return relief(Relief::Kind::kMerge, lane, c, other); },
          py::arg("lane"), py::arg("cluster"), py::arg("other"), "`other` joins `cluster`.")
      .def_static(
          "demote", [](int lane, ClusterId c, int tier) { return relief(Relief::Kind::kDemote, lane, c, kNone, tier); },
          py::arg("lane"), py::arg("cluster"), py::arg("tier"), "Its pages in `tier` go one tier down.")
      .def_static(
          "thin",
          [](int lane, ClusterId c, const std::vector<bool>& keep) {
            PyRelief out = relief(Relief::Kind::kThin, lane, c);
            out.keep.assign(keep.begin(), keep.end());
            return out;
          },
          py::arg("lane"), py::arg("cluster"), py::arg("keep"),
          "Members whose keep is False go, in the order of the pages.");
}

}  // namespace mosaic::bindings
