// attend on tensor cores: logits and outputs by m16n8k16, halves in and fp32 sums. A block takes one KV head, a tile of
// query rows and a run of units, as attend_exact.h has it, in steps of four slots of shared memory: all threads decode and
// rotate the step's units into halves, meet, and each warp multiplies: its own 16 rows with every unit (prefill), or
// the same 16 rows with its own unit (decode; the warps' parts are joined at the end). The next step's pages are asked
// for before this one is computed.
//
// Precision. A unit of a quantised or fp16 page or of summaries is one product of halves: rotated keys, queries,
// weights and values are rounded to 11 bits, as fp16 attention has it, and sums are fp32. A unit of an fp32 page or of
// the causal block is exact: each number is the sum of two halves (22 bits), three products, and it takes two slots.
// Ranges are kept by powers of two: a query row is brought to [2^6, 2^7), keys are taken in 64ths, weights in 1024ths
// of their values' 4ths. So |k| and exact |v| up to 2^22 and decoded |v| up to 2^18 are right; beyond that exact ones
// saturate.
//
// Roofline of decode, by hand and not yet measured: a unit of 16 keys x 128 channels of one KV head in instructions of
// a warp. Keys: 512 double turns of ~35 (tables, complex product, pack, store) and 2,048 decodes of ~2.5, so ~720;
// values ~290; products and softmax of up to 16 rows ~250: 1,260. Its bytes: int4 2,640, int8 4,688, fp16 8,192. An
// H100 (132 processors x 4 x 1.7 GHz) issues 900 G/s: 0.71 G units/s, so 1.9, 3.3 and 5.9 TB/s where memory gives 3.35:
// int4 is bound by rotating keys, int8 by both, fp16 by memory. An AGX Orin (16 x 4 x 1.3 GHz): 0.066 G units/s, so
// 0.17, 0.31 and 0.54 TB/s where memory gives 0.2: int4 by both, the rest by memory.
#pragma once

#include "backend/cuda/attend_packed.h"
#include "backend/cuda/attend_parts.h"
#include "backend/cuda/attend_rows.h"
#include "backend/cuda/attend_unit.h"

