// Memory of the core as a NumPy array: without a copy, when it keeps `owner` alive and cannot be written; or with one.
#pragma once

#include <pybind11/numpy.h>

#include <vector>

namespace mosaic::bindings {

// half_t is a plain 16-bit integer to the compiler, so float16 has to be said.
template <class T>
pybind11::array view_of(const pybind11::handle& owner, const T* data, std::vector<pybind11::ssize_t> shape,
                        std::vector<pybind11::ssize_t> strides = {},
                        const pybind11::dtype& dtype = pybind11::dtype::of<T>()) {
  pybind11::array out(dtype, std::move(shape), std::move(strides), data, owner);
  pybind11::detail::array_proxy(out.ptr())->flags &= ~pybind11::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return out;
}

// The same numbers in memory of their own, for arrays that may outlive the call they are made for. Not to be written
// either: nothing would come of it.
template <class T>
pybind11::array copy_of(const T* data, std::vector<pybind11::ssize_t> shape,
                        std::vector<pybind11::ssize_t> strides = {}) {
  return view_of(pybind11::handle(), data, std::move(shape), std::move(strides));
}

}  // namespace mosaic::bindings
