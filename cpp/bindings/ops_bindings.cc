// The CPU kernels on NumPy arrays, for the float64 oracle and the benches: mosaic_edge._core.ops. Kernels trust their
// caller, so every shape is checked here.
#include "backend/ops.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>

#include "backend/cpu/cpu_ops.h"
#include "bindings/gil.h"
#include "bindings/given.h"
#include "bindings/ops_kernels.h"
#include "core/error.h"

namespace py = pybind11;
using namespace mosaic;

namespace mosaic::bindings {

void need(bool fits, const std::string& what) {
  if (!fits) throw InvalidInput(what);
}

namespace {

void check_pair(const Floats& k, const Floats& v, int ndim, const char* expected) {
  need(k.ndim() == ndim && v.ndim() == ndim, std::string("k and v: expected ") + expected);
  for (int i = 0; i < ndim; ++i) need(k.shape(i) == v.shape(i), "k and v have different shapes");
}

// What record codecs take off the keys, or null. [heads, head_dim]
Floats mean_of(const py::object& key_mean, PageShape shape) {
  if (key_mean.is_none()) return {};
  const Floats mean = value_of<Floats>(key_mean, "key_mean");
  need(mean.size() == shape.row(), "key_mean: expected [heads, head_dim]");
  return mean;
}
const float* data_of(const Floats& mean) { return mean.size() > 0 ? mean.data() : nullptr; }

py::bytes encode(Kernels& self, const std::string& codec, const Floats& k, const Floats& v, const py::object& meta,
                 const py::object& key_mean) {
  const OneCaller::Turn turn(self.caller);
  check_pair(k, v, 3, "[tokens, heads, head_dim]");
  const int count = size_of(k, 0);
  need(count <= kPageTokens, "a page holds 16 tokens, got " + std::to_string(count));
  const PageShape shape{size_of(k, 1), size_of(k, 2)};
  need(shape.heads > 0 && shape.head_dim > 0, "heads and head_dim must be positive");
  const CodecId id = codec_from_name(codec.c_str());
  std::vector<std::byte> page(page_bytes(id, shape));
  if (!meta.is_none()) {
    const auto rows = value_of<Ints>(meta, "meta");  // [tokens, 4] position, time_ms, h, w
    need(rows.ndim() == 2 && rows.shape(0) == count && rows.shape(1) == 4, "meta: expected [tokens, 4]");
    for (int i = 0; i < count; ++i) {
      whole_page(page.data()).meta[i] = {rows.at(i, 0), rows.at(i, 1), static_cast<uint16_t>(rows.at(i, 2)),
                                         static_cast<uint16_t>(rows.at(i, 3))};
    }
  }
  const Floats mean = mean_of(key_mean, shape);
  self.ops->encode(id, shape, k.data(), v.data(), static_cast<size_t>(shape.row()), count, whole_page(page.data()).data,
                   data_of(mean));
  return py::bytes(reinterpret_cast<const char*>(page.data()), page.size());
}

py::tuple decode(Kernels& self, const std::string& codec, const std::string& page, int heads, int head_dim, int begin,
                 int end, const py::object& key_mean) {
  const OneCaller::Turn turn(self.caller);
  const CodecId id = codec_from_name(codec.c_str());
  const PageShape shape{heads, head_dim};
  need(heads > 0 && head_dim > 0 && page.size() == page_bytes(id, shape), "page: wrong number of bytes");
  need(0 <= begin && begin <= end && end <= kPageTokens, "expected 0 <= begin <= end <= 16");
  Floats k({end - begin, heads, head_dim}), v({end - begin, heads, head_dim});
  const Floats mean = mean_of(key_mean, shape);
  self.ops->decode(id, shape, reinterpret_cast<const std::byte*>(page.data()) + kPageMetaBytes, begin, end,
                   k.mutable_data(), v.mutable_data(), static_cast<size_t>(shape.row()), data_of(mean));
  return py::make_tuple(k, v);
}

py::tuple assign(Kernels& self, const Floats& k, const py::object& v, const py::object& mean_k,
                 const py::object& mean_v, const py::object& rows, float value_weight) {
  const OneCaller::Turn turn(self.caller);
  need(k.ndim() == 2, "k: expected [items, dim]");
  const Halves ck(mean_k, "mean_k");
  need(ck.array.ndim() == 2 && ck.array.shape(1) == k.shape(1), "mean_k: expected [rows, dim]");
  AssignArgs a;
  a.k = k.data();
  a.items = size_of(k, 0);
  a.dim = size_of(k, 1);
  a.stride = static_cast<size_t>(a.dim);
  a.mean_k = ck.data();
  a.value_weight = value_weight;
  Floats values;
  Halves cv;
  if (value_weight != 0) {
    values = value_of<Floats>(v, "v");
    cv = Halves(mean_v, "mean_v");
    check_pair(k, values, 2, "[items, dim]");
    need(cv.array.ndim() == 2 && cv.array.shape(0) == ck.array.shape(0) && cv.array.shape(1) == k.shape(1),
         "mean_v: expected the shape of mean_k");
    a.v = values.data();
    a.mean_v = cv.data();
  }
  const Ints listed = row_list(rows, size_of(ck.array, 0), &a.rows, &a.n_rows);
  py::array_t<int32_t> best(a.items);
  Floats similarity(a.items);
  a.best = best.mutable_data();
  a.similarity = similarity.mutable_data();
  self.prepare({.tokens = a.items, .q_heads = 1, .shape = {1, a.dim}, .rows = a.n_rows});
  {
    const WithoutGil released;
    self.ops->assign(a);
  }
  return py::make_tuple(best, similarity);
}

py::tuple update(Kernels& self, const Floats& k, const Floats& v, const Ints& labels, const py::object& mean_k,
                 const py::object& mean_v, const Ints& count, const Floats& variance, float value_weight) {
  const OneCaller::Turn turn(self.caller);
  check_pair(k, v, 2, "[items, dim]");
  Halves ck(mean_k, "mean_k", true), cv(mean_v, "mean_v", true);
  Ints counts(count.size(), count.data());
  Floats variances(variance.size(), variance.data());
  need(ck.array.ndim() == 2 && ck.array.shape(1) == k.shape(1) && cv.array.size() == ck.array.size() &&
           counts.size() == ck.array.shape(0) && variances.size() == ck.array.shape(0),
       "expected mean_k, mean_v [rows, dim], count and variance [rows]");
  need(labels.size() == k.shape(0), "labels: expected one per item");
  for (py::ssize_t i = 0; i < labels.size(); ++i) {
    need(labels.at(i) >= kNone && labels.at(i) < ck.array.shape(0), "labels: no such row");
  }
  UpdateArgs u;
  u.k = k.data();
  u.v = v.data();
  u.items = size_of(k, 0);
  u.dim = size_of(k, 1);
  u.stride = static_cast<size_t>(u.dim);
  u.labels = labels.data();
  u.mean_k = ck.mutable_data();
  u.mean_v = cv.mutable_data();
  u.count = counts.mutable_data();
  u.variance = variances.mutable_data();
  u.value_weight = value_weight;
  self.prepare({.tokens = u.items, .q_heads = 1, .shape = {1, u.dim}, .rows = 1});
  self.ops->update_centroids(u);
  return py::make_tuple(ck.array, cv.array, counts, variances);
}

Floats score(Kernels& self, const std::string& mode, const Floats& q, const py::object& mean_k, const py::object& rows,
             const py::object& row_bias, float scale) {
  const OneCaller::Turn turn(self.caller);
  need(mode == "dot" || mode == "mass", "mode: expected \"dot\" or \"mass\", got \"" + mode + "\"");
  need(q.ndim() == 3, "q: expected [tokens, q_heads, head_dim]");
  const Halves ck(mean_k, "mean_k");
  need(ck.array.ndim() == 3 && ck.array.shape(1) > 0 && ck.array.shape(2) == q.shape(2) &&
           q.shape(1) % ck.array.shape(1) == 0,
       "mean_k: expected [rows, kv_heads, head_dim], and kv_heads to divide q_heads");
  ScoreArgs a;
  a.q = q.data();
  a.tokens = size_of(q, 0);
  a.q_heads = size_of(q, 1);
  a.q_stride = static_cast<size_t>(q.shape(1) * q.shape(2));
  a.shape = {size_of(ck.array, 1), size_of(q, 2)};
  a.scale = scale;
  a.mode = mode == "dot" ? ScoreMode::kDot : ScoreMode::kMass;
  a.mean_k = ck.data();
  const Ints listed = row_list(rows, size_of(ck.array, 0), &a.rows, &a.n_rows);
  Floats bias;
  if (!row_bias.is_none()) {
    bias = value_of<Floats>(row_bias, "row_bias");
    need(bias.size() == a.n_rows, "row_bias: expected one per row");
    a.row_bias = bias.data();
  }
  Floats out(a.n_rows);
  a.score = out.mutable_data();
  self.prepare({.tokens = a.tokens, .q_heads = a.q_heads, .shape = a.shape, .rows = a.n_rows});
  {
    const WithoutGil released;
    self.ops->score(a);
    self.ops->wait();
  }
  return out;
}

py::array_t<int32_t> top_k(Kernels& self, const Floats& score, int k) {
  const OneCaller::Turn turn(self.caller);
  need(score.ndim() == 1 && k >= 0, "expected scores [n] and k >= 0");
  const int n = size_of(score, 0), kept = std::min(k, n);
  py::array_t<int32_t> index(kept);
  self.ops->top_k(score.data(), n, k, index.mutable_data());
  return index;
}

py::tuple merge(Kernels& self, const Floats& out, const Floats& lse, const Floats& other_out, const Floats& other_lse) {
  const OneCaller::Turn turn(self.caller);
  need(out.ndim() == 2 && lse.ndim() == 1 && lse.shape(0) == out.shape(0), "expected out [rows, head_dim], lse [rows]");
  check_pair(out, other_out, 2, "[rows, head_dim]");
  check_pair(lse, other_lse, 1, "[rows]");
  Floats to({out.shape(0), out.shape(1)}, out.data()), to_lse(lse.shape(0), lse.data());
  const int rows = size_of(out, 0), dim = size_of(out, 1);
  self.ops->merge({to.mutable_data(), to_lse.mutable_data(), rows, 1, dim, static_cast<size_t>(dim), other_out.data(),
                   other_lse.data()});
  self.ops->wait();
  return py::make_tuple(to, to_lse);
}

}  // namespace

Ints row_list(const py::object& rows, int table, const int32_t** data, int* count) {
  *data = nullptr;
  *count = table;
  if (rows.is_none()) return {};
  Ints list = value_of<Ints>(rows, "rows");
  need(list.ndim() == 1, "rows: expected [n]");
  for (py::ssize_t i = 0; i < list.size(); ++i) need(list.at(i) >= 0 && list.at(i) < table, "rows: no such row");
  *data = list.data();
  *count = static_cast<int>(list.size());
  return list;
}

}  // namespace mosaic::bindings

