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

// The trace that runs, as an object: it ends with it, whatever interrupts Python's code around it.
class TraceRecording {
 public:
  TraceRecording() { trace::start(); }
  TraceRecording(const TraceRecording&) = delete;
  TraceRecording& operator=(const TraceRecording&) = delete;
  ~TraceRecording() {
    if (runs_) trace::stop();
  }
  const std::string& stop() {
    if (runs_) text_ = trace::stop();
    runs_ = false;
    return text_;
  }

 private:
  bool runs_ = true;
  std::string text_;
};

}  // namespace

void bind_trace(py::module_& m) {
  py::class_<TraceRecording>(m, "TraceRecording")
      .def(py::init<>(), "Take the rings and record spans of this process, while it lives; one trace at a time.")
      .def(
          "stop", [](TraceRecording& recording) { return recording.stop(); },
          "End the trace: Chrome's JSON, the same every time.");
  m.def("trace_span", &add_span, py::arg("name"), py::arg("begin_ns"), py::arg("end_ns"),
        "A span that is over, in time.monotonic_ns(). encode_frame or forward; lost when no trace runs.");
}
