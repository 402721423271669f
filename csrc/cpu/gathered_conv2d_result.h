// Pixels of a tile of gathered_conv2d in the image of its result: to lanes, and sums from lanes.
// Included by gathered_conv2d_{avx2,avx512}.cpp only.
#pragma once

#include "gathered_conv2d_stage.h"

namespace maskfuse {
namespace {

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