namespace mosaic::MOSAIC_SIMT {

inline constexpr int kSlots = 4;

// Where a unit lies in shared memory. Pitches keep the 32 words of a fragment in 32 banks.
struct Slot {
  half_t* key;      // [16][pitch]
  uint32_t* value;  // [8][pitch]: a word is a channel of tokens 2p and 2p + 1
};
MOSAIC_HD inline int pitch_of(int d) { return 16 * channel_steps(d) + 8; }
MOSAIC_HD inline size_t slot_bytes(int d) { return static_cast<size_t>(pitch_of(d)) * 64; }
MOSAIC_DEVICE Slot slot_at(std::byte* slots, int slot, int d) {
  std::byte* const at = slots + static_cast<size_t>(slot) * slot_bytes(d);
  return {reinterpret_cast<half_t*>(at), reinterpret_cast<uint32_t*>(at + static_cast<size_t>(pitch_of(d)) * 32)};
}

// The units that are loaded together: as many as fit the slots.
struct Step {
  int units = 0;
  unsigned exact = 0;  // bit i: unit i takes two slots, high halves and low ones
  MOSAIC_DEVICE bool is_exact(int i) const { return (exact >> i & 1u) != 0; }
  MOSAIC_DEVICE int slot(int i) const {
    int at = i;
    for (int j = 0; j < i; ++j) at += is_exact(j) ? 1 : 0;
    return at;
  }
};
// packed: units in the Hadamard basis are attended elsewhere, and no step has one.
MOSAIC_DEVICE int step_from(const AttendArgs& a, int u, int end, bool packed) {
  while (packed && u < end && in_hadamard(a, unit_at(a, u))) ++u;
  return u;
}
MOSAIC_DEVICE Step step_at(const AttendArgs& a, int u, int end, bool packed) {
  Step step;
  for (int slots = 0; step.units < kSlots && u + step.units < end; ++step.units) {
    const Unit unit = unit_at(a, u + step.units);
    if (packed && in_hadamard(a, unit)) break;
    const bool exact =
        unit.part == Part::kBlock || (unit.part == Part::kPage && a.pages[unit.index].codec == CodecId::kFp32);
    slots += exact ? 2 : 1;
    if (slots > kSlots) break;
    step.exact |= (exact ? 1u : 0u) << step.units;
  }
  return step;
}

// Its keys' description, and a hint for the lines of its pages.
MOSAIC_DEVICE void announce(const AttendArgs& a, const RopeTable& rope, int u, const Step& step, int kv_head,
                            TileKeys* keys) {
  for (int i = simt::thread(); i < step.units * kTile; i += simt::threads()) {
    describe(a, rope, unit_at(a, u + i / kTile), i % kTile, &keys[i / kTile]);
  }
  for (int i = 0; i < step.units; ++i) {
    const Unit unit = unit_at(a, u + i);
    if (unit.part != Part::kPage) return;
    const PageEntry page = a.pages[unit.index];
    const size_t bytes = head_bytes(page.codec, a.shape.head_dim);
    const std::byte* const panel = page.data + head_offset(page.codec, a.shape.head_dim, kv_head);
    for (size_t at = static_cast<size_t>(simt::thread()) * 128; at < bytes;
         at += static_cast<size_t>(simt::threads()) * 128)
      simt::prefetch(panel + at);
  }
}

// Keys to halves; an even channel and the next are one word.
struct PutHalves {
  half_t* key;  // of the slot; low halves in the next one
  int pitch;
  bool exact;
  MOSAIC_DEVICE half_t* low() const { return key + kTile * 2 * pitch; }
  MOSAIC_DEVICE void operator()(int token, int channel, float x) const {
    x = exact ? saturate(x * kKeys) : x * kKeys;
    const half_t rounded = simt::narrow(x);
    key[token * pitch + channel] = rounded;
    if (exact) low()[token * pitch + channel] = simt::narrow((x - simt::widen(rounded)) * kLow);
  }
  MOSAIC_DEVICE void operator()(int token, int channel, float x, float y) const {
    x *= kKeys, y *= kKeys;
    if (exact) x = saturate(x), y = saturate(y);
    const uint32_t word = simt::pack(x, y);
    reinterpret_cast<uint32_t*>(key)[(token * pitch + channel) / 2] = word;
    if (exact) reinterpret_cast<uint32_t*>(low())[(token * pitch + channel) / 2] = pack_low(x, y, word);
  }
};

// The step's units into their slots. A warp's items are of one unit and one kind. kDoubled: key_item's.
template <bool kDoubled>
MOSAIC_DEVICE void load_step(const AttendArgs& a, const RopeTable& rope, int u, const Step& step, int kv_head,
                             const TileKeys* keys, std::byte* slots) {
  const int d = a.shape.head_dim, pitch = pitch_of(d), chunks = (d + 7) / 8;
  const Channels channels(rope, d);
  const int key_items = (channels.key_items() + simt::kWarp - 1) / simt::kWarp * simt::kWarp;
  const int items = key_items + (kTile / 2 * chunks + simt::kWarp - 1) / simt::kWarp * simt::kWarp;
  // Counted on, not divided: a division by what only the launch knows is 20 instructions, and registers.
  for (int i = 0, item = simt::thread();; item += simt::threads()) {
    for (; item >= items; item -= items) ++i;
    if (i >= step.units) return;
    const Unit unit = unit_at(a, u + i);
    if (in_hadamard(a, unit)) continue;
    const bool exact = step.is_exact(i);
    const Slot high = slot_at(slots, step.slot(i), d), low = slot_at(slots, step.slot(i) + 1, d);
    if (item < key_items) {
      const PutHalves put{high.key, pitch, exact};
      if (item < channels.key_items()) key_item<kDoubled>(a, rope, channels, unit, kv_head, keys[i], item, put);
    } else if (item - key_items < kTile / 2 * chunks) {
      const int pair = (item - key_items) / chunks, first = (item - key_items) % chunks * 8;
      float x[2][8];
      value_item(a, unit, kv_head, keys[i], 2 * pair, first, x[0]);
      value_item(a, unit, kv_head, keys[i], 2 * pair + 1, first, x[1]);
      for (int c = 0; c < 8; ++c) {
        float p = x[0][c] * (exact ? kExactValues : kValues), q = x[1][c] * (exact ? kExactValues : kValues);
        if (exact) p = saturate(p), q = saturate(q);
        const uint32_t word = simt::pack(p, q);
        high.value[pair * pitch + first + c] = word;
        if (exact) low.value[pair * pitch + first + c] = pack_low(p, q, word);
      }
    }
  }
}

// Units of record codecs into their slots: a warp takes two tokens, whose values share words. row: its own, [D].
MOSAIC_DEVICE void load_records(const AttendArgs& a, const RopeTable& rope, int u, const Step& step, int kv_head,
                                const TileKeys* keys, std::byte* slots, float* row) {
  const int d = a.shape.head_dim, pitch = pitch_of(d), width = (d + 7) / 8 * 8;
  const int warps = simt::threads() / simt::kWarp;
  const Channels channels(rope, d);
  for (int all = simt::thread() / simt::kWarp; all < step.units * kTile / 2; all += warps) {
    const int i = all / (kTile / 2), pair = all % (kTile / 2);
    const Unit unit = unit_at(a, u + i);
    if (!in_hadamard(a, unit)) continue;
    const Slot slot = slot_at(slots, step.slot(i), d);
    const PutHalves put{slot.key, pitch, false};
#pragma unroll 1  // registers
    for (int j = 0; j < 2; ++j) {
      const int token = 2 * pair + j;
      RowOf<kMostTensorHead / simt::kWarp> key;
      record_key(a, unit, kv_head, token, &key);
      put_row(key, d, row);
      simt::meet_warp();
      for (int item = lane(); item < channels.count; item += simt::kWarp) {
        float x = row[channels.first(item)];
        if (item < channels.pairs) {
          float y = row[channels.second(item)];
          turn(rope, item, keys[i].at[token][rope.spec().axis_of(item)], &x, &y);
          put(token, channels.second(item), y);
        }
        put(token, channels.first(item), x);
      }
      simt::meet_warp();
      RowOf<kMostTensorHead / simt::kWarp> value;
      record_value(a, unit, kv_head, token, &value);
      half_t* const to = reinterpret_cast<half_t*>(slot.value + pair * pitch) + j;
#pragma unroll
      for (int part = 0; part < kMostTensorHead / simt::kWarp; ++part) {
        const int c = lane() + simt::kWarp * part;
        if (c < width) to[2 * c] = simt::narrow(value.x[part] * kValues);
      }
    }
  }
}

// The logits of a unit's 16 keys: c of two products, keys 8n + 2 (lane % 4) + i % 2 of row g + 8 (i / 2).
MOSAIC_DEVICE void logits_of(const Rows& rows, const LowQueries* low_rows, const Slot& high, const Slot& low,
                             bool exact, int d, const TileKeys& keys, float (&logit)[2][4]) {
  const int lane = simt::thread() % simt::kWarp, g = lane / 4, t = 2 * (lane % 4), pitch = pitch_of(d);
  float cross[2][4];
#pragma unroll
  for (int i = 0; i < 8; ++i) logit[i / 4][i % 4] = cross[i / 4][i % 4] = 0;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    if (s >= channel_steps(d)) break;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int at = (8 * n + g) * pitch + 16 * s + t;
      const uint32_t b[2] = {simt::load<uint32_t>(high.key + at), simt::load<uint32_t>(high.key + at + 8)};
      if (exact) {
        const uint32_t rest[2] = {simt::load<uint32_t>(low.key + at), simt::load<uint32_t>(low.key + at + 8)};
        const auto left = simt::load<simt::Bytes16>(low_rows[s][lane]);
        simt::multiply_add(left.word, b, cross[n]);
        simt::multiply_add(rows.high[s], rest, cross[n]);
      }
      simt::multiply_add(rows.high[s], b, logit[n]);
    }
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = 8 * n + t + i % 2, r = i / 2;
      const float bias = keys.bias[key];
      const float x = (logit[n][i] + cross[n][i] * (1 / kLow)) * rows.scale[r] + bias;
      logit[n][i] = bias == -INFINITY || rows.token[r] < keys.from[key] ? -INFINITY : x;
    }
  }
}

