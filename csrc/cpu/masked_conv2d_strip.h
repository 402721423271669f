// Activations of a convolution in lanes, and back. Included by masked_conv2d_{avx2,avx512}.cpp only.
//
// Lanes are output pixels side by side: those of one image row, then the same row of the next image. A unit is 64 bytes
// of them, and a strip is some units wide and some output rows tall:
//
//   [image 0: x = 0 ... out_w - 1][image 1: x = 0 ... ] ...     row y
//   |---- unit 0 ----|---- unit 1 ----| ...                     row y + 1
//
// The input is copied once for each dx, shifted so that what a lane of the output reads is in that lane: a tap is then
// a line of the copy, `dy` rows further down. With a stride, rows that no output row reads together lie in ranges of
// their own (phases), so that neighbouring output rows always read neighbouring lines:
//
//   input    [channel][copy: dx][unit][staged row: phase, row][lane]     lanes outside the image hold zeros
//   output   [channel][unit][row][lane]
//
// A block of up to four rows of a unit is 256 bytes of lanes, one line for the kernels of masked_linear_accumulate.h.
//
// Where there is one tap, rows need not be image rows: pixels are taken one after another, with no lane unused.
#pragma once

#include "masked_conv2d.h"
#include "masked_linear_lanes.h"

namespace maskfuse {
namespace {

template <class S>
inline constexpr int kUnitLanes = kUnitBytes / (int)sizeof(S);

// Which strip: of a group of images, units [unit, unit + units) and output rows [row, row + rows) of it.
struct Strip {
  int64_t image, images, unit, units, row, rows;
};

template <class V>
static inline Strip strip_at(const MaskedConv& g, const Strips& s, int64_t group, int64_t index) {
  constexpr int64_t kUnit = kUnitLanes<typename V::S>;
  Strip strip{group * s.images, min64(s.images, g.shape.batch - group * s.images), index / s.parts * s.wide, 0, 0, 0};
  if (s.pointwise) {
    const int64_t left = strip.images * g.shape.out_h * g.shape.out_w - strip.unit * s.rows * kUnit;
    strip.units = left > 0;
    strip.rows = left <= 0 ? 0 : min64(s.rows, ceil_div(left, kUnit));
  } else {
    strip.units = min64(s.wide, ceil_div(strip.images * g.shape.out_w, kUnit) - strip.unit);
    if (strip.units < 0) strip.units = 0;
    strip.row = index % s.parts * s.rows;
    strip.rows = strip.units > 0 ? min64(s.rows, g.shape.out_h - strip.row) : 0;
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

// Lanes whose elements lie side by side: where lane 0's would be, and which they are.
struct Span {
  int64_t from;
  uint32_t bits;
};

// Where the lanes of rows are in an image: element numbers, -1 where there is no pixel; and runs of them, by vector.
template <class V>
struct RowMap {
  static constexpr int W = V::W, kUnit = kUnitLanes<typename V::S>, kVectors = kUnit / W;
  int64_t rows, step;                                    // elements between pixels that the lanes of a row have
  int64_t* places;                                       // [row][lane]
  Piece* pieces;                                         // [row][lane]: a vector's are the first `count` of its own
  Span (*spans)[2];                                      // [row][vector]; of no lanes where a vector needs fewer
  int32_t* count;                                        // [row][vector]
  int32_t *whole, *partial, whole_count, partial_count;  // vectors with all lanes in one span, and others
  uint32_t spread;                                       // bits `step` apart
  bool in_spans;                                         // two a vector hold all

  static size_t bytes(int64_t rows) {
    const size_t lanes = (size_t)(rows * kUnit) * (sizeof(int64_t) + sizeof(Piece));
    const size_t vectors = (size_t)(rows * kVectors) * (3 * sizeof(int32_t) + 2 * sizeof(Span));
    return (lanes + vectors + 63) / 64 * 64;
  }

  RowMap(int64_t rows, int64_t step, void* memory)
      : rows(rows), step(step < 1 ? 1 : step), spread(0) {  // a dimension of one element may have any stride
    places = (int64_t*)memory;
    pieces = (Piece*)(places + rows * kUnit);
    spans = (Span(*)[2])(pieces + rows * kUnit);
    count = (int32_t*)(spans + rows * kVectors);
    whole = count + rows * kVectors;
    partial = whole + rows * kVectors;
    for (int64_t i = 0; i < W; i += this->step) spread |= 1u << i;
  }

  void clear(int64_t row) {
    for (int lane = 0; lane < kUnit; ++lane) places[row * kUnit + lane] = -1;
    for (int v = 0; v < kVectors; ++v) find_runs(row * kVectors + v);
  }

  // Finds a row's runs in its places.
  void find_runs_of(int64_t row) {
    for (int v = 0; v < kVectors; ++v) find_runs(row * kVectors + v);
  }

  // Makes `row` what another one is, `shift` elements further on.
  void shift_row(int64_t row, int64_t other, int64_t shift) {
    for (int lane = 0; lane < kUnit; ++lane) {
      const int64_t place = places[other * kUnit + lane];
      places[row * kUnit + lane] = place < 0 ? -1 : place + shift;
    }
    for (int v = 0; v < kVectors; ++v) {
      const int64_t to = row * kVectors + v, from = other * kVectors + v;
      count[to] = count[from];
      for (int i = 0; i < count[to]; ++i) {
        pieces[to * W + i] = pieces[from * W + i];
        pieces[to * W + i].from += shift;
      }
      for (int i = 0; i < 2; ++i) {
        spans[to][i] = spans[from][i];
        if (spans[to][i].bits != 0) spans[to][i].from += shift;
      }
    }
  }

  // Once all rows are filled: which vectors are whole. In the order of memory, in which all units and copies of a row
  // come one after another, `tall` rows apart, then the next row.
  void finish(int64_t tall) {
    in_spans = step == 1;
    whole_count = partial_count = 0;
    for (int64_t row = 0; row < tall; ++row)
      for (int64_t r = row; r < rows; r += tall)
        for (int v = 0; v < kVectors; ++v) {
          const int64_t i = r * kVectors + v;
          in_spans &= count[i] <= 2;
          if (spans[i][0].bits == V::kAll)
            whole[whole_count++] = (int32_t)i;
          else
            partial[partial_count++] = (int32_t)i;
        }
  }

  // A vector of a row of the image's channel at `from`.
  template <class T>
  typename V::Reg load(const T* from, int64_t vector) const {
    typename V::Reg sum = V::zero();
    for (int i = 0; i < count[vector]; ++i) {
      const Piece& p = pieces[vector * W + i];
      typename V::Reg part = V::load_n(from + p.from, p.load);
      if (p.load != p.count) part = V::compress(part, spread);
      sum = V::add(sum, V::expand(part, p.bits));
    }
    return sum;
  }

  // The inverse, of an image whose pixels lie side by side.
  template <class T>
  void store(T* to, int64_t vector, typename V::Reg value) const {
    for (int i = 0; i < count[vector]; ++i) {
      const Piece& p = pieces[vector * W + i];
      V::store_n(to + p.from, V::compress(value, p.bits), p.count);
    }
  }

  // The adjoint of `load`, where there are spans.
  void add_spans(typename V::S* to, int64_t vector, typename V::Reg value) const {
    for (const Span& s : spans[vector])
      if (s.bits != 0) {
        const typename V::Reg before = V::blend(V::zero(), to + s.from, s.bits);
        V::store_bits(to + s.from, V::add(before, value), s.bits);
      }
  }

  // The adjoint of `load`.
  void add(typename V::S* to, int64_t vector, typename V::Reg value) const {
    for (int i = 0; i < count[vector]; ++i) {
      const Piece& p = pieces[vector * W + i];
      typename V::Reg part = V::compress(value, p.bits);
      // Lanes behind the piece's own would be spread too.
      if (p.load != p.count) part = V::expand(V::keep(part, (1u << p.count) - 1), spread);
      V::store_n(to + p.from, V::add(V::load_n(to + p.from, p.load), part), p.load);
    }
  }

 private:
  void find_runs(int64_t vector) {
    const int64_t most = step >= W ? 1 : (W - 1) / step + 1;
    const int64_t* const place = places + vector * W;
    Piece* const to = pieces + vector * W;
    int found = 0;
    for (int lane = 0; lane < W;) {
      if (place[lane] < 0) {
        ++lane;
        continue;
      }
      int end = lane + 1;
      while (end < W && end - lane < most && place[end] == place[end - 1] + step) ++end;
      const int length = end - lane;
      to[found++] = {place[lane], (uint16_t)(((1u << length) - 1) << lane), (uint8_t)length,
                     (uint8_t)((length - 1) * step + 1)};
      lane = end;
    }
    count[vector] = found;
    for (int i = 0; i < 2; ++i)
      spans[vector][i] = i < found ? Span{to[i].from - __builtin_ctz(to[i].bits), to[i].bits} : Span{0, 0};
  }
};

// Calls f(lane, image, y, x) for the output pixels in the lanes of a row of one of a strip's units.
template <class V, class F>
static inline void for_lanes(const MaskedConv& g, const Strips& s, const Strip& strip, int64_t unit, int64_t row,
                             F&& f) {
  constexpr int64_t kUnit = kUnitLanes<typename V::S>;
  const int64_t w = g.shape.out_w, h = s.pointwise ? g.shape.out_h : 1;
  int64_t pixel = (s.pointwise ? strip.unit * s.rows + row : strip.unit + unit) * kUnit;
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

// Fills `map`, of all copies of all staged rows of the input. `lines` begins with those of the first channel's taps.
template <class V>
static void input_places(const MaskedConv& g, const Strips& s, const Strip& strip, const int32_t* lines,
                         RowMap<V>& map) {
  const ConvShape& c = g.shape;
  for (int64_t r = 0; r < map.rows; ++r) map.clear(r);
  for (int64_t dy = 0; dy < c.kernel_h; ++dy) {
    // Rows that a tap before reads as well, further down, are there already.
    int64_t before = dy - 1;
    while (before >= 0 && (dy - before) * c.dilation_h % c.stride_h != 0) --before;
    const int64_t apart = before < 0 ? strip.rows : min64(strip.rows, (dy - before) * c.dilation_h / c.stride_h);
    for (int64_t unit = 0; unit < strip.units; ++unit)
      for (int64_t dx = 0; dx < c.kernel_w; ++dx) {
        const int64_t line = (dx * s.wide + unit) * s.staged_rows + lines[dy * c.kernel_w];
        int64_t known = -1, known_y = 0;  // a row of the same lanes, and which of the image it is
        for (int64_t row = strip.rows - apart; row < strip.rows; ++row) {
          const int64_t iy = (strip.row + row) * c.stride_h + dy * c.dilation_h - c.pad_h;
          if (!s.pointwise && (iy < 0 || iy >= c.in_h)) continue;
          if (!s.pointwise && known >= 0) {
            map.shift_row(line + row, known, (iy - known_y) * g.input.y);
            continue;
          }
          for_lanes<V>(g, s, strip, unit, row, [&](int lane, int64_t image, int64_t y, int64_t x) {
            const int64_t ly = y * c.stride_h + dy * c.dilation_h - c.pad_h;
            const int64_t lx = x * c.stride_w + dx * c.dilation_w - c.pad_w;
            if (ly >= 0 && ly < c.in_h && lx >= 0 && lx < c.in_w)
              map.places[(line + row) * map.kUnit + lane] = image * g.input.n + ly * g.input.y + lx * g.input.x;
          });
          map.find_runs_of(line + row);
          known = line + row, known_y = iy;
        }
      }
  }
  map.finish(s.staged_rows);
}

template <class V>
static void output_places(const MaskedConv& g, const Strips& s, const Strip& strip, RowMap<V>& map) {
  for (int64_t unit = 0; unit < s.wide; ++unit)
    for (int64_t row = 0; row < s.rows; ++row) {
      const int64_t line = unit * s.rows + row;
      map.clear(line);
      if (unit >= strip.units || row >= strip.rows) continue;
      if (row > 0 && !s.pointwise) {
        map.shift_row(line, line - 1, g.output.y);
        continue;
      }
      for_lanes<V>(g, s, strip, unit, row, [&](int lane, int64_t image, int64_t y, int64_t x) {
        map.places[line * map.kUnit + lane] = image * g.output.n + y * g.output.y + x * g.output.x;
      });
      map.find_runs_of(line);
    }
  map.finish(s.rows);
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
    const T* const channel = from + c * image.c;
    if (!channel_is_active(pattern, c, taps)) {
      if (first) __builtin_memset(lines, 0, (size_t)(plane * kUnit) * sizeof(typename V::S));
      continue;
    }
    if constexpr (V::template kMasks<T>) {
      if (map.in_spans) {
        for (int32_t i = 0; i < map.whole_count; ++i) {
          const int64_t v = map.whole[i];
          V::store(lines + v * W, V::load_n(channel + map.spans[v][0].from, W));
        }
        for (int32_t i = 0; i < map.partial_count; ++i) {
          const int64_t v = map.partial[i];
          const Span* const s = map.spans[v];
          const auto one = V::blend(V::zero(), channel + s[0].from, s[0].bits);
          V::store(lines + v * W, V::blend(one, channel + s[1].from, s[1].bits));
        }
        continue;
      }
    }
    for (int64_t v = 0; v < vectors; ++v) V::store(lines + v * W, map.load(channel, v));
  }
}

// `channels` channels of a strip's output, `plane` lines each, to the image, from `channel` on.
template <class V, class T>
static void unstage(const Image& image, const RowMap<V>& map, int64_t channel, int64_t channels, int64_t plane,
                    const typename V::S* from) {
  constexpr int W = V::W, kUnit = RowMap<V>::kUnit;
  T* const to = (T*)image.data + channel * image.c;
  const int64_t vectors = map.rows * map.kVectors;
  if (image.c == 1 && channels > 1) {
    for (int64_t c = 0; c < channels; c += W) {
      const int width = (int)min64(W, channels - c);
      for (int64_t v = 0; v < vectors; ++v) {
        typename V::Reg r[W];
        for (int i = 0; i < W; ++i) r[i] = i < width ? V::load(from + (c + i) * plane * kUnit + v * W) : V::zero();
        V::transpose(r);
        const int64_t* const place = map.places + v * W;
        for (int i = 0; i < W; ++i)
          if (place[i] >= 0) V::store_n(to + place[i] + c, r[i], width);
      }
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    const typename V::S* const lines = from + c * plane * kUnit;
    T* const channel_to = to + c * image.c;
    if constexpr (V::template kMasks<T>) {
      if (map.in_spans) {
        for (int32_t i = 0; i < map.whole_count; ++i) {
          const int64_t v = map.whole[i];
          V::store_n(channel_to + map.spans[v][0].from, V::load(lines + v * W), W);
        }
        for (int32_t i = 0; i < map.partial_count; ++i) {
          const int64_t v = map.partial[i];
          const Span* const s = map.spans[v];
          const auto value = V::load(lines + v * W);
          for (int j = 0; j < 2; ++j)
            if (s[j].bits != 0) V::store_bits(channel_to + s[j].from, value, s[j].bits);
        }
        continue;
      }
    }
    for (int64_t v = 0; v < vectors; ++v) map.store(channel_to, v, V::load(lines + v * W));
  }
}

// A strip in blocks of at most four rows of a unit, as even as can be: the unit, its first row and how many.
struct RowBlock {
  int64_t unit, row;
  int rows;
};
static inline int64_t row_blocks(const Strip& strip) { return strip.units * ceil_div(strip.rows, kBlockUnits); }
static inline RowBlock row_block(const Strip& strip, int64_t index) {
  const int64_t blocks = ceil_div(strip.rows, kBlockUnits), i = index % blocks, begin = i * strip.rows / blocks;
  return {index / blocks, begin, (int)((i + 1) * strip.rows / blocks - begin)};
}

}  // namespace
}  // namespace maskfuse
