// Packing the active weights of a matrix ahead of calls: see masked_linear_decode.h.
#pragma once

#include <stdint.h>

#include "dtype.h"

namespace maskfuse {

struct Packed;

// Share of active weights below which columns are listed; above, the mask's bits place weights faster. Measured at
// batch 1 on 4096 x 4096.
inline constexpr double kListedDensity = 0.27;

// Columns are listed in 16 bits.
inline constexpr int64_t kListedColumns = 1 << 16;

// rows[r] = active weights in rows before r; rows has room for rows + 1. Returns the number of active weights.
int64_t packed_rows(const uint32_t* bits, int64_t rows, int64_t columns, int64_t* to);

// Copies the active weights of rows [begin, end), and lists their columns where `at` is not null.
void packed_values(const uint32_t* bits, int64_t columns, const void* weight, int64_t ld, Dtype dtype,
                   const int64_t* rows, int64_t begin, int64_t end, void* values, uint16_t* at);

// Whether a packed weight's rows, and its columns where they are listed, are those of a mask, however they came about.
bool packed_is_sound(const uint32_t* bits, int64_t rows, int64_t columns, const Packed& packed);

}  // namespace maskfuse
