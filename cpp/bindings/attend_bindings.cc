// attend on NumPy arrays: a call object holds everything AttendArgs points at, so that a bench can run it many times.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>

#include "bindings/gil.h"
#include "bindings/given.h"
#include "bindings/ops_kernels.h"
#include "core/error.h"

namespace py = pybind11;
using namespace mosaic;
using namespace mosaic::bindings;

namespace {

using Page = std::tuple<std::string, std::string, int, int>;  // codec, bytes, begin, end

RopeSpec rope_spec(const py::dict& d, int head_dim) {
  RopeSpec spec{.head_dim = head_dim, .rotary_dim = head_dim};
  for (const auto& item : d) {
    const std::string key = value_of<std::string>(item.first, "rope: a key");
    if (key == "theta") {
      spec.theta = value_of<float>(item.second, "rope: " + key);
    } else if (key == "rotary_dim") {
      spec.rotary_dim = value_of<int>(item.second, "rope: " + key);
    } else if (key == "layout") {
      const std::string layout = value_of<std::string>(item.second, "rope: " + key);
      need(layout == "half" || layout == "interleaved", "rope layout: expected \"half\" or \"interleaved\"");
      spec.layout = layout == "half" ? RopeLayout::kHalf : RopeLayout::kInterleaved;
    } else if (key == "sections") {
      const auto sections = value_of<std::vector<int>>(item.second, "rope: " + key);
      need(sections.size() == 3, "rope sections: expected (t, h, w)");
      std::copy(sections.begin(), sections.end(), spec.sections);
    } else if (key == "sections_interleaved") {
      spec.sections_interleaved = value_of<bool>(item.second, "rope: " + key);
    } else if (key == "grid_follows_time") {
      spec.grid_follows_time = value_of<bool>(item.second, "rope: " + key);
    } else {
      throw InvalidInput("rope: unknown key \"" + key + "\"");
    }
  }
  need(spec.rotary_dim > 0 && spec.rotary_dim <= head_dim && spec.rotary_dim % 2 == 0,
       "rope rotary_dim: expected an even number up to head_dim");
  const int sum = spec.sections[0] + spec.sections[1] + spec.sections[2];
  need(!spec.is_multi() || sum == spec.rotary_dim / 2, "rope sections: expected the sum rotary_dim / 2");
  return spec;
}

// Everything AttendArgs points at.
struct AttendCall {
  std::shared_ptr<Kernels> kernels;
  AttendArgs args;
  Floats q, block_k, block_v, row_bias, key_mean, out, lse;
  Ints q_positions, positions, rows, row_positions;
  Halves mean_k, mean_v;
  Aligned pages_memory;
  std::vector<PageEntry> pages;
  std::vector<uint16_t> places;  // of every page token
  Aligned rope_memory;
  RopeTable rope;
  int position_end = 1;  // one past the largest position seen

  AttendCall(std::shared_ptr<Kernels> k, const Floats& queries, const Ints& at, int kv_heads, float scale)
      : kernels(std::move(k)), q(queries), q_positions(at) {
    need(q.ndim() == 3, "q: expected [tokens, q_heads, head_dim]");
    need(kv_heads > 0 && q.shape(1) > 0 && q.shape(2) > 0 && q.shape(1) % kv_heads == 0,
         "kv_heads must divide q_heads");
    args.tokens = size_of(q, 0);
    args.q_heads = size_of(q, 1);
    args.shape = {kv_heads, size_of(q, 2)};
    args.q_stride = static_cast<size_t>(args.q_heads * args.shape.head_dim);
    args.scale = scale;
    check_positions(q_positions, args.tokens, 3, "q_positions");
    out = Floats({q.shape(0), q.shape(1), q.shape(2)});
    lse = Floats({q.shape(0), q.shape(1)});
    args.q = q.data();
    args.q_positions = q_positions.data();
    args.out = out.mutable_data();
    args.lse = lse.mutable_data();
  }