// A unit joins what the rows have attended: online softmax in registers, the weights being the next product's left
// side.
MOSAIC_DEVICE void attend_unit(const LowQueries* low_rows, const Slot& high, const Slot& low, bool exact, int d,
                               const TileKeys& keys, Rows* rows) {
  const int lane = simt::thread() % simt::kWarp, pitch = pitch_of(d);
  float weight[2][4], factor[2];
  logits_of(*rows, low_rows, high, low, exact, d, keys, weight);
  bool grew = false;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float* const x = weight[0] + 2 * r;
    const float* const y = weight[1] + 2 * r;
    const float most = simt::max_lanes(fmaxf(fmaxf(x[0], x[1]), fmaxf(y[0], y[1])), 4), before = rows->top[r];
    rows->top[r] = fmaxf(most, before);
    factor[r] = before == -INFINITY ? 0.0f : simt::exp2_of(before - rows->top[r]);
    grew = grew || rows->top[r] != before;
  }
  if (simt::ballot(grew) != 0) {
#pragma unroll
    for (int r = 0; r < 2; ++r) rows->total[r] *= rows->top[r] == -INFINITY ? 0.0f : factor[r];
#pragma unroll
    for (int i = 0; i < 2 * kSteps * 4; ++i) rows->sum[i / 4][i % 4] *= factor[i / 2 % 2];
  }
  uint32_t p[4], rest[4];
  const float scale = exact ? kExactWeights : kWeights;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float w[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float logit = weight[n][2 * r + i];
        w[i] = logit == -INFINITY ? 0.0f : simt::exp2_of(logit - rows->top[r]);
      }
      rows->total[r] += w[0] + w[1];
      p[2 * n + r] = simt::pack(w[0] * scale, w[1] * scale);
      rest[2 * n + r] = pack_low(w[0] * scale, w[1] * scale, p[2 * n + r]);
    }
  }
