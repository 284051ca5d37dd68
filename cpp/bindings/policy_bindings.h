// A policy from Python: a name with its settings, or an object whose class derives from mosaic_edge.Policy.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "policy/policy.h"

namespace mosaic::bindings {

std::unique_ptr<Policy> policy_from(const pybind11::object& policy, const pybind11::dict& settings);

}  // namespace mosaic::bindings
