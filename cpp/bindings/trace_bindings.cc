// The trace for Python: start, stop, and the spans that only Python sees. See cpp/core/trace.h.
#include <pybind11/pybind11.h>

#include <string>

#include "core/error.h"
#include "core/trace.h"

namespace py = pybind11;
using namespace mosaic;

namespace {

// A span keeps the pointer to its name, so names live here.
constexpr const char* kNames[] = {"encode_frame", "forward"};

void add_span(const std::string& name, uint64_t begin_ns, uint64_t end_ns) {
  for (const char* known : kNames) {
    if (name == known) return trace::add(known, begin_ns, end_ns);
  }
  throw InvalidInput("trace: no span is called \"" + name + "\"; there are encode_frame, forward.");
}

}  // namespace

void bind_trace(py::module_& m) {
  m.def("trace_start", &trace::start, "Take the rings and record spans of this process; one trace at a time.");
  m.def("trace_stop", &trace::stop, "End the trace: Chrome's JSON, or an empty string when none runs.");
  m.def("trace_span", &add_span, py::arg("name"), py::arg("begin_ns"), py::arg("end_ns"),
        "A span that is over, in time.monotonic_ns(). encode_frame or forward; lost when no trace runs.");
}