#pragma unroll
  for (int n = 0; n < 2 * kSteps; ++n) {
    if (8 * n >= d) break;
    const int at = lane % 4 * pitch + 8 * n + lane / 4;
    const uint32_t b[2] = {high.value[at], high.value[at + 4 * pitch]};
    if (exact) {
      const uint32_t b_rest[2] = {low.value[at], low.value[at + 4 * pitch]};
      float cross[4] = {};
      simt::multiply_add(rest, b, cross);
      simt::multiply_add(p, b_rest, cross);
#pragma unroll
      for (int i = 0; i < 4; ++i) rows->sum[n][i] += cross[i] * (1 / kLow);
    }
    simt::multiply_add(p, b, rows->sum[n]);
  }
}

// Shared memory of a block: slots, descriptions of this step's keys and the next's, low halves of queries, and then sums of
// packed pages, or a row a warp.
template <int kRowGroups>
struct SharedOf {
  std::byte* slots;
  TileKeys* keys;   // [2][4]
  LowQueries* low;  // [kRowGroups][channel steps]
  std::byte* rest;
  MOSAIC_DEVICE explicit SharedOf(int d)
      : slots(simt::shared<std::byte>()),
        keys(reinterpret_cast<TileKeys*>(slots + kSlots * slot_bytes(d))),
        low(reinterpret_cast<LowQueries*>(keys + 2 * kSlots)),
        rest(reinterpret_cast<std::byte*>(low) + low_bytes(d, kRowGroups)) {}
};

