// The invariants, recounted from scratch. Slow; tests call it after every operation, `stress` now and then.
#include <array>
#include <cmath>

#include "core/error.h"
#include "store/cluster_store.h"

namespace mosaic {

namespace {

void require(bool holds, const char* what) {
  if (!holds) throw InvariantError(std::string("ClusterStore: ") + what);
}

}  // namespace

void ClusterStore::check_invariants() const {
  tiers_.check_invariants();
  TokenAccount found;
  std::array<int, TierChain::kMaxTiers> pages_in_tier{};
  int pages = 0;
  for (int lane = 0; lane < shape_.lanes; ++lane) {
    const ClusterIndex& index = this->index(lane);
    for (const ClusterId c : index.live()) {
      const Cluster& cluster = index[c];
      int paged = 0, disk = 0;
      PageId last = kNone;
      for (PageId id = cluster.head; id != kNone; id = pages_[id].next) {
        const Page& page = pages_[id];
        require(page.tier >= 0 && page.tier < tiers_.size(), "a page of a cluster lies in exactly one tier");
        require(page.cluster == c && page.lane == lane, "a page knows its cluster and lane");
        require(page.count > 0 && page.count <= kPageTokens, "a page holds 1 to 16 tokens");
        require(page.spilling == 0 || !tiers_.is_disk(page.tier), "a page being spilled still lies in DRAM");
        if (page.staged != kNone) require(fetch_[page.staged].page == id, "a read copy knows its page");
        paged += page.count;
        disk += tiers_.is_disk(page.tier) ? 1 : 0;
        counter_in(found, page.tier) += page.count;
        ++pages_in_tier[static_cast<size_t>(page.tier)];
        ++pages;
        last = id;
      }
      require(last == cluster.tail, "the chain ends in its tail");
      require(paged == cluster.paged, "a cluster's count of members equals the tokens in its pages");
      require(disk == cluster.disk_pages, "a cluster knows how many of its pages are on disk");
      require(index.count(c) >= paged && (index.count(c) > 0 || !index.has_means()),
              "a cluster saw at least its members");
      require(cluster.first_time <= cluster.last_time, "a time range runs forward");
      require(std::isfinite(index.variance(c)) && index.variance(c) >= -1e-3f, "a variance is finite");
      if (cluster.buffer != kNone) require(index[cluster.buffer].buffer_of == c, "a buffer knows its cluster");
      if (holds_token_in_mean(lane, c)) {
        ++found.exact;
      } else if (index.has_means()) {
        found.collapsed += index.count(c) - paged;
      }
    }
  }
  for (int t = 0; t < tiers_.size(); ++t) {
    const int writing = tiers_.is_disk(t) ? spilling() : 0;
    require(pages_in_tier[static_cast<size_t>(t)] + writing == tiers_.used_slots(t),
            "used slots equal pages in the tier");
  }
  require(pages == pages_.live(), "every live page record belongs to a cluster");
  require(found.exact == account_.exact, "the exact tokens are where the account says");
  require(found.quantised == account_.quantised, "the quantised tokens are where the account says");
  require(found.spilled == account_.spilled, "the spilled tokens are where the account says");
  require(found.collapsed == account_.collapsed, "the collapsed tokens are where the account says");
  require(account_.total() == account_.seen, "every token seen is accounted for");
}

}  // namespace mosaic
