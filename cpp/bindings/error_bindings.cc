// The core's errors as Python exceptions. InvalidInput is a ValueError, MemoryCapError a MemoryError, so callers that
// know nothing of this library still catch the right kind.
#include <pybind11/pybind11.h>

#include "core/error.h"

namespace py = pybind11;

void bind_errors(py::module_& m) {
  // What no binding named.
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const py::cast_error&) {
      PyErr_SetString(PyExc_TypeError, "an argument, or a part of one, is of a type or size that cannot be used here");
    }
  });
  py::register_exception<mosaic::InvariantError>(m, "InvariantError", PyExc_AssertionError);
  const auto device = py::register_exception<mosaic::DeviceError>(m, "DeviceError", PyExc_RuntimeError);
  py::register_exception<mosaic::NoThreadError>(m, "NoThreadError", device);  // the last one is asked first
  py::register_exception<mosaic::NoMemoryError>(m, "NoMemoryError", device);
  static const py::handle spill = py::exception<mosaic::SpillError>(m, "SpillError", PyExc_OSError).release();
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const mosaic::SpillError& error) {
      const py::object made = spill(error.what());
      if (error.code != 0) made.attr("errno") = error.code;
      PyErr_SetObject(spill.ptr(), made.ptr());
    }
  });
  py::register_exception<mosaic::MemoryCapError>(m, "MemoryCapError", PyExc_MemoryError);
  py::register_exception<mosaic::InvalidInput>(m, "InvalidInput", PyExc_ValueError);
}
