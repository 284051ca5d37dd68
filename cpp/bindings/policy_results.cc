// What a policy written in Python returned, checked before anything is done with it: one line naming the policy, the method
// and what it gave.
#include <algorithm>

#include "bindings/given.h"
#include "bindings/policy_objects.h"
#include "core/error.h"

namespace py = pybind11;

namespace mosaic::bindings {

namespace {

[[noreturn]] void refuse(const std::string& who, const std::string& what) {
  throw InvalidInput(who + " returned " + what + ".");
}

using Int64s = py::array_t<int64_t, py::array::c_style | py::array::forcecast>;

Int64s int64s(const std::string& who, const py::array& raw) {
  Int64s made = Int64s::ensure(raw);
  if (!made) refuse(who, text_of(raw) + ", which cannot be read as whole numbers");
  return made;
}

// One value a token, as int64. *mask: they were booleans.
Int64s column(const std::string& who, const char* name, const py::handle& given, int n, bool* mask = nullptr) {
  const std::string of = *name != 0 ? std::string(name) + "=" : "";
  py::array raw = py::array::ensure(given);
  if (!raw) {
    PyErr_Clear();
    refuse(who, of + text_of(given) + ", expected an array");
  }
  const char kind = raw.dtype().kind();
  if (kind != 'b' && kind != 'i' && kind != 'u')
    refuse(who, of + text_of(given) + ", expected integers or booleans, one a token");
  if (raw.ndim() > 1 || raw.size() != n)
    refuse(who, of + std::to_string(raw.size()) + (raw.ndim() > 1 ? " values that are not one row" : " values") +
                    " for " + std::to_string(n) + (n == 1 ? " token" : " tokens"));
  if (mask != nullptr) *mask = kind == 'b';
  return int64s(who, raw.reshape({n}));
}

void check_live(const std::string& who, const ClusterIndex& index, int64_t c, int lane) {
  if (c < 0 || c >= index.capacity() || !index.is_live(static_cast<ClusterId>(c)))
    refuse(who, "cluster " + std::to_string(c) + ", which is not live in lane " + std::to_string(lane));
}

void read_labels(const std::string& who, const ClusterStore& store, const PolicyNeeds& needs, const py::handle& given,
                 int lane, int n, Placement* out) {
  bool mask = false;
  const auto labels = column(who, "", given, n, &mask);
  for (int i = 0; i < n; ++i) {
    const int64_t label = labels.at(i);
    if (mask) {  // what is kept of the batch opens one cluster
      out[i].cluster = label != 0 ? Placement::kOpen : Placement::kDrop;
      out[i].together = 0;
    } else if (label == Placement::kOpen || label == Placement::kDrop) {
      out[i].cluster = static_cast<ClusterId>(label);
    } else {
      if (!needs.group.by_token)
        refuse(who, std::to_string(label) + "; by_token=False decides a frame: True, False, OPEN or DROP");
      check_live(who, store.index(lane), label, lane);
      out[i].cluster = static_cast<ClusterId>(label);
    }
  }
}

}  // namespace

void read_placements(const std::string& who, const ClusterStore& store, const PolicyNeeds& needs,
                     const py::object& given, int lane, int n, Placement* out) {
  for (int i = 0; i < n; ++i) out[i] = {};
  if (given.is_none()) {
    for (int i = 0; i < n; ++i) out[i].together = 0;
    return;
  }
  if (!py::isinstance<py::dict>(given)) return read_labels(who, store, needs, given, lane, n, out);
  const auto columns = given.cast<py::dict>();
  for (const auto& [key, value] : columns) {
    const std::string name = py::isinstance<py::str>(key) ? key.cast<std::string>() : text_of(key);
    if (name == "cluster") {
      read_labels(who, store, needs, value, lane, n, out);
      continue;
    }
    if (name != "keep" && name != "tag" && name != "together")
      refuse(who, "a column \"" + name + "\"; there are cluster, keep, tag, together");
    const auto values = column(who, name.c_str(), value, n);
    for (int i = 0; i < n; ++i) {
      const int64_t x = values.at(i);
      const auto need = [&](bool holds, const char* what) {
        if (!holds) refuse(who, name + "=" + std::to_string(x) + ", expected " + what);
      };
      if (name == "keep") {
        need(x == 1 || (x == 0 && needs.has_means()), "True, or False with means=True");
        out[i].keep = x != 0;
      } else if (name == "tag") {
        need(x >= 0 && x <= 255, "0 to 255");
        out[i].tag = static_cast<uint8_t>(x);
      } else {
        need(x >= kNone && x <= INT32_MAX, "a number that tokens of one new cluster share, or -1");
      }
    }
  }
  if (columns.contains("together")) {  // over what a mask in "cluster" said
    const auto values = column(who, "together", columns["together"], n);
    for (int i = 0; i < n; ++i) out[i].together = static_cast<int32_t>(values.at(i));
  }
}

void read_choice(const std::string& who, const ClusterStore& store, const SelectQuery& query, const py::object& given,
                 SelectResult* out) {
  out->n = 0;
  if (given.is_none()) return;
  const ClusterIndex& index = store.index(query.lane);
  const py::array raw = py::array::ensure(given);
  if (!raw) PyErr_Clear();
  if (!raw || raw.ndim() != 1 || (raw.size() > 0 && raw.dtype().kind() != 'i' && raw.dtype().kind() != 'u'))
    refuse(who, text_of(given) + ", expected cluster ids, best first");
  if (raw.size() > index.capacity())  // before they are copied
    refuse(who, std::to_string(raw.size()) + " cluster ids; a lane has " + std::to_string(index.capacity()));
  const Int64s ids = int64s(who, raw);
  std::vector<bool> taken(static_cast<size_t>(index.capacity()));
  int tokens = 0;
  for (py::ssize_t i = 0; i < ids.size(); ++i) {
    check_live(who, index, ids.at(i), query.lane);
    const auto c = static_cast<ClusterId>(ids.at(i));
    if (taken[static_cast<size_t>(c)]) refuse(who, "cluster " + std::to_string(c) + " twice");
    taken[static_cast<size_t>(c)] = true;
    if (tokens + index[c].paged > query.max_tokens) continue;
    tokens += index[c].paged;
    out->score[out->n] = -static_cast<float>(i);
    out->chosen[out->n++] = c;
  }
}

int read_evictions(const std::string& who, const ClusterStore& store, const py::object& given,
                   std::vector<PyEviction>* held, Eviction* out, int capacity) {
  held->clear();
  if (given.is_none()) return 0;
  if (!py::isinstance<py::iterable>(given)) refuse(who, text_of(given) + ", expected a list of Eviction");
  for (const py::handle& one : given) {
    if (!py::isinstance<PyEviction>(one)) refuse(who, text_of(one) + ", expected a list of Eviction");
    if (static_cast<int>(held->size()) < capacity) held->push_back(one.cast<const PyEviction&>());
  }
  std::vector<std::pair<int, ClusterId>> named;
  int n = 0;
  for (PyEviction& one : *held) {
    const Eviction& r = one.eviction;
    if (r.lane < 0 || r.lane >= store.shape().lanes)
      refuse(who, "lane " + std::to_string(r.lane) + " of " + std::to_string(store.shape().lanes));
    const ClusterIndex& index = store.index(r.lane);
    const auto take = [&](ClusterId c) {
      check_live(who, index, c, r.lane);
      if (std::find(named.begin(), named.end(), std::pair(r.lane, c)) != named.end())
        refuse(who, "cluster " + std::to_string(c) + " of lane " + std::to_string(r.lane) + " twice");
      named.emplace_back(r.lane, c);
    };
    take(r.cluster);
    if (r.kind == Eviction::Kind::kMerge) take(r.other);
    if (r.kind == Eviction::Kind::kCollapse && !index.has_means())
      refuse(who, "collapse, which needs means=True: drop the cluster");
    if (r.kind == Eviction::Kind::kDemote) {
      const int to = r.tier >= 0 && r.tier < store.tiers().size() ? store.tiers().colder(r.tier) : kNone;
      if (to == kNone) refuse(who, "demote from tier " + std::to_string(r.tier) + ", below which there is none");
    }
    if (r.kind == Eviction::Kind::kThin && static_cast<int>(one.keep.size()) != index[r.cluster].paged)
      refuse(who, "thin with " + std::to_string(one.keep.size()) + " values for " +
                      std::to_string(index[r.cluster].paged) + " members");
    out[n] = r;
    out[n++].keep = one.keep.data();
  }
  return n;
}

}  // namespace mosaic::bindings
