// Retention: what a policy by records says. Every KV head keeps tokens of its own in a TokenLog; the policy says what a token
// is worth and which are given up when a lane is full. It reads, KvMemory carries out. See policy/by_worth.h.
#pragma once

#include "store/listening.h"
#include "store/token_log.h"

namespace mosaic {

// A token that is given up: its slot, and where it is heard still (frame and token of Listening), else kNone.
struct Victim {
  TokenSlot slot = kNone;
  int32_t frame = kNone;
  int32_t token = kNone;
  float rank = 0;
};

// What is read of tokens that were given up and are on disk.
struct DiskWishes {
  double question = 0;    // of a lane's, the share that a question reads
  double frame = 0;       // and a frame
  bool rest = false;      // whether what is not read counts with its mass
  bool clusters = false;  // they are found and read by clusters; else one by one
  float of_values = 1;    // weight of values beside keys, where clusters are cut
};

// What is measured of a token when it leaves the window, beside the attention that it receives.
enum class Merit : uint8_t {
  kValueNorm,
  kChange,  // FrameChange: of its key against what came after it at the same place, 0 (the same) to 2
};

class Retention {
 public:
  virtual ~Retention() = default;
  // Frames after its own that a token is listened to.
  virtual int listen_frames() const = 0;
  // Whether worth() looks at the attention that a token receives; else it is not measured, and there is no room for it.
  virtual bool listens() const = 0;
  // What attention counts for, by how many keys shared it: a token that comes early has fewer rivals.
  virtual float attention_weight(int keys) const = 0;
  // Whether of a frame's tokens those of its template alone are listened to: what stands behind the picture, or its last one.
  virtual bool listens_to_template() const = 0;
  virtual Merit merit() const = 0;
  // What a token is worth, from the attention it received and its merit.
  virtual float worth(float attention_received, float merit) const = 0;
  // Whether likeness to better tokens is wanted (TokenLog::likeness).
  virtual bool compares() const = 0;
  virtual DiskWishes disk() const = 0;
  // At least `need` tokens of a full lane, those that are missed least. out [TokenLog::capacity()]; returns how many.
  virtual int pick_victims(const TokenLog& log, const Listening& heard, int lane, int need, Victim* out) = 0;
};

}  // namespace mosaic
