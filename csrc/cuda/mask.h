// Mask packing on the device. Launchers take pointers, sizes and a stream, and return what the launch said.
#pragma once

#include "stream.h"

namespace maskfuse::cuda {

// dense [rows, columns] bytes 0/1 -> bits [rows, ceil(columns / 32)], contiguous.
cudaError_t mask_pack(const uint8_t* dense, int64_t rows, int64_t columns, uint32_t* bits, cudaStream_t stream);

// The inverse.
cudaError_t mask_unpack(const uint32_t* bits, int64_t rows, int64_t columns, uint8_t* dense, cudaStream_t stream);

}  // namespace maskfuse::cuda
