// Policies written in Python: the base class to derive from, and the Policy that calls it. The core runs without the GIL;
// it is taken for each call. What is raised in Python travels through the core as it is: a block whose select() raised is
// refused whole, and of a frame whose admit() or evict() raised what was not filed yet is dropped and counted.
#include "bindings/policy_bindings.h"

#include <pybind11/stl.h>

#include <algorithm>

#include "bindings/array_view.h"
#include "bindings/gil.h"
#include "bindings/given.h"
#include "bindings/policy_objects.h"
#include "bindings/store_view.h"
#include "core/error.h"
#include "policy/yielding.h"

namespace py = pybind11;

namespace mosaic::bindings {

namespace {

class PythonPolicy final : public Policy {
 public:
  explicit PythonPolicy(const py::object& self)
      : self_(self),
        base_(self.cast<PolicyBase*>()),
        name_(py::type::of(self).attr("__name__").cast<std::string>()),
        needs_(base_->needs) {
    for (const char* method : {"admit", "evict", "select"})
      if ((std::string(method) != "select" || needs_.selects()) && !py::hasattr(self, method))
        throw InvalidInput("policy " + name_ + " has no " + method + "()" +
                           (needs_.selects() ? "; selects=True needs admit(), evict() and select()." : "."));
    has_scene_ = py::hasattr(self, "scene");
  }
  ~PythonPolicy() override {
    const WithGil gil;
    if (view_) view_.cast<StoreView&>().held = nullptr;
    view_ = py::object();
    held_.clear();
    self_ = py::object();
  }
  const char* name() const override { return name_.c_str(); }
  PolicyNeeds needs() const override { return needs_; }

  void bind(const StoreShape&, Region& region) override {
    if (region.is_counting()) return;
    const WithGil gil;
    if (base_->serves)
      throw InvalidInput("policy " + name_ + ": this object serves or served a session; make another one.");
    base_->serves = true;
  }

  void serve(const OneCaller& caller) override { caller_ = &caller; }

  SceneId scene(const ClusterStore& store, const float* embedding) override {
    const WithGil gil;
    if (!has_scene_) {  // as in mosaic
      const auto [nearest, distance] = store.scenes()->nearest(embedding);
      return nearest != kNone && distance <= 0.05f ? nearest : kNone;
    }
    const py::object given = call_python(self_.attr("scene"), view_of_store(store),
                                         copy_of(embedding, {py::ssize_t{store.shape().embedding_dim}}));
    if (given.is_none()) return kNone;
    int id = kNone;
    try {
      id = given.cast<int>();
    } catch (const py::cast_error&) {
      id = -1;
    }
    if (id < 0 || id >= store.shape().scenes || store.scenes()->count(id) == 0)
      throw InvalidInput(who("scene") + " returned " + py::repr(given).cast<std::string>() +
                         ", expected the id of a scene or None.");
    return id;
  }

  void admit(const ClusterStore& store, const AdmitBatch& batch, Placement* out) override {
    const WithGil gil;
    BatchView view;
    view.lane = batch.lane;
    view.frame = batch.frame;
    view.frames = batch.frames;
    if (batch.scene != kNone) view.scene = batch.scene;
    const int n = needs_.group.by_token ? batch.tokens.n : 0;
    const auto rows = static_cast<py::ssize_t>(n), row = static_cast<py::ssize_t>(store.shape().page.row());
    const TokenMeta* meta = batch.tokens.meta;
    const auto column = [&](auto TokenMeta::* field) -> py::object {
      using T = std::remove_cvref_t<decltype(TokenMeta{}.*field)>;
      static const T none{};
      return copy_of(n > 0 ? &(meta->*field) : &none, {rows}, {sizeof(TokenMeta)});
    };
    static const float none = 0;
    view.k = copy_of(n > 0 ? batch.tokens.k : &none, {rows, row});
    view.v = copy_of(n > 0 ? batch.tokens.v : &none, {rows, row});
    view.attention_received =
        batch.attention_received != nullptr ? py::object(copy_of(batch.attention_received, {rows})) : py::none();
    view.position = column(&TokenMeta::position);
    py::array_t<int64_t> times(rows);
    std::transform(meta, meta + n, times.mutable_data(), [&](const TokenMeta& m) { return store.clock().time(m); });
    view.time_ms = std::move(times);
    view.h = column(&TokenMeta::h);
    view.w = column(&TokenMeta::w);
    read_placements(who("admit"), store, needs_,
                    call_python(self_.attr("admit"), view_of_store(store), std::move(view)), batch.lane,
                    needs_.group.by_token ? n : 1, out);
  }

  // OPEN means a cluster of its own, also beside one that the same frame has just opened.
  float radius(int) const override { return -std::numeric_limits<float>::infinity(); }

