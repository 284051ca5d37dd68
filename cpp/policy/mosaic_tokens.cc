// mosaic, unit="tokens": for decoders that were not trained to read averages, to whom merging unlike tokens is fatal. A
// cluster is an index and the unit that is moved and read, never what is left of its tokens. In memory is what edge
// keeps: single tokens of every KV head by their worth (ByWorth). All that ever came is on disk in clusters, a page each:
// a stretch of tokens is halved by 2-means over keys and values, down to pages (store/token_clusters.h). A question, and a
// frame, weighs clusters by the attention that their mean keys would be paid and reads the best whole; nothing is fetched
// to choose. Scenes, tau and the deferred cut are the other mosaic's: a stretch is cut once, when all of it is known.
// Without a disk it is edge. Its figures: docs/results/decoders.md.
#include "policy/mosaic_tokens.h"

#include "policy/by_worth.h"

namespace mosaic {

std::unique_ptr<Policy> make_mosaic_of_tokens(const PolicySettings& settings) {
  WorthSettings worth;
  DiskWishes disk{.question = 0.25, .frame = 0.25, .clusters = true};
  SettingReader reader("mosaic", settings);
  worth.read(&reader);
  reader.number("recall", &disk.question, 0, 1)
      .number("frames_recall", &disk.frame, 0, 1)
      .number("value_weight", &disk.of_values, 0, 100)
      .finish();
  return std::make_unique<ByWorth>("mosaic", 0.17, worth, disk);
}

}  // namespace mosaic
