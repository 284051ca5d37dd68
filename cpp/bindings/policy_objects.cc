#include "bindings/policy_objects.h"

#include <pybind11/stl.h>

#include "core/error.h"
#include "policy/retrieval.h"

namespace py = pybind11;

namespace mosaic::bindings {

namespace {

PolicyNeeds needs_of(bool by_token, bool per_head, bool means, bool summaries, bool scenes, bool selects,
                     bool attention_received, bool unbounded, int frames, int clusters, float value_weight) {
  const auto need = [](bool holds, const char* what) {
    if (!holds) throw InvalidInput(std::string("Policy: ") + what);
  };
  need(means || !summaries, "summaries=True needs means=True.");
  need(frames >= 1 && frames <= 4096, "frames must be 1 to 4096.");
  need(frames == 1 || (by_token && !scenes), "frames > 1 needs by_token=True and scenes=False.");
  need(clusters >= 0 && clusters <= 1 << 24, "clusters must be 0 (by the cap) or more.");
  need(value_weight >= 0 && value_weight <= 100, "value_weight must be 0 to 100.");
  need(!unbounded || by_token, "unbounded=True needs by_token=True.");
  using Means = PolicyNeeds::Means;
  using Of = PolicyNeeds::Reading::Of;
  PolicyNeeds needs;
  needs.group = {.by_token = by_token,
                 .per_head = per_head,
                 .scenes = scenes,
                 .frames = frames,
                 .unbounded = unbounded,
                 .attention_received = attention_received,
                 .value_weight = value_weight};
  needs.means = summaries ? Means::kAttended : means ? Means::kScored : Means::kNone;
  needs.read.of = selects ? Of::kChosenOnHost : Of::kEverything;
  needs.share.clusters = clusters;
  return needs;
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

PyEviction eviction(Eviction::Kind kind, int lane, ClusterId cluster, ClusterId other = kNone, int tier = 0) {
  return {{kind, lane, cluster, other, tier, nullptr}, {}};
}

}  // namespace

void bind_policy_objects(py::module_& m) {
  py::class_<PolicyBase> policy(m, "Policy", R"(A memory's choices, in Python: derive from it.

super().__init__(...) says what the memory must provide; then
  admit(store, batch)    where tokens go: None (all into one new cluster), a mask of what is kept, an integer for each
                         token (a cluster's id, Policy.OPEN, Policy.DROP), or a dict of columns cluster, keep, tag,
                         together. by_token=False: one answer for the whole frame
  evict(store, need)   what yields when need.amount of need.kind ("slots", "clusters") are missing: a list of Eviction;
                         called again until there is room, an empty list gives up and the token is dropped
  select(store, query)   with selects=True: ids of the clusters to read, best first; those that fit query.max_tokens are
  scene(store, embedding)  with scenes=True, optional: the id of a frame's scene, or None for a new one
store is a StoreView. Arrays are copies, yours to keep. What a policy remembers is outside the cap. One object serves one
session. An exception reaches the caller of append() or ask(); a question is then refused whole, a frame that was
leaving the window is dropped and counted.)");
  policy
      .def(py::init([](bool by_token, bool per_head, bool means, bool summaries, bool scenes, bool selects,
                       bool attention_received, bool unbounded, int frames, int clusters, float value_weight) {
             return PolicyBase{needs_of(by_token, per_head, means, summaries, scenes, selects, attention_received,
                                        unbounded, frames, clusters, value_weight)};
           }),
           py::kw_only(), py::arg("by_token") = false, py::arg("per_head") = false, py::arg("means") = false,
           py::arg("summaries") = false, py::arg("scenes") = false, py::arg("selects") = false,
           py::arg("attention_received") = false, py::arg("unbounded") = false, py::arg("frames") = 1,
           py::arg("clusters") = 0, py::arg("value_weight") = 0.0f)
      .def("needs", [](const PolicyBase& self) {
        const PolicyNeeds& n = self.needs;
        py::dict out;
        out["by_token"] = n.group.by_token;
        out["per_head"] = n.group.per_head;
        out["means"] = n.has_means();
        out["summaries"] = n.attends_means();
        out["scenes"] = n.group.scenes;
        out["selects"] = n.selects();
        out["attention_received"] = n.group.attention_received;
        out["unbounded"] = n.group.unbounded;
        out["frames"] = n.group.frames;
        out["clusters"] = n.share.clusters;
        out["value_weight"] = n.group.value_weight;
        return out;
      });
  policy.attr("OPEN") = static_cast<int>(Placement::kOpen);
  policy.attr("DROP") = static_cast<int>(Placement::kDrop);

  py::class_<BatchView>(m, "Batch",
                        "What leaves the window: the tokens of a frame, in one lane (by_token), or a frame.")
      .def_readonly("lane", &BatchView::lane, "-1 by frame: the answer holds for every lane.")
      .def_readonly("frame", &BatchView::frame)
      .def_readonly("frames", &BatchView::frames)
      .def_readonly("scene", &BatchView::scene)
      .def_readonly("k", &BatchView::k, "[n, row] float32 before rotation. By frame: empty.")
      .def_readonly("v", &BatchView::v, "[n, row] float32.")
      .def_readonly("attention_received", &BatchView::attention_received,
                    "[n] by each token while in the window, with attention_received=True.")
      .def_readonly("position", &BatchView::position)
      .def_readonly("time_ms", &BatchView::time_ms)
      .def_readonly("h", &BatchView::h, "Row of the grid; 65535 of text around a picture, which has none.")
      .def_readonly("w", &BatchView::w, "Column of the grid; 65535 of text.");

  py::class_<QueryView>(m, "Query", "A question at one layer.")
      .def_property_readonly("lane", [](const QueryView& q) { return q.query.lane; })
      .def_readonly("q", &QueryView::q, "[T, heads, D] float32 before rotation.")
      .def_property_readonly("scale", [](const QueryView& q) { return q.query.scale; })
      .def_property_readonly("max_tokens", [](const QueryView& q) { return q.query.max_tokens; })
      .def_property_readonly(
          "since_ms",
          [](const QueryView& q) -> std::optional<int64_t> {
            if (q.query.since_ms == Clock::kNever) return std::nullopt;
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

  py::class_<PyEviction>(m, "Eviction", "Something that yields: made by drop, collapse, merge, demote and thin.")
      .def_static(
          "drop", [](int lane, ClusterId c) { return eviction(Eviction::Kind::kDrop, lane, c); }, py::arg("lane"),
          py::arg("cluster"), "The cluster goes, summary and all.")
      .def_static(
          "collapse", [](int lane, ClusterId c) { return eviction(Eviction::Kind::kCollapse, lane, c); },
          py::arg("lane"), py::arg("cluster"), "Its members go, the mean stays.")
      .def_static(
          "merge",
          [](int lane, ClusterId c, ClusterId other) { return eviction(Eviction::Kind::kMerge, lane, c, other); },
          py::arg("lane"), py::arg("cluster"), py::arg("other"), "`other` joins `cluster`.")
      .def_static(
          "demote",
          [](int lane, ClusterId c, int tier) { return eviction(Eviction::Kind::kDemote, lane, c, kNone, tier); },
          py::arg("lane"), py::arg("cluster"), py::arg("tier"), "Its pages in `tier` go one tier down.")
      .def_static(
          "thin",
          [](int lane, ClusterId c, const std::vector<bool>& keep) {
            PyEviction out = eviction(Eviction::Kind::kThin, lane, c);
            out.keep.assign(keep.begin(), keep.end());
            return out;
          },
          py::arg("lane"), py::arg("cluster"), py::arg("keep"),
          "Members whose keep is False go, in the order of the pages.");
}

}  // namespace mosaic::bindings
