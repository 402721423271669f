// What a tile of gathered_conv2d reads, and its sums to the image. Included by gathered_conv2d_{avx2,avx512}.cpp only.
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

// A line of staged columns of one channel, from the image's row at `from`; null where it is outside. The vectors that
// are stored may run over the line's end.
template <class V, class T>
static inline void stage_line(const T* from, const Window& w, typename V::S* to) {
  constexpr int W = V::W;
  int64_t k = 0;
  if (from && w.begin < w.end && w.step > 0 && w.step < W) {
    for (; k < w.begin; k += W) V::store(to + k, V::zero());
    // Of a vector of the image, the pixels at the step.
    const int64_t each = (W - 1) / w.step + 1;
    uint32_t bits = 0;
    for (int64_t i = 0; i < each; ++i) bits |= 1u << (i * w.step);
    for (k = w.begin, from += w.column_at[w.begin]; k < w.end; k += each, from += each * w.step) {
      const auto some = V::load_n(from, (int)min64(W, (w.end - k - 1) * w.step + 1));
      V::store(to + k, w.step == 1 ? some : V::compress(some, bits));
    }
    k = w.end;
  } else if (from) {
    for (; k < w.columns; ++k) to[k] = w.column_at[k] == kOutside ? 0 : widen(from + w.column_at[k]);
  }
  for (; k < w.columns; k += W) V::store(to + k, V::zero());
}

// Pixels of a tile in the result's image: rows that lie one behind another are one.
struct Run {
  int64_t rows, columns;

  Run(const Image& image, const Window& w) : rows(w.out_rows), columns(w.out_columns) {
    if (image.y != columns * image.x) return;
    columns *= rows;
    rows = 1;
  }
};

// `n` pixels at a step from each other, n <= W.
template <class V, class T>
static inline typename V::Reg load_pixels(const T* from, int64_t step, int n) {
  if (step == 1) return V::load_n(from, n);
  typename V::S line[V::W] = {};
  for (int j = 0; j < n; ++j) line[j] = widen(from + j * step);
  return V::load(line);
}
template <class V, class T>
static inline void store_pixels(T* to, int64_t step, int n, typename V::Reg value) {
  if (step == 1) return V::store_n(to, value, n);
  typename V::S line[V::W];
  V::store(line, value);
  for (int j = 0; j < n; ++j) V::store_n(to + j * step, V::set1(line[j]), 1);
}

// Channels list[0, count) of the window, one behind another: [channel][row][column].
template <class V, class T>
static void stage_channels(const Image& image, const Window& w, const int32_t* list, int64_t count, int64_t channels,
                           int64_t plane, typename V::S* to) {
  constexpr int W = V::W;
  const T* const data = (const T*)image.data;
  if (image.c != 1 || image.x == 1) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t row = 0; row < w.rows; ++row)
        stage_line<V, T>(w.row_at[row] == kOutside ? nullptr : data + list[i] * image.c + w.row_at[row], w,
                         to + i * plane + row * w.columns);
    return;
  }
  // Channels lie side by side: W of them and W pixels at a time, for those that are chosen.
  for (int64_t i = 0, end; i < count; i = end) {
    const int64_t group = list[i] / W * W;
    for (end = i + 1; end < count && list[end] < group + W;) ++end;
    const int width = (int)min64(W, channels - group);
    for (int64_t row = 0; row < w.rows; ++row)
      for (int64_t k = 0; k < w.columns; k += W) {
        typename V::Reg r[W];
        const bool outside = w.row_at[row] == kOutside;
        for (int64_t j = 0; j < W; ++j)
          r[j] = outside || k + j >= w.columns || w.column_at[k + j] == kOutside
                     ? V::zero()
                     : V::load_n(data + w.row_at[row] + w.column_at[k + j] + group, width);
        V::transpose(r);
        for (int64_t j = i; j < end; ++j) V::store(to + j * plane + row * w.columns + k, r[list[j] - group]);
      }
  }
}

