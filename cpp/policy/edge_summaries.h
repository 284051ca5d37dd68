// The earlier edge, whose memory is summaries of like tokens. It wins where a model was trained to find its way among means
// (mosaic-tiny) and forgets on decoders that were not; a model's card may choose it: settings={"unit": "summaries"}.
#pragma once

#include "policy/policy.h"

namespace mosaic {

std::unique_ptr<Policy> make_edge_of_summaries(const PolicySettings& settings);

}  // namespace mosaic
