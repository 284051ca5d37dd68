// LayerArray: q, k, v or out of attend() as Python hands them over, borrowed for one call and never copied. Taken are
// float32, C-contiguous
//   NumPy arrays                                    host memory
//   whatever has __dlpack__                         torch, CuPy, JAX tensors and ONNX Runtime's OrtValue, on CPU or CUDA
//   whatever has __cuda_array_interface__           Numba, and older CuPy
// Anything else is refused with its name, its shape and what was expected.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

namespace mosaic::bindings {

class LayerArray {
 public:
  // [tokens, heads, head_dim]. gpu: the memory has one, so arrays may lie there. writable: out. Throws InvalidInput.
  LayerArray(const char* name, const pybind11::object& given, pybind11::ssize_t tokens, pybind11::ssize_t heads,
             pybind11::ssize_t head_dim, bool gpu, bool writable);
  float* data() const { return data_; }

 private:
  float* data_ = nullptr;
  pybind11::object held_;  // what keeps the memory: an array, or a DLPack capsule
};

}  // namespace mosaic::bindings