// Asks for what is staged next, a few lines of memory with each call, into the second-level cache: of each listed
// channel the part of the image that a window reads.
class FetchWindow {
 public:
  FetchWindow(const Image& image, int64_t element, const Window& w, const int32_t* list, int64_t count, int64_t calls)
      : list_(list), count_(w.begin == w.end || w.step <= 0 ? 0 : count), step_(image.c * element) {
    int64_t first = INT64_MAX, last = INT64_MIN;
    for (int64_t i = 0; i < w.rows; ++i)
      if (w.row_at[i] != kOutside) first = min64(first, w.row_at[i]), last = w.row_at[i] > last ? w.row_at[i] : last;
    if (first > last) count_ = 0;
    if (count_ == 0) return;
    from_ = (const char*)image.data + (first + w.column_at[w.begin]) * element;
    bytes_ = (last - first + w.column_at[w.end - 1] - w.column_at[w.begin] + 1) * element;
    share_ = ceil_div(count_ * (bytes_ / 64 + 1), calls);
  }

  void operator()() {
    for (int64_t n = 0; n < share_ && i_ < count_; ++n) {
      __builtin_prefetch(from_ + list_[i_] * step_ + at_, 0, 2);
      at_ += 64;
      if (at_ < bytes_ + 63) continue;
      at_ = 0, ++i_;
    }
  }

 private:
  const int32_t* list_;
  int64_t count_, step_, bytes_ = 0, share_ = 0, i_ = 0, at_ = 0;
  const char* from_ = nullptr;
};

// Some of W channels that lie side by side: from which on, and which of them.
struct Piece {
  int32_t channel;
  uint32_t bits;
};

// The same of an image whose channels lie side by side, in their order, count <= kGradColumns: [row][column][channel],
// `step` from pixel to pixel. The vectors that are stored may run over the end.
template <class V, class T>
static void stage_pixels(const Image& image, const Window& w, const int32_t* list, int64_t count, int64_t channels,
                         int64_t step, typename V::S* to) {
  constexpr int W = V::W;
  Piece pieces[kGradColumns];
  int used = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (used == 0 || list[i] >= pieces[used - 1].channel + W) pieces[used++] = {list[i], 0};
    pieces[used - 1].bits |= 1u << (list[i] - pieces[used - 1].channel);
  }
  const T* const data = (const T*)image.data;
  for (int64_t row = 0; row < w.rows; ++row)
    for (int64_t k = 0; k < w.columns; ++k, to += step) {
      if (w.row_at[row] == kOutside || w.column_at[k] == kOutside) {
        for (int64_t i = 0; i < count; i += W) V::store(to + i, V::zero());
        continue;
      }
      const T* const from = data + w.row_at[row] + w.column_at[k];
      typename V::S* next = to;
      for (int p = 0; p < used; ++p) {
        const auto some = V::load_n(from + pieces[p].channel, (int)min64(W, channels - pieces[p].channel));
        const bool leading = (pieces[p].bits & (pieces[p].bits + 1)) == 0;
        V::store(next, leading ? some : V::compress(some, pieces[p].bits));
        next += __builtin_popcount(pieces[p].bits);
      }
    }
}

// Pixels of the window's tile in the result's image, in lanes of channels list[0, count), count <= W: [pixel][lane].
template <class V, class T>
static void stage_block(const Image& image, const Window& w, const int32_t* list, int count, int64_t channels,
                        typename V::S* to) {
  constexpr int W = V::W;
  const T* const data = (const T*)image.data + w.row0 * image.y + w.column0 * image.x;
  if (image.c == 1 && image.x != 1) {
    // A pixel's channels side by side: pieces of W, which of a piece, and their lanes.
    Piece pieces[W];
    uint32_t lanes[W];
    int used = 0;
    for (int i = 0; i < count; ++i) {
      if (used == 0 || list[i] >= pieces[used - 1].channel + W) pieces[used] = {list[i], 0}, lanes[used++] = 0;
      pieces[used - 1].bits |= 1u << (list[i] - pieces[used - 1].channel);
      lanes[used - 1] |= 1u << i;
    }
    for (int64_t row = 0; row < w.out_rows; ++row)
      for (int64_t k = 0; k < w.out_columns; ++k, to += W) {
        typename V::Reg sum = V::zero();
        for (int p = 0; p < used; ++p) {
          const T* const from = data + row * image.y + k * image.x + pieces[p].channel;
          const auto some = V::load_n(from, (int)min64(W, channels - pieces[p].channel));
          sum = V::add(sum, V::expand(V::compress(some, pieces[p].bits), lanes[p]));
        }
        V::store(to, sum);
      }
    return;
  }
  const Run run(image, w);
  for (int64_t row = 0; row < run.rows; ++row)
    for (int64_t k = 0; k < run.columns; k += W) {
      typename V::Reg r[W];
      const int n = (int)min64(W, run.columns - k);
      const T* const from = data + row * image.y + k * image.x;
      for (int i = 0; i < W; ++i) r[i] = i < count ? load_pixels<V>(from + list[i] * image.c, image.x, n) : V::zero();
      V::transpose(r);
      for (int j = 0; j < n; ++j, to += W) V::store(to, r[j]);
    }
}