  void select(const ClusterStore& store, const SelectQuery& query, const SelectScratch&,
              SelectResult* result) override {
    const WithGil gil;
    const auto d = static_cast<py::ssize_t>(store.shape().page.head_dim);
    const py::object view = py::cast(
        QueryView{query, &store,
                  copy_of(query.q, {query.tokens, query.q_heads, d},
                          {static_cast<py::ssize_t>(query.q_stride * sizeof(float)),
                           d * static_cast<py::ssize_t>(sizeof(float)), static_cast<py::ssize_t>(sizeof(float))})});
    const py::object given = call_python(self_.attr("select"), view_of_store(store), view);
    view.cast<QueryView&>().store = nullptr;
    read_choice(who("select"), store, query, given, result);
  }

  int evict(const ClusterStore& store, const Need& need, Eviction* out, int capacity) override {
    // Which pages stay exact is no question of what is kept.
    if (need.kind == Need::Kind::kHotSlots) return demote_coldest(store, need, out, capacity);
    const WithGil gil;
    return read_evictions(who("evict"), store, call_python(self_.attr("evict"), view_of_store(store), need), &held_,
                          out, capacity);
  }

  // Its state is bytes of its own making.
  void serialize(Snapshot& s, const ClusterStore&) override {
    const WithGil gil;
    if (!py::hasattr(self_, "state") || !py::hasattr(self_, "set_state"))
      throw InvalidInput("policy " + name_ +
                         " has no state() and set_state(): a session of it cannot be saved. Give it " +
                         "both: bytes that later calls depend on (b'' where none do), and what takes them back.");
    std::string state;
    if (!s.is_reading()) {
      const py::object given = call_python(self_.attr("state"));
      if (!py::isinstance<py::bytes>(given)) throw InvalidInput(who("state") + " returned no bytes.");
      state = given.cast<std::string>();
    }
    auto n = static_cast<uint64_t>(state.size());
    s.in_range(n, 0, kMostState, "bytes of the policy's state");
    if (!s.is_reading() && n > kMostState)
      throw InvalidInput(who("state") + " returned " + std::to_string(n) + " bytes, at most " +
                         std::to_string(kMostState) + " are kept.");
    for (uint64_t at = 0; at < n; at += Snapshot::kPartBytes) {  // grown as it comes
      const auto step = static_cast<size_t>(std::min<uint64_t>(Snapshot::kPartBytes, n - at));
      if (s.is_reading()) state.resize(static_cast<size_t>(at) + step);
      s.bytes(state.data() + at, step);
    }
    if (s.is_reading()) call_python(self_.attr("set_state"), py::bytes(state));
  }

 private:
  static constexpr uint64_t kMostState = uint64_t{1} << 30;
  std::string who(const char* method) const { return "policy " + name_ + ": " + method; }
  // One object for all calls, which knows when the store is gone.
  const py::object& view_of_store(const ClusterStore& store) {
    if (!view_) view_ = py::cast(StoreView{&store, caller_, nullptr, true});
    return view_;
  }

  py::object self_;
  PolicyBase* base_;
  std::string name_;
  PolicyNeeds needs_;
  bool has_scene_ = false;
  const OneCaller* caller_ = nullptr;
  py::object view_;  // a StoreView
  std::vector<PyEviction> held_;
};

PolicySettings settings_from(const py::dict& d) {
  PolicySettings settings;
  for (const auto& [key, value] : d) {
    const auto name = value_of<std::string>(key, "settings: a setting's name");
    if (py::isinstance<py::str>(value)) {
      settings.emplace_back(name, value_of<std::string>(value, "settings: " + name));
    } else {
      settings.emplace_back(name, value_of<double>(value, "settings: " + name));
    }
  }
  return settings;
}

}  // namespace

std::unique_ptr<Policy> policy_from(const py::object& policy, const py::dict& settings) {
  if (py::isinstance<py::str>(policy)) return make_policy(policy.cast<std::string>(), settings_from(settings));
  if (!py::isinstance<PolicyBase>(policy))
    throw InvalidInput("policy=" + py::repr(policy).cast<std::string>() +
                       ": expected a name, or an object of a class that derives from mosaic_edge.Policy.");
  auto made = std::make_unique<PythonPolicy>(policy);
  if (settings.size() > 0)
    throw InvalidInput(std::string("policy ") + made->name() +
                       " is an object: give it its settings when it is made, not in settings=.");
  return made;
}

}  // namespace mosaic::bindings

void bind_policy(py::module_& m) {
  mosaic::bindings::bind_policy_objects(m);
  m.def(
      "check_policy",
      [](const std::string& policy, const py::dict& settings) {
        mosaic::bindings::policy_from(py::str(policy), settings);
      },
      py::arg("policy"), py::arg("settings"),
      "Raises InvalidInput where there is no policy of this name, or it has no such settings.");
}