  void check_positions(const Ints& p, int rows_expected, int columns, const char* name) {
    need(p.ndim() == (columns == 1 ? 1 : 2) && p.shape(0) == rows_expected && (columns == 1 || p.shape(1) == columns),
         std::string(name) + ": expected [" + std::to_string(rows_expected) + (columns == 1 ? "]" : ", 3]"));
    for (py::ssize_t i = 0; i < p.size(); ++i) {
      need(p.data()[i] >= 0, std::string(name) + ": negative position");
      position_end = std::max(position_end, p.data()[i] + 1);
    }
  }

  void set_pages(const std::vector<Page>& list, const Ints& at) {
    size_t bytes = 0;
    int tokens = 0;
    for (const auto& [codec, data, begin, end] : list) {
      need(data.size() == page_bytes(codec_from_name(codec.c_str()), args.shape), "page: wrong number of bytes");
      need(0 <= begin && begin <= end && end <= kPageTokens, "page: expected 0 <= begin <= end <= 16");
      bytes += data.size();
      tokens += end - begin;
    }
    positions = at;
    check_positions(positions, tokens, 1, "positions");
    pages_memory.resize(bytes);
    std::byte* to = pages_memory.data;
    int first = 0;
    for (const auto& [codec, data, begin, end] : list) {
      std::memcpy(to, data.data(), data.size());
      const PageView view = whole_page(to);
      for (int i = begin; i < end; ++i) {
        places.push_back(view.meta[i].h);
        places.push_back(view.meta[i].w);
      }
      pages.push_back({view.data, first, rows_of(begin, end), codec_from_name(codec.c_str())});
      to += data.size();
      first += end - begin;
    }
    args.pages = pages.data();
    args.n_pages = static_cast<int>(pages.size());
    args.positions = positions.data();
    args.places = places.data();
  }

  void set_summaries(const py::object& k, const py::object& v, const py::object& which, const py::object& at,
                     const py::object& bias) {
    mean_k = Halves(k, "mean_k");
    mean_v = Halves(v, "mean_v");
    for (const Halves* mean : {&mean_k, &mean_v}) {
      need(mean->array.ndim() == 3 && mean->array.shape(0) == mean_k.array.shape(0) &&
               mean->array.shape(1) == args.shape.heads && mean->array.shape(2) == args.shape.head_dim,
           "mean_k, mean_v: expected [rows, kv_heads, head_dim]");
    }
    rows = row_list(which, size_of(mean_k.array, 0), &args.rows, &args.n_rows);
    need(args.rows != nullptr || args.n_rows == 0, "rows is missing");
    row_positions = value_of<Ints>(at, "row_positions");
    row_bias = value_of<Floats>(bias, "row_bias");
    check_positions(row_positions, args.n_rows, 3, "row_positions");
    need(row_bias.ndim() == 1 && row_bias.shape(0) == args.n_rows, "row_bias: expected one per row");
    args.mean_k = mean_k.data();
    args.mean_v = mean_v.data();
    args.row_positions = row_positions.data();
    args.row_bias = row_bias.data();
  }

  void set_block(const Floats& k, const Floats& v) {
    block_k = k;
    block_v = v;
    for (const Floats* x : {&block_k, &block_v}) {
      need(x->ndim() == 3 && x->shape(0) == args.tokens && x->shape(1) == args.shape.heads &&
               x->shape(2) == args.shape.head_dim,
           "block_k, block_v: expected [tokens, kv_heads, head_dim]");
    }
    args.block_k = block_k.data();
    args.block_v = block_v.data();
    args.kv_stride = static_cast<size_t>(args.shape.row());
  }

  void set_key_mean(const Floats& mean) {
    key_mean = mean;
    need(mean.size() == args.shape.row(), "key_mean: expected [kv_heads, head_dim]");
    args.key_mean = key_mean.data();
  }

  void set_rope(const py::dict& d) {  // last: the table reaches the largest position
    const RopeSpec spec = rope_spec(d, args.shape.head_dim);
    for (size_t i = 0; i < places.size(); ++i)
      position_end = std::max(position_end, spec.place_at(positions.data()[i / 2], places[i]) + 1);
    rope_memory.resize(RopeTable::bytes_for(spec, position_end));
    rope = RopeTable(spec, position_end, rope_memory.data);
    args.rope = &rope;
  }

