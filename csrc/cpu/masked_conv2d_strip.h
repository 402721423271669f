// Activations of a convolution in lanes, and back. Included by masked_conv2d_{avx2,avx512}.cpp only.
//
// Lanes are output pixels side by side: those of one image row, then the same row of the next image. A unit is 64 bytes
// of them, and a strip is a unit wide and some output rows tall:
//
//   [image 0: x = 0 ... out_w - 1][image 1: x = 0 ... ] ...     row y
//   |---- unit 0 ----|---- unit 1 ----| ...                     row y + 1
//
// The input is copied once for each dx, shifted so that what a lane of the output reads is in that lane: a tap is then
// a line of the copy, `dy` rows further down. With a stride, rows that no output row reads together lie in ranges of
// their own (phases), so that neighbouring output rows always read neighbouring lines:
//
//   input    [channel][copy: dx][staged row: phase, row][lane]       lanes outside the image hold zeros
//   output   [channel][row][lane]
//
// A block of up to four rows is 256 bytes of lanes, one line for the kernels of masked_linear_accumulate.h.
//
// Where there is one tap, rows need not be image rows: pixels are taken one after another, with no lane unused.
#pragma once

#include "masked_conv2d.h"
#include "masked_linear_lanes.h"

namespace maskfuse {
namespace {

template <class S>
inline constexpr int kUnitLanes = kUnitBytes / (int)sizeof(S);

// Which strip: of a group of images, a unit and output rows [row, row + rows) of it.
struct Strip {
  int64_t image, images, unit, row, rows;
};

template <class V>
static inline Strip strip_at(const MaskedConv& g, const Strips& s, int64_t group, int64_t index) {
  constexpr int64_t kUnit = kUnitLanes<typename V::S>;
  Strip strip{group * s.images, min64(s.images, g.shape.batch - group * s.images), index / s.parts, 0, 0};
  strip.row = index % s.parts * s.rows;
  if (s.pointwise) {
    const int64_t left = strip.images * g.shape.out_h * g.shape.out_w - strip.unit * s.rows * kUnit;
    strip.rows = left <= 0 ? 0 : min64(s.rows, ceil_div(left, kUnit));
  } else {
    const bool any = strip.unit * kUnit < strip.images * g.shape.out_w;
    strip.rows = any ? min64(s.rows, g.shape.out_h - strip.row) : 0;
  }
  return strip;
}

// A run of lanes whose elements lie at one step from each other: `count` of them, from the first of `bits` on, in
// `load` elements of memory.
struct Piece {
  int64_t from;
  uint16_t bits;
  uint8_t count, load;
};

// Where the lanes of rows are in an image: element numbers, -1 where there is no pixel; and runs of them, by vector.
template <class V>
struct RowMap {
  static constexpr int kUnit = kUnitLanes<typename V::S>, kVectors = kUnit / V::W;
  int64_t rows;
  int64_t* places;  // [row][lane]
  Piece* pieces;
  int32_t* first;   // [row][vector], and one more
  uint32_t spread;  // bits at the pieces' step

  static size_t bytes(int64_t rows) {
    const size_t lanes = (size_t)(rows * kUnit) * (sizeof(int64_t) + sizeof(Piece));
    return (lanes + (size_t)(rows * kVectors + 1) * sizeof(int32_t) + 63) / 64 * 64;
  }

  RowMap(int64_t rows, void* memory) : rows(rows) {
    places = (int64_t*)memory;
    pieces = (Piece*)(places + rows * kUnit);
    first = (int32_t*)(pieces + rows * kUnit);
  }

  // Finds runs of lanes at `step` elements from each other.
  void find_pieces(int64_t step) {
    if (step < 1) step = 1;  // of a dimension of one element
    const int64_t most = step >= V::W ? 1 : (V::W - 1) / step + 1;
    spread = 0;
    for (int64_t i = 0; i < V::W; i += step) spread |= 1u << i;
    int32_t count = 0;
    for (int64_t i = 0; i < rows * kVectors; ++i) {
      first[i] = count;
      const int64_t* const place = places + i * V::W;
      for (int lane = 0; lane < V::W;) {
        if (place[lane] < 0) {
          ++lane;
          continue;
        }
        int end = lane + 1;
        while (end < V::W && end - lane < most && place[end] == place[end - 1] + step) ++end;
        const int length = end - lane;
        pieces[count++] = {place[lane], (uint16_t)(((1u << length) - 1) << lane), (uint8_t)length,
                           (uint8_t)((length - 1) * step + 1)};
        lane = end;
      }
    }
    first[rows * kVectors] = count;
  }

