// mosaic_edge._core: the list of what Python sees of the core.
#include <pybind11/pybind11.h>

void bind_end(pybind11::module_& m);
void bind_errors(pybind11::module_& m);
void bind_backend(pybind11::module_& m);
void bind_memory(pybind11::module_& m);
void bind_ops(pybind11::module_& m);
void bind_policy(pybind11::module_& m);
void bind_signals(pybind11::module_& m);
void bind_snapshot(pybind11::module_& m);
void bind_store(pybind11::module_& m);
void bind_trace(pybind11::module_& m);

PYBIND11_MODULE(_core, m) {
  m.doc() = "C++ core of mosaic_edge.";
  bind_errors(m);
  bind_backend(m);
  bind_store(m);
  bind_policy(m);
  bind_snapshot(m);
  bind_memory(m);
  bind_ops(m);
  bind_signals(m);
  bind_trace(m);
  bind_end(m);
}
