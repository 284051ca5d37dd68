// What the two files of kernel bindings share: an implementation with scratch, and arrays checked before use.
#pragma once

#include <pybind11/numpy.h>

#include <memory>
#include <string>
#include <vector>

#include "backend/cpu/cpu_ops.h"
#include "backend/ops.h"
#include "core/one_caller.h"

namespace mosaic::bindings {

namespace py = pybind11;
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Ints = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;

// Throws InvalidInput, in Python a ValueError.
void need(bool fits, const std::string& what);

inline int size_of(const py::array& a, int axis) { return static_cast<int>(a.shape(axis)); }

// float16 as NumPy has it and the core's half_t. Not copied when it is float16 already, unless a copy is asked for.
struct Halves {
  py::array array;
  Halves() = default;
  Halves(const py::object& x, const char* name, bool copy = false) {
    need(!x.is_none(), std::string(name) + " is missing");
    const py::module_ numpy = py::module_::import("numpy");
    array = numpy.attr(copy ? "array" : "ascontiguousarray")(x, "float16").cast<py::array>();
  }
  const half_t* data() const { return static_cast<const half_t*>(array.data()); }
  half_t* mutable_data() { return static_cast<half_t*>(array.mutable_data()); }
};

// 64-byte aligned bytes.
struct Aligned {
  std::vector<std::byte> memory;
  std::byte* data = nullptr;
  void resize(size_t bytes) {
    memory.resize(bytes + 64);
    data = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  }
};

struct Kernels {
  OneCaller caller{"Kernels"};  // scratch and worker threads are one call's
  std::unique_ptr<Ops> ops;
  Aligned scratch;
  Kernels(const std::string& implementation, int threads)
      : ops(cpu::make_ops(implementation.empty() ? cpu::implementations().back() : implementation, threads)) {}
  // Scratch for a call of these sizes.
  void prepare(const Ops::Limits& limits) {
    const size_t bytes = ops->scratch_bytes(limits);
    if (bytes + 64 > scratch.memory.size()) scratch.resize(bytes);
    ops->set_scratch(scratch.data, limits);
  }
};

// rows: None for all of a table, else a list into it.
Ints row_list(const py::object& rows, int table, const int32_t** data, int* count);

}  // namespace mosaic::bindings
