// KvMemory for Python. Arrays are float32 and C-contiguous; attend() writes into the caller's out without a copy and
// releases the GIL while the core works.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/gil.h"
#include "bindings/given.h"
#include "bindings/layer_array.h"
#include "bindings/policy_bindings.h"
#include "bindings/store_view.h"
#include "core/error.h"
#include "memory/faulty_io.h"
#include "runtime/kv_memory.h"

namespace py = pybind11;
using namespace mosaic;
using mosaic::bindings::LayerArray;

namespace {

using Array = py::array_t<float, py::array::c_style>;

int64_t milliseconds(double seconds) { return std::llround(seconds * 1000.0); }

std::string shape_text(const py::array& a) {
  std::string text = "[";
  for (py::ssize_t i = 0; i < a.ndim(); ++i) text += (i > 0 ? ", " : "") + std::to_string(a.shape(i));
  return text + "]";
}

template <class T>
T get(const py::dict& d, const char* key, T otherwise) {
  return d.contains(key) ? bindings::value_of<T>(d[key], std::string("model: ") + key) : otherwise;
}

RopeSpec rope_from(const py::dict& d, int head_dim) {
  RopeSpec rope;
  rope.head_dim = head_dim;
  rope.rotary_dim = get(d, "rotary_dim", head_dim);
  rope.theta = get(d, "theta", 10000.0f);
  const auto layout = get<std::string>(d, "layout", "half");
  if (layout == "half") {
    rope.layout = RopeLayout::kHalf;
  } else if (layout == "interleaved") {
    rope.layout = RopeLayout::kInterleaved;
  } else if (layout == "none") {
    rope.layout = RopeLayout::kNone;
  } else {
    throw InvalidInput("rope: layout=\"" + layout + "\"; there are half, interleaved, none.");
  }
  const auto sections = get(d, "sections", std::vector<int>{});
  if (!sections.empty() && sections.size() != 3) throw InvalidInput("rope: sections must be (t, h, w).");
  for (size_t i = 0; i < sections.size(); ++i) rope.sections[i] = sections[i];
  rope.sections_interleaved = get(d, "sections_interleaved", false);
  rope.grid_follows_time = get(d, "grid_follows_time", false);
  if (rope.rotary_dim < 0 || rope.rotary_dim > head_dim || rope.rotary_dim % 2 != 0)
    throw InvalidInput("rope: rotary_dim must be even and at most head_dim.");
  if (rope.grid_follows_time && !rope.is_multi())
    throw InvalidInput("rope: grid_follows_time needs sections (t, h, w).");
  if (rope.is_multi() && rope.sections[0] + rope.sections[1] + rope.sections[2] != rope.rotary_dim / 2)
    throw InvalidInput("rope: sections must add up to rotary_dim / 2.");
  return rope;
}

// The frequencies of a scaled RoPE, which the model keeps and its RopeSpec borrows.
void read_frequencies(const py::dict& d, ModelShape* m) {
  auto given = get(d, "frequencies", std::vector<double>{});
  if (given.empty()) return;
  if (given.size() != static_cast<size_t>(m->rope.frequencies()))
    throw InvalidInput("rope: " + std::to_string(given.size()) +
                       " frequencies, expected rotary_dim / 2 = " + std::to_string(m->rope.frequencies()) + ".");
  for (double f : given)
    if (!(f >= 0 && f <= 1e3)) throw InvalidInput("rope: frequencies must be numbers from 0 to 1000.");
  m->frequencies = std::make_shared<const std::vector<double>>(std::move(given));
  m->rope.scaled = m->frequencies->data();
}

// Every key must be known: a misspelt knob is an error, not a default.
void refuse_unknown(const py::dict& d, const std::vector<std::string>& known, const char* who) {
  for (const auto& [key, value] : d) {
    const auto name = bindings::value_of<std::string>(key, std::string(who) + ": a setting's name");
    if (std::find(known.begin(), known.end(), name) == known.end())
      throw InvalidInput(std::string(who) + ": unknown setting \"" + name + "\".");
  }
}

// A setting from what Python gave for it.
template <class T>
void read_setting(const char* name, const py::object& given, T* value) {
  *value = bindings::value_of<T>(given, std::string("memory: ") + name);
}

void read_setting(const char* name, const py::object& given, CodecId* value) {
  std::string codec;
  read_setting(name, given, &codec);
  *value = codec_from_name(codec.c_str());
}

void read_setting(const char* name, const py::object& given, std::optional<CodecId>* value) {
  if (given.is_none()) return;
  read_setting(name, given, &value->emplace());
}

void read_setting(const char* name, const py::object& given, Positions* value) {
  std::string word;
  read_setting(name, given, &word);
  if (word != "auto" && word != "contiguous" && word != "original")
    throw InvalidInput("positions=\"" + word + "\"; there are auto, original, contiguous.");
  *value = word == "auto" ? Positions::kAuto : word == "original" ? Positions::kOriginal : Positions::kContiguous;
}

void read_setting(const char* name, const py::object& given, Overflow* value) {
  std::string word;
  read_setting(name, given, &word);
  if (word != "refuse" && word != "saturate")
    throw InvalidInput("overflow=\"" + word + "\"; there are refuse, saturate.");
  *value = word == "refuse" ? Overflow::kRefuse : Overflow::kSaturate;
}

MemoryConfig config_from(const py::dict& model, const py::dict& d) {
  MemoryConfig c;
  refuse_unknown(model,
                 {"layers", "q_heads", "kv_heads", "head_dim", "scale", "rope", "embedding_dim", "frame_tokens",
                  "video_window", "context"},
                 "model");
  ModelShape& m = c.model;
  m.layers = get(model, "layers", 0);
  m.q_heads = get(model, "q_heads", 0);
  m.kv_heads = get(model, "kv_heads", 0);
  m.head_dim = get(model, "head_dim", 0);
  m.scale = get(model, "scale", 0.0f);
  const auto rope = get(model, "rope", py::dict());
  m.rope = rope_from(rope, m.head_dim);
  read_frequencies(rope, &m);
  m.embedding_dim = get(model, "embedding_dim", 0);
  m.frame_tokens = get(model, "frame_tokens", 0);
  m.video_window = get(model, "video_window", 0);
  m.context = get(model, "context", 0);
  std::vector<std::string> known;
  for_each_setting(c, [&](const char* name, auto& value) {
    known.emplace_back(name);
    if (d.contains(name)) read_setting(name, d[name], &value);
  });
  refuse_unknown(d, known, "memory");
  return c;
}

py::dict plan_dict(const Plan& plan) {
  py::dict out;
  py::list parts;
  for (const Plan::Part& part : plan.parts) parts.append(py::make_tuple(part.name, part.bytes));
  out["parts"] = parts;
  out["total_bytes"] = plan.total_bytes;
  out["cap_bytes"] = plan.config.cap_bytes;
  py::list tiers;
  for (const TierSpec& tier : plan.store.tiers) {
    py::dict row;
    row["medium"] = medium_name(tier.medium);
    row["codec"] = codec_name(tier.codec);
    row["pages"] = tier.slots;
    row["page_bytes"] = page_bytes(tier.codec, plan.store.page);
    tiers.append(row);
  }
  out["tiers"] = tiers;
  if (plan.log.lanes > 0) {
    py::dict row;
    row["medium"] = medium_name(Medium::device);
    row["codec"] = codec_name(plan.log.codec);
    row["pages"] = plan.log.lanes * plan.log.pages;
    row["page_bytes"] = data_bytes(plan.log.codec, plan.log.page);
    tiers = py::list();
    tiers.append(row);
    if (plan.archive.pages > 0) {
      py::dict disk;
      disk["medium"] = medium_name(Medium::disk);
      disk["codec"] = codec_name(plan.archive.codec);
      disk["pages"] = int64_t{plan.archive.lanes} * plan.archive.pages;
      disk["page_bytes"] = data_bytes(plan.archive.codec, plan.archive.page);
      tiers.append(disk);
    }
    out["tiers"] = tiers;
  }
  out["lanes"] = plan.window.lanes;
  out["clusters"] = plan.store.index.capacity;
  out["scenes"] = plan.store.scenes;
  out["window_frames"] = plan.config.window_frames;
  out["window_codec"] = codec_name(plan.window.codec);
  out["retrieve_tokens"] = plan.config.retrieve_tokens;
  out["branch_tokens"] = plan.config.branch_tokens;
  return out;
}

py::dict stats_dict(const KvMemory& memory) {
  const MemoryStats s = memory.stats();
  py::dict out, tokens, events, disk, copies;
  tokens["seen"] = s.tokens.seen;
  tokens["exact"] = s.tokens.exact;
  tokens["quantised"] = s.tokens.quantised;
  tokens["spilled"] = s.tokens.spilled;
  tokens["collapsed"] = s.tokens.collapsed;
  tokens["dropped"] = s.tokens.dropped;
  out["tokens"] = tokens;
  events["splits"] = s.counters.splits;
  events["deferred_splits"] = s.counters.deferred_splits;
  events["eager_splits"] = s.counters.eager_splits;
  events["merges"] = s.counters.merges;
  events["demoted_pages"] = s.counters.demoted_pages;
  events["thinned_clusters"] = s.counters.thinned_clusters;
  events["collapsed_clusters"] = s.counters.collapsed_clusters;
  events["dropped_clusters"] = s.counters.dropped_clusters;
  events["lost_pages"] = s.counters.lost_pages;
  events["failed_spills"] = s.counters.failed_spills;
  events["spill_pauses"] = s.counters.spill_pauses;
  events["read_pauses"] = s.counters.read_pauses;
  events["paused_frames"] = s.counters.paused_frames;
  events["fetched_pages"] = s.counters.fetched_pages;
  events["fetch_hits"] = s.counters.fetch_hits;
  py::dict read;  // tokens a layer (mean over its lanes), besides the block itself
  const double lanes = memory.plan().window.lanes;
  read["frames"] = static_cast<double>(s.frame_reads) / lanes;
  read["questions"] = static_cast<double>(s.question_reads) / lanes;
  out["read"] = read;
  events["unread_pages"] = s.unread_pages;
  events["saturated_numbers"] = s.saturated_numbers;
  events["refused_overflows"] = s.refused_overflows;
  events["dropped_dialogue_tokens"] = s.dropped_dialogue;
  out["events"] = events;
  disk["bytes_written"] = s.disk.bytes_written;
  disk["bytes_read"] = s.disk.bytes_read;
  disk["bad_checksums"] = s.disk.bad_checksums;
  disk["io_errors"] = s.disk.io_errors;
  disk["no_space"] = s.disk.no_space;
  out["disk"] = disk;
  copies["stalls"] = s.copies.stalls;
  copies["busy_seconds"] = s.copies.busy_seconds;
  out["copies"] = copies;
  out["cap_bytes"] = s.cap_bytes;
  out["taken_bytes"] = s.taken_bytes;
  out["frames"] = s.frames;
  out["questions"] = s.questions;
  out["clusters"] = s.clusters;
  out["scenes"] = s.scenes;
  py::list tiers;
  for (int t = 0; t < s.tiers; ++t) {
    py::dict row;
    row["medium"] = medium_name(s.tier[t].medium);
    row["codec"] = codec_name(s.tier[t].codec);
    row["used_bytes"] = s.tier[t].used_bytes;
    row["peak_bytes"] = s.tier[t].peak_bytes;
    row["capacity_bytes"] = s.tier[t].capacity_bytes;
    tiers.append(row);
  }
  out["tiers"] = tiers;
  py::list parts;
  for (const Region::Row& row : memory.region().rows()) parts.append(py::make_tuple(std::string(row.name), row.bytes));
  out["parts"] = parts;
  return out;
}

// What a page takes of the spill file.
size_t spilled_page_bytes(const Plan& plan) {
  if (plan.archive.pages > 0) return SpillFile::stride_of(data_bytes(plan.archive.codec, plan.archive.page));
  for (const TierSpec& tier : plan.store.tiers)
    if (tier.medium == Medium::disk) return SpillFile::stride_of(page_bytes(tier.codec, plan.store.page));
  return 0;
}

// faults: 0, or every nth page read, written and acquired of the spill file fails; the io lives as long as the memory.
std::shared_ptr<KvMemory> make_memory(const py::dict& model, const py::dict& memory, const py::object& policy,
                                      const py::dict& settings, const std::string& backend, int threads, int faults,
                                      SnapshotReader* snapshot) {
  const MemoryConfig config = config_from(model, memory);
  auto chosen = bindings::policy_from(policy, settings);
  Backend kernels = make_backend(backend, threads);
  std::shared_ptr<FaultyIo> io;
  if (faults != 0) {
    const size_t page = spilled_page_bytes(make_plan(config, *chosen, kernels));
    if (page == 0)
      throw InvalidInput("faults=" + std::to_string(faults) +
                         " needs a disk tier: set disk=, and a policy that uses it.");
    io = std::make_shared<FaultyIo>(faults, page);
  }
  KvMemory* made = nullptr;
  if (snapshot == nullptr) {
    made = new KvMemory(config, std::move(chosen), std::move(kernels), io.get());
  } else {  // it may come through a pipe that a thread of Python's fills
    const bindings::WithoutGil released;
    made = new KvMemory(config, std::move(chosen), std::move(kernels), io.get(), snapshot);
  }
  return {made, [io](KvMemory* gone) {
            // In a fork a GPU's driver is not there, not even to give memory back.
            if (!gone->device().is_gpu() || gone->caller().is_in_its_process()) delete gone;
          }};
}

}  // namespace

