// edge: ours. Every KV head keeps single tokens by their worth (ByWorth), and with a disk all that ever came is there too:
//   recall   a question reads the share of what was given up that it attends most, token by token, beside all that is kept;
//            and so does a frame (frames_recall): no question finds what the frames after a token did not see
//   rest     what is looked through there and not read counts with the attention it would have had, and a mean value
// What it does on trained decoders stands in docs/results/decoders.md. unit="summaries" is the earlier edge (edge_summaries.cc).
#include "policy/by_worth.h"
#include "policy/edge_summaries.h"

namespace mosaic {

MOSAIC_POLICY("edge", make_edge) {
  if (is_set_to(settings, "unit", "summaries")) return make_edge_of_summaries(without(settings, "unit"));
  WorthSettings worth;
  DiskWishes disk{.question = 0.1, .frame = 0.1};
  int unit_chosen = 0;
  SettingReader reader("edge", settings);
  reader.choice("unit", &unit_chosen, {"tokens", "summaries"});
  worth.read(&reader);
  reader.number("recall", &disk.question, 0, 1)
      .number("frames_recall", &disk.frame, 0, 1)
      .flag("rest", &disk.rest)
      .finish();
  return std::make_unique<ByWorth>("edge", 0.15, worth, disk);
}

}  // namespace mosaic
