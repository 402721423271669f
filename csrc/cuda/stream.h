// The types that launchers have in their signatures, for those who only call them.
#pragma once

#include <stdint.h>

#ifdef MASKFUSE_SIMT
#include "../simt/simt.h"
#else
#include <cuda_runtime_api.h>
#endif
