// ByWorth: the memory of a policy by records. Every KV head keeps the tokens that trained decoders will want again, whole
// and packed, and everything kept is read - by questions, and by frames too, for what a token did not see when it was made
// no later reading brings back.
//   worth    the attention a token receives from its own frame and the next ones, times the norm of its value: what the
//            model itself makes of it says best what it will ask for, and carries over between families of models.
//            What others have published is a score= each (Score, by_worth.cc: the next one is a line there). A token
//            that comes while memory is not full has fewer rivals for attention: what it receives counts times the
//            keys that shared it, to the power of key_power
//   likeness a token nearly the same as one that is worth more (centred keys and centred values) is missed less:
//            its worth is taken by 1 - c^4
//   give up  the least, one by one; what is left is never averaged
//   most_tokens  a model that gets worse the more it reads (one trained on short streams) keeps no more than this
// What is on disk, and how it is found, is what policies differ in: edge.cc, mosaic_tokens.cc.
#pragma once

#include <span>

#include "policy/policy.h"
#include "policy/retention.h"

namespace mosaic {

struct WorthSettings {
  int listen = 16;  // frames
  double key_power = 0.5;
  int score = 0;  // of Score::all()
  bool likeness = true;
  int most_tokens = 0;

  void read(SettingReader* reader);
};

// What a token is worth, and what has to be measured for it.
struct Score {
  const char* name;
  float (*worth)(float received, float merit);
  Merit merit = Merit::kValueNorm;
  bool of_template = false;  // received from the template's tokens alone
  bool fades = false;        // the longer ago a token came, the less it is worth
  bool listens = true;       // whether worth() looks at `received`; else nobody measures it

  static std::span<const Score> all();
};

class ByWorth : public Policy, public Retention {
 public:
  ByWorth(const char* name, double index_share, const WorthSettings& worth, const DiskWishes& disk)
      : name_(name),
        index_share_(index_share),
        s_(worth),
        score_(Score::all()[static_cast<size_t>(worth.score)]),
        disk_(disk) {}
  const char* name() const override { return name_; }
  PolicyNeeds needs() const override {
    return {.group = {.records = true}, .share = {.index = index_share_, .most_tokens = s_.most_tokens}};
  }
  Retention* retention() override { return this; }
  void admit(const ClusterStore&, const AdmitBatch&, Placement*) override {}
  int evict(const ClusterStore&, const Need&, Eviction*, int) override { return 0; }
  void serialize(Snapshot&, const ClusterStore&) override {}

  int listen_frames() const override { return s_.listen; }
  bool listens() const override { return score_.listens; }
  float attention_weight(int keys) const override;
  bool compares() const override { return s_.likeness; }
  DiskWishes disk() const override { return disk_; }
  bool listens_to_template() const override { return score_.of_template; }
  Merit merit() const override { return score_.merit; }
  float worth(float received, float merit) const override { return score_.worth(received, merit); }
  int pick_victims(const TokenLog& log, const Listening& heard, int lane, int need, Victim* out) override;

 private:
  const char* name_;
  double index_share_;
  WorthSettings s_;
  Score score_;
  DiskWishes disk_;
};

}  // namespace mosaic