// Sums [block][pixel][lane] of channels list[0, count) to the window's pixels of the result. Other channels become
// `fill`, which is null for zeros; `memory` and `groups` are for a pixel.
template <class V, class T>
static void unstage(const Image& image, const Window& w, const int32_t* list, int64_t count, int64_t channels,
                    const T* fill, int64_t pixels, const typename V::S* sums, typename V::S* memory, int32_t* groups) {
  using S = typename V::S;
  constexpr int W = V::W;
  T* const data = (T*)image.data + w.row0 * image.y + w.column0 * image.x;
  if (image.c == 1 && image.x != 1) {
    // A pixel's chosen channels side by side, then vectors of them to their places among the others.
    S *const one = memory, *const rest = memory + channels + 2 * W;
    for (int64_t c = 0; c < channels; ++c) rest[c] = fill ? widen(fill + c) : 0;
    for (int64_t i = 0; i < count; ++i) rest[list[i]] = 0;
    for (int64_t c = 0, i = 0; c < channels; c += W, groups += 2) {
      groups[0] = (int32_t)i, groups[1] = 0;
      while (i < count && list[i] < c + W) groups[1] |= 1 << (list[i++] - c);
    }
    groups -= ceil_div(channels, W) * 2;
    for (int64_t p = 0; p < w.out_rows * w.out_columns; ++p) {
      T* const to = data + p / w.out_columns * image.y + p % w.out_columns * image.x;
      for (int64_t b = 0; b * W < count; ++b) {
        const auto block = V::load(sums + (b * pixels + p) * W);
        if (count == channels)
          V::store_n(to + b * W, block, (int)min64(W, channels - b * W));
        else
          V::store(one + b * W, block);
      }
      for (int64_t c = 0, i = 0; c < channels && count < channels; c += W, i += 2) {
        const int width = (int)min64(W, channels - c);
        const auto some = V::expand(V::load(one + groups[i]), (uint32_t)groups[i + 1]);
        V::store_n(to + c, V::add(some, V::load_n(rest + c, width)), width);
      }
    }
    return;
  }
  const Run run(image, w);
  for (int64_t c = 0, i = 0; c < channels; ++c) {
    if (i < count && list[i] == c) {
      ++i;
      continue;
    }
    const auto value = fill ? V::set1((S)widen(fill + c)) : V::zero();
    for (int64_t row = 0; row < run.rows; ++row)
      for (int64_t k = 0; k < run.columns; k += W)
        store_pixels<V>(data + c * image.c + row * image.y + k * image.x, image.x, (int)min64(W, run.columns - k),
                        value);
  }
  for (int64_t b = 0; b * W < count; ++b, sums += pixels * W)
    for (int64_t row = 0; row < run.rows; ++row)
      for (int64_t k = 0; k < run.columns; k += W) {
        typename V::Reg r[W];
        const int n = (int)min64(W, run.columns - k), used = (int)min64(W, count - b * W);
        for (int i = 0; i < W; ++i) r[i] = V::load(sums + (row * run.columns + k + (i < n ? i : 0)) * W);
        V::transpose(r);
        T* const to = data + row * image.y + k * image.x;
        for (int i = 0; i < used; ++i) store_pixels<V>(to + list[b * W + i] * image.c, image.x, n, r[i]);
      }
}

}  // namespace
}  // namespace maskfuse
