// A look into the store for Python: what is kept, where, and as what. Policies written in Python read it, and so do tests
// and tools. Valid as long as the memory it came from.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <vector>

#include "bindings/array_view.h"
#include "bindings/store_view.h"
#include "core/error.h"
#include "runtime/kv_memory.h"

namespace py = pybind11;
using namespace mosaic;
using mosaic::bindings::StoreView;
using mosaic::bindings::view_of;

namespace {

std::vector<ClusterId> live_of(const ClusterIndex& index) {
  std::vector<ClusterId> live(index.live().begin(), index.live().end());
  std::sort(live.begin(), live.end());
  return live;
}

const ClusterIndex& lane_of(const ClusterStore& store, int lane) {
  if (lane < 0 || lane >= store.shape().lanes)
    throw InvalidInput("lane=" + std::to_string(lane) + ": this store has " + std::to_string(store.shape().lanes) +
                       ".");
  return store.index(lane);
}

py::array means(const py::object& self, int lane, bool keys) {
  const auto& view = self.cast<const StoreView&>();
  return view.read([&](const ClusterStore& store) {
    const ClusterIndex& index = lane_of(store, lane);
    if (!index.has_means()) throw InvalidInput("the clusters of this policy keep no means.");
    return view_of(view.lent ? py::handle() : py::handle(self), keys ? index.mean_k() : index.mean_v(),
                   {index.capacity(), index.dim()}, {}, py::dtype("float16"));
  });
}

template <class Of>
py::array column(const std::vector<ClusterId>& live, Of&& of) {
  using T = decltype(of(0));
  py::array_t<T> out(static_cast<py::ssize_t>(live.size()));
  for (size_t i = 0; i < live.size(); ++i) out.mutable_data()[i] = of(live[i]);
  return out;
}

py::dict clusters(const ClusterStore& store, int lane) {
  const ClusterIndex& index = lane_of(store, lane);
  const std::vector<ClusterId> live = live_of(index);
  py::dict out;
  out["id"] = column(live, [](ClusterId c) { return c; });
  out["count"] = column(live, [&](ClusterId c) { return index.count(c); });
  out["members"] = column(live, [&](ClusterId c) { return index[c].paged; });
  out["disk_pages"] = column(live, [&](ClusterId c) { return index[c].disk_pages; });
  out["variance"] = column(live, [&](ClusterId c) { return index.variance(c); });
  out["scene"] = column(live, [&](ClusterId c) { return index[c].scene; });
  out["tag"] = column(live, [&](ClusterId c) { return static_cast<int>(index[c].tag); });
  out["first_ms"] = column(live, [&](ClusterId c) { return int64_t{index[c].first_time}; });
  out["last_ms"] = column(live, [&](ClusterId c) { return int64_t{index[c].last_time}; });
  out["born"] = column(live, [&](ClusterId c) { return index[c].born; });
  out["touched"] = column(live, [&](ClusterId c) { return index[c].touched; });
  out["position"] = column(live, [&](ClusterId c) { return index[c].mean_position; });
  return out;
}

py::dict scenes(const ClusterStore& store) {
  const SceneTable* table = store.scenes();
  if (table == nullptr) throw InvalidInput("this policy has no scenes.");
  std::vector<SceneId> live;
  for (SceneId s = 0; s < store.shape().scenes; ++s)
    if (table->count(s) > 0) live.push_back(s);
  const auto n = static_cast<py::ssize_t>(live.size()), dim = static_cast<py::ssize_t>(table->dim());
  py::array_t<float> mean({n, dim});
  for (size_t i = 0; i < live.size(); ++i)
    std::copy_n(table->mean(live[i]), table->dim(), mean.mutable_data(static_cast<py::ssize_t>(i)));
  py::dict out;
  out["id"] = column(live, [](SceneId s) { return s; });
  out["frames"] = column(live, [&](SceneId s) { return table->count(s); });
  out["variance"] = column(live, [&](SceneId s) { return table->variance(s); });
  out["mean"] = mean;
  return out;
}

py::list tiers(const ClusterStore& store) {
  const TierChain& chain = store.tiers();
  py::list out;
  for (int t = 0; t < chain.size(); ++t) {
    py::dict row;
    row["medium"] = medium_name(chain.spec(t).medium);
    row["codec"] = codec_name(chain.spec(t).codec);
    row["slots"] = chain.spec(t).slots;
    row["free"] = chain.free_slots(t);
    out.append(row);
  }
  return out;
}

py::dict members(const ClusterStore& store, int lane) {
  const ClusterIndex& index = lane_of(store, lane);
  std::vector<int32_t> position, h, w, cluster, tier;
  std::vector<int64_t> time;
  std::vector<float> k, v;
  const auto row = static_cast<size_t>(store.shape().page.row());
  const auto add = [&](const TokenMeta& meta, ClusterId c, int t) {
    position.push_back(meta.position);
    time.push_back(store.clock().time(meta));
    h.push_back(meta.h);
    w.push_back(meta.w);
    cluster.push_back(c);
    tier.push_back(t);
    k.resize(k.size() + row);
    v.resize(v.size() + row);
  };
  for (const ClusterId c : live_of(index)) {
    if (index.has_means() && index.count(c) == 1 && index[c].paged == 0) {  // its mean is the token
      add({static_cast<int32_t>(index[c].mean_position), Clock::low(index[c].first_time), index[c].h, index[c].w}, c,
          0);
      for (size_t i = 0; i < row; ++i) {
        k[k.size() - row + i] = half_to_float(index.mean_k()[static_cast<size_t>(c) * row + i]);
        v[v.size() - row + i] = half_to_float(index.mean_v()[static_cast<size_t>(c) * row + i]);
      }
    }
    for (PageId id = index[c].head; id != kNone; id = store.pages()[id].next) {
      const Page& page = store.pages()[id];
      if (store.tiers().is_disk(page.tier)) continue;
      const PageView view = store.tiers().page(page.tier, page.slot);
      for (int i = 0; i < page.count; ++i) {
        add(view.meta[i], c, page.tier);
        store.ops().decode(store.shape().tiers[static_cast<size_t>(page.tier)].codec, store.shape().page, view.data, i,
                           i + 1, k.data() + k.size() - row, v.data() + v.size() - row, row);
      }
    }
  }
  const auto n = static_cast<py::ssize_t>(position.size());
  const auto ints = [&](const std::vector<int32_t>& x) { return py::array_t<int32_t>(n, x.data()); };
  const auto rows = [&](const std::vector<float>& x) {
    return py::array_t<float>({n, static_cast<py::ssize_t>(row)}, x.data());
  };
  py::dict out;
  out["position"] = ints(position);
  out["time_ms"] = py::array_t<int64_t>(n, time.data());
  out["h"] = ints(h);
  out["w"] = ints(w);
  out["cluster"] = ints(cluster);
  out["tier"] = ints(tier);
  out["k"] = rows(k);
  out["v"] = rows(v);
  return out;
}

// of(store) as a method of the view, and of(store, lane).
template <class Of>
auto reading(const Of& of) {
  return [of](const StoreView& view) { return view.read(of); };
}
template <class Of>
auto reading_lane(const Of& of) {
  return [of](const StoreView& view, int lane) {
    return view.read([&](const ClusterStore& store) { return of(store, lane); });
  };
}

}  // namespace

