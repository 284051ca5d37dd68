// The CUDA backend as backend.cc sees it; absent.cc answers when it is not compiled in. No CUDA header here.
#pragma once

#include "backend/backend.h"

namespace mosaic::cuda {

BackendInfo info();
Backend make();

}  // namespace mosaic::cuda