  // A vector of a row of the image's channel at `from`.
  template <class T>
  typename V::Reg load(const T* from, int64_t vector) const {
    const Piece *p = pieces + first[vector], *const end = pieces + first[vector + 1];
    if (p == end) return V::zero();
    if (p->count == V::W) return V::load_n(from + p->from, V::W);
    typename V::Reg sum = V::zero();
    for (; p < end; ++p) {
      typename V::Reg part = V::load_n(from + p->from, p->load);
      if (p->load != p->count) part = V::compress(part, spread);
      sum = V::add(sum, V::expand(part, p->bits));
    }
    return sum;
  }

  // The inverse, of an image whose pixels lie side by side.
  template <class T>
  void store(T* to, int64_t vector, typename V::Reg value) const {
    const Piece *p = pieces + first[vector], *const end = pieces + first[vector + 1];
    for (; p < end; ++p) V::store_n(to + p->from, V::compress(value, p->bits), p->count);
  }

  // The adjoint of `load`.
  void add(typename V::S* to, int64_t vector, typename V::Reg value) const {
    const Piece *p = pieces + first[vector], *const end = pieces + first[vector + 1];
    for (; p < end; ++p) {
      typename V::Reg part = V::compress(value, p->bits);
      // Lanes behind the piece's own would be spread too.
      if (p->load != p->count) part = V::expand(V::keep(part, (1u << p->count) - 1), spread);
      V::store_n(to + p->from, V::add(V::load_n(to + p->from, p->load), part), p->load);
    }
  }
};

// Calls f(lane, image, y, x) for the output pixels in the lanes of a strip's row.
template <class V, class F>
static inline void for_lanes(const MaskedConv& g, const Strips& s, const Strip& strip, int64_t row, F&& f) {
  constexpr int64_t kUnit = kUnitLanes<typename V::S>;
  const int64_t w = g.shape.out_w, h = s.pointwise ? g.shape.out_h : 1;
  int64_t pixel = (s.pointwise ? strip.unit * s.rows + row : strip.unit) * kUnit;
  const int64_t end = min64(pixel + kUnit, strip.images * h * w);
  int64_t x = pixel % w, y = pixel / w % h, image = strip.image + pixel / w / h;
  for (int lane = 0; pixel < end; ++pixel, ++lane) {
    f(lane, image, s.pointwise ? y : strip.row + row, x);
    if (++x == w) {
      x = 0;
      if (++y == h) y = 0, ++image;
    }
  }
}

// Places in the input of all copies of all staged rows. `lines` begins with those of the first channel's taps.
template <class V>
static void input_places(const MaskedConv& g, const Strips& s, const Strip& strip, const int32_t* lines,
                         RowMap<V>& map) {
  const ConvShape& c = g.shape;
  for (int64_t i = 0; i < map.rows * map.kUnit; ++i) map.places[i] = -1;
  for (int64_t dy = 0; dy < c.kernel_h; ++dy) {
    const int64_t first = lines[dy * c.kernel_w];
    // Rows that a tap before reads as well, further down, are there already.
    int64_t before = dy - 1;
    while (before >= 0 && (dy - before) * c.dilation_h % c.stride_h != 0) --before;
    const int64_t apart = before < 0 ? strip.rows : min64(strip.rows, (dy - before) * c.dilation_h / c.stride_h);
    for (int64_t row = strip.rows - apart; row < strip.rows; ++row)
      for_lanes<V>(g, s, strip, row, [&](int lane, int64_t image, int64_t y, int64_t x) {
        const int64_t iy = y * c.stride_h + dy * c.dilation_h - c.pad_h;
        if (iy < 0 || iy >= c.in_h) return;
        for (int64_t dx = 0; dx < c.kernel_w; ++dx) {
          const int64_t ix = x * c.stride_w + dx * c.dilation_w - c.pad_w;
          if (ix < 0 || ix >= c.in_w) continue;
          map.places[(dx * s.staged_rows + first + row) * map.kUnit + lane] =
              image * g.input.n + iy * g.input.y + ix * g.input.x;
        }
      });
  }
  map.find_pieces(g.input.x * c.stride_w);
}

template <class V>
static void output_places(const MaskedConv& g, const Strips& s, const Strip& strip, RowMap<V>& map) {
  for (int64_t i = 0; i < map.rows * map.kUnit; ++i) map.places[i] = -1;
  for (int64_t row = 0; row < strip.rows; ++row)
    for_lanes<V>(g, s, strip, row, [&](int lane, int64_t image, int64_t y, int64_t x) {
      map.places[row * map.kUnit + lane] = image * g.output.n + y * g.output.y + x * g.output.x;
    });
  map.find_pieces(g.output.x);
}

// Whether channel c has a weight that is active; `pattern` over `taps` columns a channel, or null.
static inline bool channel_is_active(const uint32_t* pattern, int64_t channel, int64_t taps) {
  if (pattern == nullptr) return true;
  for (int64_t i = channel * taps; i < (channel + 1) * taps; ++i)
    if (mask_at(pattern, i) & 1) return true;
  return false;
}

// Channels [begin, end) of an image to lines: channel c's are `plane` lines from (c - begin) * plane on. Those without
// an active weight are not read; a `first` call makes them zeros, which lists may hold for a column that is inactive.
template <class V, class T>
static void stage(const Image& image, const RowMap<V>& map, int64_t begin, int64_t end, const uint32_t* pattern,
                  int64_t taps, int64_t plane, bool first, typename V::S* to) {
  constexpr int W = V::W, kUnit = RowMap<V>::kUnit;
  const T* const from = (const T*)image.data;
  const int64_t vectors = map.rows * map.kVectors;
  if (image.c == 1 && end - begin > 1) {
    for (int64_t c = begin; c < end; c += W) {
      const int width = (int)min64(W, end - c);
      typename V::S* const lines = to + (c - begin) * plane * kUnit;
      for (int64_t v = 0; v < vectors; ++v) {
        const int64_t* const place = map.places + v * W;
        typename V::Reg r[W];
        for (int i = 0; i < W; ++i) r[i] = place[i] < 0 ? V::zero() : V::load_n(from + place[i] + c, width);
        V::transpose(r);
        for (int i = 0; i < W; ++i)
          if (i < width) V::store(lines + i * plane * kUnit + v * W, r[i]);
      }
    }
    return;
  }
  for (int64_t c = begin; c < end; ++c) {
    typename V::S* const lines = to + (c - begin) * plane * kUnit;
    if (!channel_is_active(pattern, c, taps)) {
      if (first) __builtin_memset(lines, 0, (size_t)(plane * kUnit) * sizeof(typename V::S));
      continue;
    }
    for (int64_t v = 0; v < vectors; ++v) V::store(lines + v * W, map.load(from + c * image.c, v));
  }
}

// Rows [row, row + block) of `channels` channels, from lines of `block` units each, to the image.
template <class V, class T>
static void unstage(const Image& image, const RowMap<V>& map, int64_t row, int64_t block, int64_t channel,
                    int64_t channels, const typename V::S* from) {
  constexpr int W = V::W, kUnit = RowMap<V>::kUnit;
  T* const to = (T*)image.data + channel * image.c;
  const int64_t first = row * map.kVectors, vectors = block * map.kVectors;
  if (image.c == 1 && channels > 1) {
    for (int64_t c = 0; c < channels; c += W) {
      const int width = (int)min64(W, channels - c);
      for (int64_t v = 0; v < vectors; ++v) {
        typename V::Reg r[W];
        for (int i = 0; i < W; ++i) r[i] = i < width ? V::load(from + (c + i) * block * kUnit + v * W) : V::zero();
        V::transpose(r);
        const int64_t* const place = map.places + (first + v) * W;
        for (int i = 0; i < W; ++i)
          if (place[i] >= 0) V::store_n(to + place[i] + c, r[i], width);
      }
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t v = 0; v < vectors; ++v)
      map.store(to + c * image.c, first + v, V::load(from + (c * block * kUnit) + v * W));
}

// A strip's rows in blocks of at most four, as even as can be.
struct RowBlock {
  int64_t row;
  int rows;
};
static inline int64_t row_blocks(int64_t rows) { return ceil_div(rows, kBlockUnits); }
static inline RowBlock row_block(int64_t rows, int64_t index) {
  const int64_t blocks = row_blocks(rows), begin = index * rows / blocks;
  return {begin, (int)((index + 1) * rows / blocks - begin)};
}

}  // namespace
}  // namespace maskfuse
