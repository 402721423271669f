// Masked products by torch's own matrix library, where it is faster than the kernels here: products of which little is
// masked, half types on processors that multiply them, and masks that are whole rows and columns.
#pragma once

#include "../cpu/masked_linear.h"

namespace maskfuse {

// Runs `problem` as LibraryProduct says. Kernels of `isa` do what surrounds the product.
void run_library(const MaskedGemm& problem, Isa isa);

}  // namespace maskfuse