void bind_memory(py::module_& m) {
  m.def(
      "plan",
      [](const py::dict& model, const py::dict& memory, const py::object& policy, const py::dict& settings,
         const std::string& backend, int threads) {
        const auto chosen = bindings::policy_from(policy, settings);
        const Backend made = make_backend(backend, threads);
        return plan_dict(make_plan(config_from(model, memory), *chosen, made));
      },
      py::arg("model"), py::arg("memory"), py::arg("policy"), py::arg("settings") = py::dict(),
      py::arg("backend") = "cpu", py::arg("threads") = 1, "How a cap would be split, without allocating it.");

  // Methods take references: a pointer to a member would take an object that was never made (KvMemory.__new__) as null.
  py::class_<KvMemory, std::shared_ptr<KvMemory>>(m, "KvMemory",
                                                  "One capped KV memory for one stream. See cpp/runtime/kv_memory.h.")
      .def(py::init(&make_memory), py::arg("model"), py::arg("memory"), py::arg("policy"),
           py::arg("settings") = py::dict(), py::arg("backend") = "cpu", py::arg("threads") = 0, py::arg("faults") = 0,
           py::arg("snapshot") = nullptr)
      .def(
          "begin_frame",
          [](KvMemory& self, double pts, const Array& embedding, int tokens, int grid_w, int lead, int trail,
             int t_position) {
            if (embedding.ndim() != 1 || embedding.shape(0) != self.plan().config.model.embedding_dim)
              throw InvalidInput("begin_frame: embedding has shape " + shape_text(embedding) + ", expected [" +
                                 std::to_string(self.plan().config.model.embedding_dim) + "].");
            if (!(pts >= -2e6 && pts <= 1e9))
              throw InvalidInput("begin_frame: pts must be seconds, from -2,000,000 to 1,000,000,000 (31 years).");
            FrameInfo frame;
            frame.time_ms = milliseconds(pts);
            frame.embedding = embedding.data();
            frame.tokens = tokens;
            frame.grid_w = grid_w;
            frame.lead = lead;
            frame.trail = trail;
            frame.t_position = t_position;
            const bindings::WithoutGil released;
            self.begin_frame(frame);
          },
          py::arg("pts"), py::arg("embedding"), py::arg("tokens"), py::arg("grid_w") = 1, py::arg("lead") = 0,
          py::arg("trail") = 0, py::arg("t_position") = -1,
          "Start a frame: pts in seconds, embedding float32 [embedding_dim]; of its tokens the first `lead` and the "
          "last\n"
          "`trail` are text. t_position: the frame's M-RoPE position, counted from the end of the prefix; -1: the next "
          "one.")
      .def(
          "begin_text", [](KvMemory& self, int tokens, int lead, int trail) { self.begin_text(tokens, lead, trail); },
          py::arg("tokens"), py::arg("lead") = 0, py::arg("trail") = 0,
          "Start a block of text; of a question's tokens the first `lead` and the last `trail` are its template's.")
      .def(
          "attend",
          [](KvMemory& self, int layer, const py::object& q, const py::object& k, const py::object& v,
             const py::object& out, std::optional<int> given_tokens, std::optional<uintptr_t> stream) {
            const ModelShape& m = self.plan().config.model;
            const int tokens = given_tokens.value_or(self.block_tokens());
            const bool gpu = self.device().is_gpu();
            std::optional<std::array<LayerArray, 4>> arrays;
            try {
              arrays.emplace(
                  std::array<LayerArray, 4>{LayerArray("q", q, tokens, m.q_heads, m.head_dim, gpu, false),
                                            LayerArray("k", k, tokens, m.kv_heads, m.head_dim, gpu, false),
                                            LayerArray("v", v, tokens, m.kv_heads, m.head_dim, gpu, false),
                                            LayerArray("out", out, tokens, m.q_heads, m.head_dim, gpu, true)});
            } catch (const std::exception&) {
              self.abort();
              throw;
            }
            const auto& [at_q, at_k, at_v, at_out] = *arrays;
            const auto end = [&](const LayerArray& a, int heads) {
              return a.data() + size_t{1} * tokens * heads * m.head_dim;
            };
            for (const auto& [name, array, heads] :
                 {std::tuple{"q", &at_q, m.q_heads}, {"k", &at_k, m.kv_heads}, {"v", &at_v, m.kv_heads}}) {
              if (at_out.data() >= end(*array, heads) || array->data() >= end(at_out, m.q_heads)) continue;
              self.abort();
              throw InvalidInput(std::string("attend: out overlaps ") + name + ", which is read after out is written.");
            }
            std::vector<void*> producers;
            for (const LayerArray& array : *arrays) {
              if (array.stream() && std::find(producers.begin(), producers.end(), *array.stream()) == producers.end())
                producers.push_back(*array.stream());
            }
            const ArraysLie lie = {at_q.lies(), at_k.lies(), at_v.lies(), at_out.lies()};
            const bindings::WithoutGil released;
            self.attend(layer, at_q.data(), at_k.data(), at_v.data(), at_out.data(),
                        stream ? std::optional<void*>(reinterpret_cast<void*>(*stream)) : std::nullopt, tokens,
                        producers, lie);
          },
          py::arg("layer"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"), py::arg("tokens") = py::none(),
          py::arg("stream") = py::none(),
          R"(q [T, q_heads, D], k, v [T, kv_heads, D] before rotation, float32, C-contiguous; writes out [T, q_heads, D].

NumPy arrays, or arrays with __dlpack__ or __cuda_array_interface__ (torch, CuPy, OrtValue), on the host or on the
memory's own device; none is copied where the device reaches it; [1, T, ...] and heads and channels in one axis are the
same. `out` is written when this returns; with a `stream`, the caller's CUDA stream as an integer (0: the default one),
and all four on the GPU the work is only queued in order with it.)")
      .def(
          "commit", [](KvMemory& self) { self.commit(); }, py::call_guard<bindings::WithoutGil>())
      .def("abort", [](KvMemory& self) { self.abort(); })
      .def(
          "open_question",
          [](KvMemory& self, std::optional<double> since) {
            if (since && !std::isfinite(*since)) throw InvalidInput("since must be a finite number of seconds.");
            self.open_question(since ? milliseconds(std::clamp(*since, -2e6, 1e9)) : Clock::kNever);
          },
          py::arg("since") = py::none(), "since: seconds; only what was seen from then on is read.")
      .def(
          "close_question", [](KvMemory& self, bool keep) { self.close_question(keep); }, py::arg("keep") = false,
          py::call_guard<bindings::WithoutGil>())
      .def(
          "rewind_question", [](KvMemory& self, int tokens) { self.rewind_question(tokens); }, py::arg("tokens"),
          py::call_guard<bindings::WithoutGil>(), "Forget all of question and answer but their first tokens.")
      .def(
          "evidence",
          [](const KvMemory& self) {
            const OneCaller::Turn turn(self.caller());
            py::list out;
            for (int i = 0; i < self.evidence().capacity(); ++i) {
              const Evidence::Moment m = self.evidence().moment(i);
              if (m.mass > 0)
                out.append(py::make_tuple(static_cast<double>(m.first_ms) / 1000.0,
                                          static_cast<double>(m.last_ms) / 1000.0, m.mass));
            }
            return out;
          },
          "[(from seconds, to seconds, attention mass)] of the last question's first token.")
      .def_property_readonly(
          "evidence_lost",
          [](const KvMemory& self) { return self.caller().look([&] { return self.evidence().lost(); }); },
          "Moments of the last question that found no room in the table of evidence().")
      .def_property_readonly(
          "asking",
          [](const KvMemory& self) {
            self.caller().need_its_process();
            return self.asking();
          },
          "True between open_question() and close_question().")
      .def("stats", &stats_dict)
      .def("plan",
           [](const KvMemory& self) {
             self.caller().need_its_process();
             return plan_dict(self.plan());
           })
      .def_property_readonly(
          "store",
          [](const std::shared_ptr<KvMemory>& self) {
            if (self == nullptr) throw py::reference_cast_error();
            self->caller().need_its_process();
            return bindings::StoreView{&self->store(), &self->caller(), self};
          },
          "What is kept, read-only: a StoreView.")
      .def(
          "save", [](KvMemory& self, SnapshotWriter& to) { self.save(to); }, py::arg("to"),
          py::call_guard<bindings::WithoutGil>(), "All that later answers depend on; no block and no question is open.")
      .def("check_invariants", [](const KvMemory& self) { self.check_invariants(); })
      .def("drain", [](KvMemory& self) { self.drain(); }, py::call_guard<bindings::WithoutGil>());
}
