// The signals of mosaic_edge._core.ops.Kernels: temporal redundancy, row norm, high-frequency energy. Rows may be strided.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "bindings/gil.h"
#include "bindings/given.h"
#include "bindings/ops_kernels.h"

namespace py = pybind11;
using namespace mosaic;

namespace mosaic::bindings {

namespace {

// float32 [items, dim] whose rows are contiguous and may stand apart; anything else is copied.
struct Rows {
  py::array_t<float> array;
  int items, dim;
  size_t stride;
  Rows(const py::object& x, const char* name) {
    array = value_of<py::array_t<float, py::array::forcecast>>(x, name);
    need(array.ndim() == 2, std::string(name) + ": expected [items, dim]");
    const auto one = static_cast<py::ssize_t>(sizeof(float));
    const bool is_borrowed = array.shape(1) > 0 && array.strides(1) == one &&
                             array.strides(0) >= array.shape(1) * one && array.strides(0) % one == 0;
    if (!is_borrowed) array = Floats(array);
    items = size_of(array, 0);
    dim = size_of(array, 1);
    stride = is_borrowed ? static_cast<size_t>(array.strides(0) / one) : static_cast<size_t>(dim);
    need(dim > 0, std::string(name) + ": rows must not be empty");
  }
};

void check_places(const Ints& place, int items, int places) {
  need(place.ndim() == 1 && place.shape(0) == items, "place: expected one per item");
  for (int i = 0; i < items; ++i)
    need(place.at(i) >= 0 && place.at(i) < places,
         "place: " + std::to_string(place.at(i)) + " of " + std::to_string(places));
}

py::tuple add_recent_keys(Kernels& self, const py::object& k, const Ints& place, const Floats& sum, const Ints& count) {
  const OneCaller::Turn turn(self.caller);
  const Rows rows(k, "k");
  need(sum.ndim() == 2 && sum.shape(1) == rows.dim && count.ndim() == 1 && count.shape(0) == sum.shape(0),
       "expected sum [places, dim] and count [places]");
  check_places(place, rows.items, size_of(sum, 0));
  Floats sums({sum.shape(0), sum.shape(1)}, sum.data());
  Ints counts(count.size(), count.data());
  const RecentKeysArgs args{rows.array.data(), place.data(),        rows.items,           rows.dim,
                            rows.stride,       sums.mutable_data(), counts.mutable_data()};
  {
    const WithoutGil released;
    self.ops->add_recent_keys(args);
    self.ops->wait();
  }
  return py::make_tuple(sums, counts);
}

Floats temporal_redundancy(Kernels& self, const py::object& k, const Ints& place, const Floats& sum,
                           const Ints& count) {
  const OneCaller::Turn turn(self.caller);
  const Rows rows(k, "k");
  need(sum.ndim() == 2 && sum.shape(1) == rows.dim && count.ndim() == 1 && count.shape(0) == sum.shape(0),
       "expected sum [places, dim] and count [places]");
  check_places(place, rows.items, size_of(sum, 0));
  Floats score(rows.items);
  const RedundancyArgs args{rows.array.data(), place.data(), rows.items,   rows.dim,
                            rows.stride,       sum.data(),   count.data(), score.mutable_data()};
  const WithoutGil released;
  self.ops->temporal_redundancy(args);
  self.ops->wait();
  return score;
}

Floats row_norm(Kernels& self, const py::object& x) {
  const OneCaller::Turn turn(self.caller);
  const Rows rows(x, "x");
  Floats norm(rows.items);
  const NormArgs args{rows.array.data(), rows.items, rows.dim, rows.stride, norm.mutable_data()};
  const WithoutGil released;
  self.ops->row_norm(args);
  self.ops->wait();
  return norm;
}

Floats spectral_energy(Kernels& self, const py::object& x) {
  const OneCaller::Turn turn(self.caller);
  const Rows rows(x, "x");
  Floats energy(rows.items);
  const SpectralArgs args{rows.array.data(), rows.items, rows.dim, rows.stride, energy.mutable_data()};
  const WithoutGil released;
  self.ops->spectral_energy(args);
  return energy;
}

}  // namespace

}  // namespace mosaic::bindings

void bind_signals(py::module_& core) {
  using namespace mosaic::bindings;
  auto kernels = core.attr("ops").attr("Kernels").cast<py::class_<Kernels, std::shared_ptr<Kernels>>>();
  kernels
      .def("add_recent_keys", &add_recent_keys, py::arg("k"), py::arg("place"), py::arg("sum"), py::arg("count"),
           "sum [places, dim] and count [places] with the unit keys k [items, dim] of these places added.")
      .def("temporal_redundancy", &temporal_redundancy, py::arg("k"), py::arg("place"), py::arg("sum"),
           py::arg("count"), "Minus the mean cosine with the recent keys of the same place, [items]; 0 without any.")
      .def("row_norm", &row_norm, py::arg("x"), "Euclidean norms of x [items, dim].")
      .def("spectral_energy", &spectral_energy, py::arg("x"),
           "Mean magnitude over channels of x [tokens, dim] without its lower frequencies along the tokens.");
}