void bind_attend(py::module_& m,
                 py::class_<mosaic::bindings::Kernels, std::shared_ptr<mosaic::bindings::Kernels>>& kernels);

void bind_ops(py::module_& core) {
  using namespace mosaic::bindings;
  py::module_ m = core.def_submodule("ops", "The CPU kernels on arrays, for tests and benches.");
  m.def("implementations", &cpu::implementations, "Names this machine can run, slowest first.");
  auto kernels = py::class_<Kernels, std::shared_ptr<Kernels>>(m, "Kernels",
                                                               "One implementation of every kernel, with its scratch.");
  kernels
      .def(py::init<const std::string&, int>(), py::arg("implementation") = "", py::arg("threads") = 0,
           "implementation: one of implementations(), or empty for the fastest; threads: 0 for one per core.")
      .def_property_readonly("name", [](const Kernels& self) { return std::string(self.ops->name()); })
      .def("encode", &encode, py::arg("codec"), py::arg("k"), py::arg("v"), py::arg("meta") = py::none(),
           py::arg("key_mean") = py::none())
      .def("decode", &decode, py::arg("codec"), py::arg("page"), py::arg("heads"), py::arg("head_dim"),
           py::arg("begin") = 0, py::arg("end") = kPageTokens, py::arg("key_mean") = py::none())
      .def("assign", &assign, py::arg("k"), py::arg("v") = py::none(), py::arg("mean_k"),
           py::arg("mean_v") = py::none(), py::arg("rows") = py::none(), py::arg("value_weight") = 0.0f)
      .def("update_centroids", &update, py::arg("k"), py::arg("v"), py::arg("labels"), py::arg("mean_k"),
           py::arg("mean_v"), py::arg("count"), py::arg("variance"), py::arg("value_weight") = 0.0f)
      .def("score", &score, py::arg("mode"), py::arg("q"), py::arg("mean_k"), py::arg("rows") = py::none(),
           py::arg("row_bias") = py::none(), py::arg("scale") = 1.0f)
      .def("top_k", &top_k, py::arg("score"), py::arg("k"))
      .def("merge", &merge, py::arg("out"), py::arg("lse"), py::arg("other_out"), py::arg("other_lse"));
  bind_attend(m, kernels);
}