void bind_store(py::module_& m) {
  py::class_<StoreView>(m, "StoreView", "What a memory keeps, read-only. Valid while the memory lives.")
      .def_property_readonly("lanes", reading([](const ClusterStore& s) { return s.shape().lanes; }))
      .def_property_readonly("free_slots", reading([](const ClusterStore& s) { return s.free_slots(); }),
                             "Pages that could be written at once, in any DRAM tier.")
      .def_property_readonly("can_spill", reading([](const ClusterStore& s) { return s.can_spill(); }))
      .def("tiers", reading(tiers), "Hot to cold: medium, codec, page slots, and how many are free.")
      .def("scenes", reading(scenes), "Columns of the scenes: id, frames, variance, mean embedding.")
      .def("clusters", reading_lane(clusters), py::arg("lane"), "Columns of the live clusters of a lane, by rising id.")
      .def(
          "members", reading_lane(members), py::arg("lane"),
          "Tokens of a lane that lie in DRAM, with their place, cluster, tier, and keys and values decoded to float32.")
      .def(
          "mean_k", [](const py::object& self, int lane) { return means(self, lane, true); }, py::arg("lane"),
          "[capacity, dim] float16, keys before rotation; rows of clusters that are not live mean nothing. No copy.")
      .def(
          "mean_v", [](const py::object& self, int lane) { return means(self, lane, false); }, py::arg("lane"),
          "[capacity, dim] float16. No copy.");
}
