// What a policy written in Python is handed and hands back. Arrays are copies, the policy's to keep.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

#include "policy/policy.h"

namespace mosaic::bindings {

// The base of a policy written in Python.
struct PolicyBase {
  PolicyNeeds needs;
  bool serves = false;  // a session: one object, one session
};

struct BatchView {
  int lane = 0;
  int32_t frame = 0;
  int frames = 1;
  std::optional<SceneId> scene;
  pybind11::object k, v, attention_received, position, time_ms, h, w;
};

struct QueryView {
  SelectQuery query;
  const ClusterStore* store = nullptr;  // null once the call has returned
  pybind11::object q;
};

struct PyEviction {
  Eviction eviction;
  std::vector<uint8_t> keep;  // kThin
};

// What it returned, checked; `who` is "policy NAME: admit".
void read_placements(const std::string& who, const ClusterStore& store, const PolicyNeeds& needs,
                     const pybind11::object& given, int lane, int n, Placement* out);
void read_choice(const std::string& who, const ClusterStore& store, const SelectQuery& query,
                 const pybind11::object& given, SelectResult* out);
// The evictions stay alive in `held`, which their masks point into.
int read_evictions(const std::string& who, const ClusterStore& store, const pybind11::object& given,
                   std::vector<PyEviction>* held, Eviction* out, int capacity);

void bind_policy_objects(pybind11::module_& m);

}  // namespace mosaic::bindings
