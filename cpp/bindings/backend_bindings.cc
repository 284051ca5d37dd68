// Which backends there are, and why one is absent.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "backend/backend.h"
#include "policy/policy.h"

namespace py = pybind11;

void bind_backend(py::module_& m) {
  m.def(
      "backends",
      [] {
        py::list out;
        for (const mosaic::BackendInfo& info : mosaic::list_backends()) {
          py::dict row;
          row["name"] = info.name;
          row["available"] = info.available;
          row["detail"] = info.detail;
          out.append(row);
        }
        return out;
      },
      "Backends this build knows: [{name, available, detail}].");
  m.def("policies", &mosaic::policy_names, "Names that policy= takes.");
}