// The units of the block's run that are not packed, and the results. y, tile: the block's place in the grid.
template <int kRowGroups, int kUnitGroups, int kHeadDim>
MOSAIC_DEVICE void attend_units(const AttendLanes& all, const RopeTable& rope, const Parts& parts_of_all, int y,
                                int tile) {
  constexpr int kRows = kGroupRows * kRowGroups;
  constexpr bool kPacked = kHeadDim != 0;
  const int heads = all.lane[0].shape.heads, lane_of_layer = y / heads;
  AttendArgs fixed = all.lane[lane_of_layer];
  if constexpr (kPacked) fixed.shape.head_dim = kHeadDim;
  const AttendArgs& a = kPacked ? fixed : all.lane[lane_of_layer];
  const int d = a.shape.head_dim, group = a.q_heads / a.shape.heads, warp = simt::thread() / simt::kWarp;
  const int kv_head = y % heads, first = tile * kRows;
  const int all_rows = a.tokens * group, end_row = all_rows < first + kRows ? all_rows : first + kRows;
  const SharedOf<kRowGroups> shared(d);
  std::byte* const slots = shared.slots;
  TileKeys* const keys = shared.keys;
  const Run run = run_of(a, (end_row - 1) / group + 1);
  using Packed = PackedSums<kPacked ? kHeadDim : simt::kWarp>;
  const Packed* const packed = reinterpret_cast<const Packed*>(shared.rest);

  const int row_group = warp % kRowGroups, unit_group = warp / kRowGroups, first_row = first + kGroupRows * row_group;
  LowQueries* const low_rows = shared.low + row_group * channel_steps(d);
  Rows rows;
  load_rows(a, rope, kv_head, first_row, end_row,
            reinterpret_cast<float*>(slots) + warp * 8 * (16 * channel_steps(d) + 4),
            unit_group == 0 ? low_rows : nullptr, &rows);
  if (d % 16 != 0) {  // channels between d and the next multiple of 16 stay zero
    for (int i = simt::thread(); i < kSlots * kTile * pitch_of(d); i += simt::threads()) {
      slot_at(slots, i / (kTile * pitch_of(d)), d).key[i % (kTile * pitch_of(d))] = 0;
    }
  }
  int u = step_from(a, run.begin, run.end, kPacked), then_u;
  Step step = step_at(a, u, run.end, kPacked), next;
  announce(a, rope, u, step, kv_head, keys);
  simt::barrier();
  TileKeys* now = keys;
  for (; u < run.end; u = then_u, step = next) {
    load_step<kPacked>(a, rope, u, step, kv_head, now, slots);
    if constexpr (!kPacked)
      load_records(a, rope, u, step, kv_head, now, slots, reinterpret_cast<float*>(shared.rest) + warp * d);
    simt::barrier();
    TileKeys* const then = now == keys ? keys + kSlots : keys;
    then_u = step_from(a, u + step.units, run.end, kPacked);
    next = step_at(a, then_u, run.end, kPacked);
    announce(a, rope, then_u, next, kv_head, then);
    for (int i = unit_group; i < step.units && first_row < end_row; i += kUnitGroups) {
      const Slot high = slot_at(slots, step.slot(i), d), low = slot_at(slots, step.slot(i) + 1, d);
      attend_unit(low_rows, high, low, step.is_exact(i), d, now[i], &rows);
    }
    simt::barrier();
    now = then;
  }
  for (int r = 0; r < 2; ++r) rows.total[r] = simt::sum_lanes(rows.total[r], 4);

  const Parts parts = parts_of_all.of_lane(a, lane_of_layer);
  const int lane = simt::thread() % simt::kWarp;
  if constexpr (kUnitGroups == 1) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + lane / 4 + 8 * r;
      if (row >= end_row) continue;
      const Result to = result_of(a, parts, kv_head, row);
      const float inverse = rows.total[r] > 0 ? 1.0f / (kSum * rows.total[r]) : 0.0f;
      if (lane % 4 == 0) *to.lse = lse_of(rows.top[r], rows.total[r]);
#pragma unroll
      for (int n = 0; n < 2 * kSteps; ++n) {
        for (int i = 0; i < 2; ++i) {
          const int c = 8 * n + 2 * (lane % 4) + i;
          if (c < d) to.out[c] = rows.sum[n][2 * r + i] * inverse;
        }
      }
    }
  } else {  // the warps' parts, where the units lay
    const int width = 8 * ((d + 7) / 8);
    float* const sums = reinterpret_cast<float*>(slots);          // [groups][16][width]
    float* const tops = sums + kUnitGroups * kGroupRows * width;  // [groups][16]
    float* const totals = tops + kUnitGroups * kGroupRows;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int at = unit_group * kGroupRows + lane / 4 + 8 * r;
      if (lane % 4 == 0) tops[at] = rows.top[r], totals[at] = rows.total[r];
#pragma unroll
      for (int n = 0; n < 2 * kSteps; ++n) {
        if (8 * n >= width) break;
        for (int i = 0; i < 2; ++i) sums[at * width + 8 * n + 2 * (lane % 4) + i] = rows.sum[n][2 * r + i];
      }
    }
    simt::barrier();
    for (int i = simt::thread(); i < (end_row - first) * d; i += simt::threads()) {
      const int row = i / d, c = i % d;
      float top = -INFINITY, total = 0, sum = 0;
      for (int part = 0; part < kUnitGroups; ++part) top = fmaxf(top, tops[part * kGroupRows + row]);
      if constexpr (kPacked) top = fmaxf(top, packed->top[row]);
      for (int part = 0; part < kUnitGroups && top != -INFINITY; ++part) {
        const float worth = simt::exp2_of(tops[part * kGroupRows + row] - top);
        total += worth * totals[part * kGroupRows + row];
        sum += worth * sums[(part * kGroupRows + row) * width + c];
      }
      if constexpr (kPacked) {
        const float worth = top == -INFINITY ? 0.0f : simt::exp2_of(packed->top[row] - top);
        total += worth * packed->total[row], sum += worth * kSum * packed->sum[row][c];
      }
      const Result to = result_of(a, parts, kv_head, first + row);
      to.out[c] = total > 0 ? sum / (kSum * total) : 0.0f;
      if (c == 0) *to.lse = lse_of(top, total);
    }
  }
}

