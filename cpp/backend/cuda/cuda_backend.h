// The CUDA backend as backend.cc sees it; absent.cc answers when it is not compiled in. No CUDA header here.
#pragma once

#include "backend/backend.h"

namespace mosaic::cuda {

BackendInfo info();
// blocking: every op has run when its call returns; else Ops::wait() or Device::wait() says so.
Backend make(bool blocking = true);

}  // namespace mosaic::cuda
