// What mosaic reads for a question.
#include <algorithm>

#include "policy/mosaic.h"

namespace mosaic {

void Mosaic::select(const ClusterStore& store, const SelectQuery& query, const SelectScratch& scratch,
                    SelectResult* result) {
  const ClusterIndex& index = store.index(query.lane);
  int n = score_clusters(store, query, s_.score, scratch);
  const bool few_scenes = has_scenes() && s_.read_scenes > 0 && s_.read_scenes < store.scenes()->size();
  if (few_scenes || s_.levels == Levels::kVisual) store.ops().wait();
  if (few_scenes) n = keep_best_scenes(store, index, n, scratch);
  if (s_.levels == Levels::kVisual) {  // a scene is read as one: its rows share its score
    score_scenes(index, n, scratch);
    for (int i = 0; i < n; ++i) scratch.score[i] = scene_score_[index[scratch.rows[i]].scene];
  }
  take_best(store, query, n, 0, scratch, result);
}

// Scenes by the sum of their clusters' mass, or by the dot product with their mean key (the mean of the clusters'
// products, weighted by count, is that product).
void Mosaic::score_scenes(const ClusterIndex& index, int n, const SelectScratch& scratch) {
  std::fill_n(scene_score_, scenes_, 0.0f);
  std::fill_n(scene_count_, scenes_, 0);
  for (int i = 0; i < n; ++i) {
    const auto scene = static_cast<size_t>(index[scratch.rows[i]].scene);
    const int count = index.count(scratch.rows[i]);
    scene_score_[scene] +=
        (s_.score == ScoreMode::kMass) ? scratch.score[i] : scratch.score[i] * static_cast<float>(count);
    scene_count_[scene] += count;
  }
  for (size_t s = 0; s < scenes_; ++s) {
    if (scene_count_[s] == 0) {
      scene_score_[s] = -std::numeric_limits<float>::infinity();
    } else if (!(s_.score == ScoreMode::kMass)) {
      scene_score_[s] /= static_cast<float>(scene_count_[s]);
    }
  }
}

int Mosaic::keep_best_scenes(const ClusterStore& store, const ClusterIndex& index, int n,
                             const SelectScratch& scratch) {
  score_scenes(index, n, scratch);
  const int scenes = static_cast<int>(scenes_);
  const int best = store.ops().top_k(scene_score_, scenes, std::min(s_.read_scenes, scenes), scene_count_);
  int kept = 0;
  for (int i = 0; i < n; ++i) {
    const SceneId scene = index[scratch.rows[i]].scene;
    if (std::find(scene_count_, scene_count_ + best, scene) == scene_count_ + best) continue;
    scratch.rows[kept] = scratch.rows[i];
    scratch.score[kept++] = scratch.score[i];
  }
  return kept;
}

}  // namespace mosaic
