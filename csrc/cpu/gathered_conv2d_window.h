// Where a tile of gathered_conv2d is in its images, and which channels of them are chosen.
// Included by gathered_conv2d_{avx2,avx512}.cpp only.
#pragma once

#include "gathered_conv2d.h"
#include "masked_linear_weight.h"

namespace maskfuse {
namespace {

inline constexpr int64_t kOutside = INT64_MIN;

// `n` bits from bit `at` on, n <= 16.
static inline uint32_t bits_from(const uint32_t* bits, int64_t at, int n) {
  uint32_t word = mask_at(bits, at);
  if ((at & 31) + n > 32) word |= bits[(at >> 5) + 1] << (32 - (at & 31));
  return word & ((1u << n) - 1);
}

// Channels that are chosen, in order; returns their number.
static inline int64_t list_channels(const uint32_t* bits, int64_t channels, int32_t* list) {
  int64_t count = 0;
  for (int64_t c = 0; c < channels; c += 32) {
    const uint32_t inside = channels - c >= 32 ? ~0u : (1u << (channels - c)) - 1;
    for (uint32_t word = bits ? bits[c / 32] & inside : inside; word != 0; word &= word - 1)
      list[count++] = (int32_t)(c + __builtin_ctz(word));
  }
  return count;
}

static inline const uint32_t* chosen_of(const uint32_t* bits, int64_t ld, int64_t image) {
  return bits ? bits + image * ld : nullptr;
}

// Where the staged rows and columns of a tile are in the image, in elements, or kOutside; and the staged position that
// the tile's first pixel reads for each tap.
struct Window {
  int64_t rows, columns;  // staged
  int64_t *row_at, *column_at, *tap_at;
  int64_t out_rows, out_columns, row0, column0;  // of the tile
  int64_t begin, end;                            // columns inside the image,
  int64_t step;                                  // and how far they lie from each other, or 0 where that differs

  Window(const MaskedConv& g, const Tiling& t, int64_t tile, void* memory)
      : rows(t.staged_rows), columns(t.staged_columns) {
    const ConvShape& c = g.shape;
    row_at = (int64_t*)memory, column_at = row_at + rows, tap_at = column_at + columns;
    int64_t *const first_row = tap_at + c.taps(), *const first_column = first_row + c.kernel_h;
    row0 = tile / t.across * t.rows, column0 = tile % t.across * t.columns;
    out_rows = min64(t.rows, c.out_h - row0), out_columns = min64(t.columns, c.out_w - column0);
    staged(rows_of(c), t.rows, first_row, row_at);
    staged(columns_of(c), t.columns, first_column, column_at);
    for (int64_t dy = 0; dy < c.kernel_h; ++dy)
      for (int64_t dx = 0; dx < c.kernel_w; ++dx)
        tap_at[dy * c.kernel_w + dx] = first_row[dy] * columns + first_column[dx];
    for (int64_t i = 0; i < rows; ++i)
      row_at[i] = inside(row0 * c.stride_h + row_at[i] - c.pad_h, c.spread_h, c.in_h, g.input.y);
    begin = columns, end = 0;
    for (int64_t i = 0; i < columns; ++i) {
      column_at[i] = inside(column0 * c.stride_w + column_at[i] - c.pad_w, c.spread_w, c.in_w, g.input.x);
      if (column_at[i] == kOutside) continue;
      begin = min64(begin, i);
      end = i + 1;
    }
    step = begin + 1 < end && column_at[begin + 1] != kOutside ? column_at[begin + 1] - column_at[begin] : g.input.x;
    for (int64_t i = begin + 1; i < end; ++i)
      if (column_at[i] != column_at[i - 1] + step) step = 0;
    if (begin > end) begin = end;
  }

 private:
  static int64_t inside(int64_t at, int64_t spread, int64_t size, int64_t step) {
    if (at < 0 || at % spread != 0 || at / spread >= size) return kOutside;
    return at / spread * step;
  }
};

}  // namespace
}  // namespace maskfuse
