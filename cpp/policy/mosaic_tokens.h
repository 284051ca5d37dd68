// mosaic, unit="tokens": clusters of tokens that exist (mosaic_tokens.cc).
#pragma once

#include "policy/policy.h"

namespace mosaic {

std::unique_ptr<Policy> make_mosaic_of_tokens(const PolicySettings& settings);

}  // namespace mosaic