  void run() {
    const OneCaller::Turn turn(kernels->caller);
    kernels->prepare({.tokens = args.tokens, .q_heads = args.q_heads, .shape = args.shape, .rows = args.n_rows});
    const WithoutGil released;
    kernels->ops->attend(args);
  }

  py::tuple mass(int first_query, bool block) {
    const OneCaller::Turn turn(kernels->caller);
    need(first_query < args.tokens, "first_query: there are " + std::to_string(args.tokens) + " queries");
    kernels->prepare({.tokens = args.tokens, .q_heads = args.q_heads, .shape = args.shape, .rows = args.n_rows});
    Floats page_mass(positions.size()), row_mass(args.n_rows), block_mass(block ? args.tokens : 0);
    const MassArgs mass{&args, page_mass.mutable_data(), row_mass.mutable_data(), first_query,
                        block ? block_mass.mutable_data() : nullptr};
    {
      const WithoutGil released;
      kernels->ops->attention_mass(mass);
    }
    if (!block) return py::make_tuple(page_mass, row_mass);
    return py::make_tuple(page_mass, row_mass, block_mass);
  }
};

}  // namespace

void bind_attend(py::module_& m, py::class_<Kernels, std::shared_ptr<Kernels>>& kernels) {
  py::class_<AttendCall>(m, "AttendCall", "attend with all it reads; run() may be called again and again.")
      .def("run", [](AttendCall& self) { self.run(); })
      .def(
          "mass", [](AttendCall& self, int first_query, bool block) { return self.mass(first_query, block); },
          py::arg("first_query") = -1, py::arg("block") = false,
          "After run(): attention that the queries from first_query on (-1: the last alone) paid to (page tokens, "
          "summaries), and with block to the block's own tokens.")
      .def_readonly("out", &AttendCall::out, "[tokens, q_heads, head_dim]")
      .def_readonly("lse", &AttendCall::lse, "[tokens, q_heads]");
  kernels.def(
      "attend",
      [](const std::shared_ptr<Kernels>& self, const Floats& q, const Ints& q_positions, int kv_heads, float scale,
         const std::vector<Page>& pages, const py::object& positions, const py::object& mean_k,
         const py::object& mean_v, const py::object& rows, const py::object& row_positions, const py::object& row_bias,
         const py::object& block_k, const py::object& block_v, const py::object& rope, const py::object& key_mean) {
        if (self == nullptr) throw py::reference_cast_error();
        auto call = std::make_unique<AttendCall>(self, q, q_positions, kv_heads, scale);
        if (!pages.empty()) call->set_pages(pages, value_of<Ints>(positions, "positions"));
        if (!rows.is_none()) call->set_summaries(mean_k, mean_v, rows, row_positions, row_bias);
        need(block_k.is_none() == block_v.is_none(), "block_k and block_v: give both or none");
        if (!block_k.is_none())
          call->set_block(value_of<Floats>(block_k, "block_k"), value_of<Floats>(block_v, "block_v"));
        if (!rope.is_none()) call->set_rope(value_of<py::dict>(rope, "rope"));
        if (!key_mean.is_none()) call->set_key_mean(value_of<Floats>(key_mean, "key_mean"));
        return call;
      },
      py::arg("q"), py::arg("q_positions"), py::arg("kv_heads"), py::arg("scale"),
      py::arg("pages") = std::vector<Page>(), py::arg("positions") = py::none(), py::arg("mean_k") = py::none(),
      py::arg("mean_v") = py::none(), py::arg("rows") = py::none(), py::arg("row_positions") = py::none(),
      py::arg("row_bias") = py::none(), py::arg("block_k") = py::none(), py::arg("block_v") = py::none(),
      py::arg("rope") = py::none(), py::arg("key_mean") = py::none(),
      "An AttendCall over these parts. pages: [(codec, bytes, begin, end)]; key_mean: what record codecs took off.");
}
