#include "bindings/layer_array.h"

#include <pybind11/stl.h>

#include <vector>

#include "bindings/dlpack.h"
#include "core/error.h"

namespace py = pybind11;

namespace mosaic::bindings {
namespace {

struct Seen {
  void* data = nullptr;
  bool is_float32 = false;
  bool contiguous = true;
  bool read_only = false;
  std::optional<void*> stream;
  std::optional<Device::Access> lies;
  std::vector<int64_t> shape;
  py::object held;
};

constexpr const char* kNoGpu = "on a GPU, this memory on the CPU; set backend=\"cuda\", or hand over host arrays.";

std::string text_of(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// strides in units of `unit` bytes per element; an axis of one element may have any.
template <class Strides>
bool is_contiguous(const std::vector<int64_t>& shape, const Strides& strides, int64_t unit) {
  int64_t expected = unit;
  for (size_t i = shape.size(); i-- > 0;) {
    if (shape[i] > 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

Seen see_numpy(const py::array& a) {
  Seen s;
  s.shape.assign(a.shape(), a.shape() + a.ndim());
  s.is_float32 = py::isinstance<py::array_t<float>>(a);
  s.contiguous = (a.flags() & py::array::c_style) != 0;
  s.read_only = !a.writeable();
  s.data = const_cast<void*>(a.data());
  s.held = a;
  return s;
}

// The capsule is not consumed: when it goes, its own destructor gives the memory back.
Seen see_dlpack(const py::object& given, bool gpu) {
  const auto device = py::cast<std::pair<int, int>>(given.attr("__dlpack_device__")());
  const bool cuda = device.first == dlpack::kCuda;
  if (!cuda && device.first != dlpack::kCpu && device.first != dlpack::kCudaHost)
    throw InvalidInput("an array of DLPack device type " + std::to_string(device.first) + "; there are CPU and CUDA.");
  if (cuda && !gpu) throw InvalidInput(kNoGpu);
  if (cuda && device.second != 0)
    throw InvalidInput("on GPU " + std::to_string(device.second) +
                       ", the memory on GPU 0; choose one GPU for the process by CUDA_VISIBLE_DEVICES.");
  Seen s;
  if (cuda) s.lies = Device::Access::kKernels;
  // -1: the producer orders nothing; the call's own stream= does.
  s.held = cuda ? given.attr("__dlpack__")(py::arg("stream") = -1) : given.attr("__dlpack__")();
  const auto* managed = static_cast<const dlpack::ManagedTensor*>(PyCapsule_GetPointer(s.held.ptr(), "dltensor"));
  if (managed == nullptr) throw py::error_already_set();
  const dlpack::Tensor& t = managed->tensor;
  s.shape.assign(t.shape, t.shape + t.ndim);
  s.is_float32 = t.dtype.code == dlpack::kFloat && t.dtype.bits == 32 && t.dtype.lanes == 1;
  s.contiguous = t.strides == nullptr || is_contiguous(s.shape, t.strides, 1);
  s.data = static_cast<std::byte*>(t.data) + t.byte_offset;
  return s;
}

Seen see_cuda_interface(const py::object& given, bool gpu) {
  if (!gpu) throw InvalidInput(kNoGpu);
  const auto d = py::cast<py::dict>(given.attr("__cuda_array_interface__"));
  Seen s;
  s.shape = py::cast<std::vector<int64_t>>(d["shape"]);
  s.is_float32 = py::cast<std::string>(d["typestr"]) == "<f4";
  if (d.contains("strides") && !d["strides"].is_none())
    s.contiguous = is_contiguous(s.shape, py::cast<std::vector<int64_t>>(d["strides"]), sizeof(float));
  const auto [pointer, read_only] = py::cast<std::pair<uintptr_t, bool>>(d["data"]);
  s.data = reinterpret_cast<void*>(pointer);
  s.read_only = read_only;
  if (d.contains("mask") && !d["mask"].is_none()) throw InvalidInput("masked; hand over one that is whole.");
  if (d.contains("stream") && !d["stream"].is_none()) {
    const auto stream = py::cast<uintptr_t>(d["stream"]);
    if (stream == 0)
      throw InvalidInput(
          "behind stream 0, which may mean two default streams; its producer must say 1 (legacy) or 2 "
          "(per thread).");
    s.stream = reinterpret_cast<void*>(stream);
  }
  s.held = given;
  return s;
}

Seen see(const py::object& given, bool gpu) {
  if (py::isinstance<py::array>(given)) return see_numpy(py::cast<py::array>(given));
  if (py::hasattr(given, "__dlpack__")) return see_dlpack(given, gpu);
  if (py::hasattr(given, "__cuda_array_interface__")) return see_cuda_interface(given, gpu);
  throw InvalidInput("a " + std::string(Py_TYPE(given.ptr())->tp_name) +
                     "; expected a NumPy array, or one with __dlpack__ or __cuda_array_interface__.");
}

// [T, H, D] as graphs have it: with a leading axis of one, heads and channels in one axis.
bool is_same_shape(std::vector<int64_t> shape, const std::vector<int64_t>& expected) {
  if (shape == expected) return true;
  if (shape.size() > 2 && shape[0] == 1) shape.erase(shape.begin());
  return shape == expected || shape == std::vector<int64_t>{expected[0], expected[1] * expected[2]};
}

}  // namespace

LayerArray::LayerArray(const char* name, const py::object& given, py::ssize_t tokens, py::ssize_t heads,
                       py::ssize_t head_dim, bool gpu, bool writable) {
  const std::string who = std::string("attend: ") + name;
  Seen s;
  try {
    s = see(given, gpu);
  } catch (const InvalidInput& e) {
    throw InvalidInput(who + " is " + e.what());
  }
  const std::vector<int64_t> expected = {tokens, heads, head_dim};
  if (!is_same_shape(s.shape, expected))
    throw InvalidInput(who + " has shape " + text_of(s.shape) + ", expected " + text_of(expected) + ".");
  if (!s.is_float32) throw InvalidInput(who + " is not float32; convert it once, before the call.");
  if (!s.contiguous) throw InvalidInput(who + " is not C-contiguous; make it so once, before the call.");
  if (writable && s.read_only) throw InvalidInput(who + " cannot be written.");
  data_ = static_cast<float*>(s.data);
  stream_ = s.stream;
  lies_ = s.lies;
  held_ = std::move(s.held);
}

}  // namespace mosaic::bindings
