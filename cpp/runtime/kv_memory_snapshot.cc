// A memory into a snapshot and back. Nothing is open when it is saved, and nothing of it changes by that: what comes after is
// the same whether it was saved or not, and the same again where it was restored.
#include <limits>

#include "core/error.h"
#include "runtime/kv_memory.h"
#include "runtime/session_facts.h"

namespace mosaic {

void KvMemory::save(SnapshotWriter& to) {
  const OneCaller::Turn turn(caller_);
  if (block_ != BlockKind::kNone)
    throw InvalidInput("KvMemory: a block is open; commit() or abort() it before save().");
  if (asking_) throw InvalidInput("KvMemory: a question is open; close_question() before save().");
  on_device([&] {
    backend_.ops->wait();
    serialize(to);
  });
}

void KvMemory::restore(SnapshotReader& from) {
  try {
    serialize(from);
    check_all();
  } catch (const InvariantError& error) {  // of what the file holds
    from.refuse(error.what());
  }
  note_stats();
}

void KvMemory::serialize(Snapshot& s) {
  constexpr auto kMost = std::numeric_limits<int64_t>::max();
  serialize_facts(s, session_facts(plan_, *policy_));
  s.section("BASE");
  s.in_range(next_position_, 0, kLastPosition, "the next position");
  s.in_range(frames_, 0, std::numeric_limits<int32_t>::max(), "frames");
  for (int64_t* count : {&questions_, &frame_reads_, &question_reads_, &saturated_, &refused_overflows_})
    s.in_range(*count, 0, kMost, "a counter");
  selector_.serialize(s);
  evidence_.serialize(s);
  const int places = std::min(plan_.config.prefix_tokens + model().frame_tokens, plan_.rope_positions);
  RestoredPage room(*backend_.ops, plan_.store.page, {kLastPosition, places});
  s.section("WIND");
  window_.serialize(s, &room);
  dialogue_.serialize(s);
  check_end(s);
  store_.serialize(s, &room);
  if (records_) records_->serialize(s, window_, &room);
  s.section("RULE");
  policy_->serialize(s, store_);
}

// Where the stream goes on follows from what came last: the next position is read by rotation.
void KvMemory::check_end(const Snapshot& s) const {
  const int frames = window_.frames();
  s.require((frames > 0) == (frames_ > 0), "the window has the newest frames");
  if (frames == 0) return s.require(next_position_ == window_.prefix_tokens, "a stream begins behind the prefix");
  const WindowFrame& last = window_.frame(frames - 1);
  s.require(last.number == frames_ - 1, "the newest frame is the window's last");
  s.require(next_position_ > last.first_position && next_position_ - last.first_position <= last.tokens,
            "a stream goes on behind its last frame");
}

}  // namespace mosaic
