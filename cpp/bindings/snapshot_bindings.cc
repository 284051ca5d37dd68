// Snapshots for Python: a writer and a reader over a file descriptor, which what Python keeps of a session goes through as well,
// a section at a time. The GIL is released while bytes move: the other end of a pipe may be a thread of Python's.
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>

#include "bindings/gil.h"
#include "core/error.h"
#include "memory/crc32c.h"
#include "memory/snapshot.h"

namespace py = pybind11;
using namespace mosaic;

namespace {

struct Tag {
  char text[5] = {};
  explicit Tag(const std::string& name) {
    if (name.size() != 4) throw InvalidInput("snapshot: a section's tag has four letters, got '" + name + "'.");
    name.copy(text, 4);
  }
};

void add(SnapshotWriter& self, const std::string& tag, const py::buffer& data) {
  const py::buffer_info info = data.request();
  if (!PyBuffer_IsContiguous(info.view(), 'C')) throw InvalidInput("snapshot: section " + tag + " is not contiguous.");
  auto n = static_cast<uint64_t>(info.size) * static_cast<uint64_t>(info.itemsize);
  const bindings::WithoutGil released;
  self.section(Tag(tag).text);
  self.item(n);
  self.bytes(info.ptr, static_cast<size_t>(n));
}

// Grown as it comes: a length that the file does not have allocates nothing.
py::bytes take(SnapshotReader& self, const std::string& tag, uint64_t most) {
  std::string data;
  {
    const bindings::WithoutGil released;
    self.section(Tag(tag).text);
    uint64_t n = 0;
    self.in_range(n, 0, most, "its length");
    for (uint64_t at = 0; at < n; at += Snapshot::kPartBytes) {
      const auto step = static_cast<size_t>(std::min<uint64_t>(Snapshot::kPartBytes, n - at));
      data.resize(static_cast<size_t>(at) + step);
      self.bytes(data.data() + at, step);
    }
  }
  return py::bytes(data);
}

}  // namespace

void bind_snapshot(py::module_& m) {
  m.attr("SNAPSHOT_FORMAT") = Snapshot::kFormat;
  m.def(
      "crc32c",
      [](const py::bytes& data) {
        const std::string_view all = data;
        return crc32c(all.data(), all.size());
      },
      py::arg("data"), "The checksum of a snapshot's parts: for tools that make a changed file look whole.");
  py::class_<SnapshotWriter>(m, "SnapshotWriter", "Writes a snapshot to a file descriptor. See cpp/memory/snapshot.h.")
      .def(py::init<int>(), py::arg("fd"), py::call_guard<bindings::WithoutGil>())
      .def("add", &add, py::arg("tag"), py::arg("data"), "A section of its own, of bytes or a contiguous array.")
      .def(
          "finish", [](SnapshotWriter& self) { self.finish(); }, py::call_guard<bindings::WithoutGil>(),
          "The end; nothing is written after it.");
  py::class_<SnapshotReader>(m, "SnapshotReader", "Reads a snapshot from a file descriptor.")
      .def(py::init<int>(), py::arg("fd"), py::call_guard<bindings::WithoutGil>())
      .def("take", &take, py::arg("tag"), py::arg("most"), "The bytes of the next section, which add() wrote.")
      .def(
          "finish", [](SnapshotReader& self) { self.finish(); }, py::call_guard<bindings::WithoutGil>(),
          "Nothing may stand behind the end.");
}
