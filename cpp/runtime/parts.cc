#include "runtime/parts.h"

namespace mosaic {

namespace {

RopeTable take_rope(Region& region, const Plan& plan, Ops& ops) {
  const RopeSpec& spec = plan.config.model.rope;
  const size_t bytes = RopeTable::bytes_for(spec, plan.rope_positions);
  std::byte* const there = region.take_for_kernels("rope", bytes);
  if (region.is_counting()) return {};
  if (!region.has_private()) return RopeTable(spec, plan.rope_positions, there);
  std::vector<std::byte> built(bytes);
  const RopeTable table(spec, plan.rope_positions, built.data());
  if (bytes > 0) ops.copy(there, built.data(), bytes);
  ops.wait();
  return table.at(there);
}

void take_kernel_scratch(Region& region, const Plan& plan, Ops& ops) {
  const Ops::Limits limits = plan.ops_limits();
  std::byte* const scratch = region.take_for_kernels("kernel scratch", ops.scratch_bytes(limits));
  if (!region.is_counting()) ops.set_scratch(scratch, limits);
  Ops& host = ops.for_host();
  if (&host == &ops) return;
  const Ops::Limits rows = plan.host_limits();
  std::byte* const host_scratch = region.take<std::byte>("kernel scratch", host.scratch_bytes(rows));
  if (!region.is_counting()) host.set_scratch(host_scratch, rows);
}

}  // namespace

Parts::Parts(Region& region, const Plan& plan, Policy& policy, Ops& ops, SpillIo* io)
    : window(region, plan.window),
      store(region, plan.store, ops, io),
      rope(take_rope(region, plan, ops)),
      selecting(region, plan),
      admitting(region, plan),
      staging(region, plan),
      evidence(region, plan.sized_for_bytes) {
  if (Retention* const retention = policy.retention()) records.emplace(region, plan, ops, *retention, io);
  const int lanes = plan.window.lanes, count = records && !region.has_private() ? 1 : lanes;
  const int frames = plan.frame_tokens == 0 ? 0 : region.has_private() ? lanes : 1;
  selections.reserve(static_cast<size_t>(count + frames));
  for (int i = 0; i < count; ++i) selections.emplace_back(region, plan, selecting);
  for (int i = 0; i < frames; ++i)
    selections.emplace_back(region, plan, selecting, plan.frame_entries, plan.frame_tokens, plan.frame_rows);
  take_kernel_scratch(region, plan, ops);
  core_rows = region.rows().size();
  policy.bind(plan.store, region);
}

}  // namespace mosaic
