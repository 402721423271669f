// Products by torch's library: of a masked copy of the weight; or where whole rows and columns are masked on the active
// ones alone, which are gathered before it and put back behind it.
#pragma once

#include "../cuda/masked_linear.h"
#include "cuda_library.h"

namespace maskfuse {

// int32, on the device: the active rows and columns of the weight in rising order, and for each row and column its
// place among these, or -1.
struct ActiveChannels {
  Tensor rows, columns, row_places, column_places;
};

// A plan's tensors as active channels of a weight of rows x columns; throws where they are not.
ActiveChannels active_channels(const Tensor* plan, int64_t rows, int64_t columns, const char* op);

// `like`: of the operands' type and device.
void run_library(const cuda::MaskedGemm& problem, const ActiveChannels& active, const Tensor& like, const char* op);
void run_library(const cuda::MaskedGemm& problem, const Tensor& like, const char* op);

}  // namespace maskfuse
