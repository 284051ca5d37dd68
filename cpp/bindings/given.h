// What Python gave, as what was asked for. Anything else - another type, a number that does not fit - is an error that names
// it: a ValueError of one line, never pybind11's "Unable to cast".
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "core/error.h"

namespace mosaic::bindings {

// repr(given) on one line, cut short.
std::string text_of(const pybind11::handle& given);

// name: as the error calls it, "model: layers".
template <class T>
T value_of(const pybind11::handle& given, const std::string& name) {
  try {
    return given.cast<T>();
  } catch (const pybind11::cast_error&) {
  } catch (pybind11::error_already_set& error) {  // NumPy's; what an object of its own class raises goes through
    if (!error.matches(PyExc_OverflowError) && !error.matches(PyExc_TypeError) && !error.matches(PyExc_ValueError))
      throw;
  }
  throw InvalidInput(name + "=" + text_of(given) + ": of a type, or a size, that cannot be used here.");
}

}  // namespace mosaic::bindings