// Grid: x a split, y a KV head of a lane, z a tile of 16 x kRowGroups query rows. Unit i of a step is of warp group i %
// kUnitGroups. kHeadDim: of heads whose packed pages are attended from their planes (packs()); 0: any head, none of them.
template <int kRowGroups, int kUnitGroups, int kHeadDim>
MOSAIC_KERNEL(32 * kRowGroups * kUnitGroups, kUnitGroups > 1 ? 2 : 1)
tensor_kernel(MOSAIC_PARAMETER AttendLanes all, MOSAIC_PARAMETER RopeTable rope, const Parts parts_of_all) {
  int y = simt::block_y();
  if constexpr (kHeadDim != 0) {  // few rows: one tile
    const int heads = all.lane[0].shape.heads;
    AttendArgs a = all.lane[y / heads];
    a.shape.head_dim = kHeadDim;
    const SharedOf<kRowGroups> shared(kHeadDim);
    packed_sums<kHeadDim>(a, rope, run_of(a, a.tokens), y % heads, a.tokens * (a.q_heads / heads),
                          reinterpret_cast<PackedSpace<kHeadDim>*>(shared.slots),
                          reinterpret_cast<PackedSums<kHeadDim>*>(shared.rest));
    y = simt::anew(y);
  }
  attend_units<kRowGroups, kUnitGroups, kHeadDim>(all, rope, parts_of_all, y, simt::block_z());
}

template <int kRowGroups, int kUnitGroups, int kHeadDim>
void queue_tensor(const simt::Queue& on, const AttendLanes& all, int lanes, const RopeTable& rope, int splits,
                  const Parts& parts) {
  const AttendArgs& a = all.lane[0];
  constexpr int kThreads = 32 * kRowGroups * kUnitGroups;
  const int rows = a.tokens * (a.q_heads / a.shape.heads), tile = kGroupRows * kRowGroups;
  const simt::Grid grid{static_cast<unsigned>(splits), static_cast<unsigned>(lanes * a.shape.heads),
                        static_cast<unsigned>((rows + tile - 1) / tile)};
  const size_t records = static_cast<size_t>(kThreads / simt::kWarp * a.shape.head_dim) * sizeof(float);
  const size_t rest = kHeadDim != 0 ? sizeof(PackedSums < kHeadDim != 0 ? kHeadDim : simt::kWarp >) : records;
  const size_t bytes = kSlots * slot_bytes(a.shape.head_dim) + 2 * kSlots * sizeof(TileKeys) +
                       low_bytes(a.shape.head_dim, kRowGroups) + rest;
  simt::launch(on, "attend", tensor_kernel<kRowGroups, kUnitGroups, kHeadDim>, grid, kThreads, bytes, all, rope, parts);
}

}  // namespace mosaic::MOSAIC_SIMT
