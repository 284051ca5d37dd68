// LayerArray: q, k, v or out of attend() as Python hands them over, borrowed for one call and never copied. Taken are
// float32, C-contiguous
//   NumPy arrays                                    host memory
//   whatever has __dlpack__                         torch, CuPy, JAX tensors and ONNX Runtime's OrtValue, on CPU or CUDA
//   whatever has __cuda_array_interface__           Numba, and older CuPy
// Anything else, DLPack's managed memory too, is refused with its name, its shape and what was expected. What lies in host
// memory, pinned or not, must be written when it is handed over; what lies on a GPU is put in order by attend()'s stream,
// and behind the stream that a __cuda_array_interface__ names. That interface says neither which GPU it means nor whether
// memory is managed: the device looks (Device::access), refuses another GPU's, and lets no host touch what is managed.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "backend/device.h"

namespace mosaic::bindings {

class LayerArray {
 public:
  // [tokens, heads, head_dim]. gpu: the memory has one, so arrays may lie there. writable: out. Throws InvalidInput.
  LayerArray(const char* name, const pybind11::object& given, pybind11::ssize_t tokens, pybind11::ssize_t heads,
             pybind11::ssize_t head_dim, bool gpu, bool writable);
  float* data() const { return data_; }
  // The producer's stream that the array is only complete behind; 1 and 2 are CUDA's names of its default ones.
  std::optional<void*> stream() const { return stream_; }
  // Where DLPack says that it lies.
  std::optional<Device::Access> lies() const { return lies_; }

 private:
  float* data_ = nullptr;
  std::optional<void*> stream_;
  std::optional<Device::Access> lies_;
  pybind11::object held_;  // what keeps the memory: an array, or a DLPack capsule
};

}  // namespace mosaic::bindings
