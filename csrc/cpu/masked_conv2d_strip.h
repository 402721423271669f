// Activations of a convolution in lanes, and back. Included by {masked,gathered}_conv2d_{avx2,avx512}.cpp only.
//
// Lanes are output pixels side by side: those of one image row, then the same row of the next image. A unit is 64 bytes
// of them; a strip is a unit of a few output rows below one another:
//
//   [image 0: x = 0 ... out_w - 1][image 1: x = 0 ... ] ...     row y
//   |---- unit 0 ----|---- unit 1 ----| ...                     row y + 1
//
// The input is copied once for each dx, shifted so that what a lane of the output reads is in that lane: a tap is then
// a line of the copy, `dy` rows further down. With a stride, rows that no output row reads together lie in ranges of
// their own (phases), so that neighbouring output rows always read neighbouring lines:
//
//   input    [channel][copy: dx][staged row: phase, row][lane]     lanes outside the image hold zeros
//   output   [channel][row][lane]
//
// A block of up to four rows is 256 bytes of lanes, one line for the kernels of masked_linear_accumulate.h. A strip is
// one block, or, for weight_grad, two.
//
// Where there is one tap, rows need not be image rows: pixels are taken one after another, with no lane unused.
#pragma once

#include "masked_conv2d.h"
#include "masked_linear_lanes.h"

namespace maskfuse {
namespace {

template <class S>
inline constexpr int kUnitLanes = kUnitBytes / (int)sizeof(S);

// Which strip: of a unit, output rows [row, row + rows). Of pixels one after another, `rows` units from `unit` on.
struct Strip {
  int64_t unit, row, rows;
};

template <class V>
static inline Strip strip_at(const MaskedConv& g, const Strips& s, int64_t index) {
  constexpr int64_t kUnit = kUnitLanes<typename V::S>;
  const ConvShape& c = g.shape;
  if (s.pointwise) {
    const int64_t unit = index * s.rows;
    return {unit, 0, min64(s.rows, ceil_div(c.pixels(), kUnit) - unit)};
  }
  // As even as can be; an even number of rows where they make two blocks.
  const int64_t part = index % s.parts, grain = s.rows > kBlockUnits ? 2 : 1, rows = ceil_div(c.out_h, grain);
  const int64_t begin = part * rows / s.parts * grain, end = min64((part + 1) * rows / s.parts * grain, c.out_h);
  return {index / s.parts, begin, end - begin};
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

// A row of the image: elements further on, or outside; and where its lines begin, in elements.
struct StagedRow {
  int64_t shift, line;
};

// Where lanes are in an image. A pattern is a unit's lanes in one row of the image; rows, the same for all patterns,
// are elements further on, or outside the image. Lines are [pattern][row], or, where told so, [row][pattern].
template <class V>
struct LaneMap {
  static constexpr int W = V::W, kUnit = kUnitLanes<typename V::S>, kVectors = kUnit / W;
  static constexpr int64_t kOutside = INT64_MIN;
  static constexpr int kMostTouched = 64;

  int64_t patterns, rows, inside, step;  // rows inside the image; elements between the pixels of lanes
  int64_t pattern_step, row_step;        // lines
  int64_t* shift;                        // [row]: elements, or kOutside
  StagedRow* sorted;                     // those inside the image first
  int64_t* places;                       // [pattern][lane]: element number, -1 where there is no pixel
  Piece* pieces;                         // [pattern][lane]: a vector's are the first `count` of its own
  Span (*spans)[2];                      // [pattern][vector]; of no lanes where a vector needs fewer
  int32_t* count;                        // [pattern][vector]
  uint32_t spread;                       // bits `step` apart
  bool in_spans, whole;                  // two a vector hold all; one does, and has all lanes
  int touched;                           // elements, one in each line of memory that lanes of a row are in
  int64_t touch[kMostTouched];

  // As much as masked_conv2d.cpp gives.
  static constexpr size_t kPatternBytes = kUnit * (sizeof(int64_t) + sizeof(Piece)) + kVectors * (2 * sizeof(Span) + 4);
  static_assert(kPatternBytes <= kUnit * kLaneMapBytes);

  static size_t bytes(int64_t patterns, int64_t rows) {
    return ((size_t)patterns * kPatternBytes + (size_t)rows * 3 * sizeof(int64_t) + 63) / 64 * 64;
  }

  LaneMap() = default;
  // Clear: no lane has a pixel, no row is in the image. A dimension of one element may have any stride.
  LaneMap(int64_t patterns, int64_t rows, int64_t step, void* memory)
      : patterns(patterns),
        rows(rows),
        inside(0),
        step(step < 1 ? 1 : step),
        pattern_step(rows),
        row_step(1),
        spread(0),
        in_spans(false),
        whole(false),
        touched(0) {
    shift = (int64_t*)memory;
    sorted = (StagedRow*)(shift + rows);
    places = (int64_t*)(sorted + rows);
    pieces = (Piece*)(places + patterns * kUnit);
    spans = (Span(*)[2])(pieces + patterns * kUnit);
    count = (int32_t*)(spans + patterns * kVectors);
    for (int64_t i = 0; i < W; i += this->step) spread |= 1u << i;
    for (int64_t i = 0; i < patterns * kUnit; ++i) places[i] = -1;
    clear_rows();
  }

  int64_t line(int64_t pattern, int64_t row) const { return pattern * pattern_step + row * row_step; }

  void clear_rows() {
    for (int64_t r = 0; r < rows; ++r) shift[r] = kOutside;
  }

  // Once all rows are known.
  void sort_rows() {
    int64_t last = rows;
    inside = 0;
    for (int64_t r = 0; r < rows; ++r)
      sorted[shift[r] == kOutside ? --last : inside++] = {shift[r], r * row_step * kUnit};
  }

  // Once all places are known.
  void find_runs() {
    in_spans = whole = step == 1;
    for (int64_t v = 0; v < patterns * kVectors; ++v) {
      find_runs(v);
      in_spans &= count[v] <= 2;
      whole &= spans[v][0].bits == V::kAll;
      for (int i = 0; i < count[v]; ++i) {
        const Piece& p = pieces[v * W + i];
        for (int64_t e = p.from; e < p.from + p.load + 15; e += 16)
          touch_line(e < p.from + p.load ? e : p.from + p.load - 1);
      }
    }
  }

  // A vector of a row of the image's channel that begins at `from`.
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
  // The same of spans.
  template <class T>
  void store_spans(T* to, int64_t vector, typename V::Reg value) const {
    const Span* const s = spans[vector];
    if (s[0].bits == V::kAll) return V::store_n(to + s[0].from, value, W);
    for (int i = 0; i < 2; ++i)
      if (s[i].bits != 0) V::store_bits(to + s[i].from, value, s[i].bits);
  }
  // A vector of all lines, which are of one row or of one pattern, to a channel of the image.
  template <class T>
  void store_line(T* to, int vector, typename V::Reg value) const {
    if (rows == 1)
      store_spans(to + shift[0], vector, value);
    else
      store_spans(to + shift[vector / kVectors], vector % kVectors, value);
  }

 private:
  // Whatever the size of an element, 16 of them are a line: at most a few requests too many.
  void touch_line(int64_t element) {
    for (int i = 0; i < touched; ++i)
      if (element - touch[i] < 8 && touch[i] - element < 8) return;
    if (touched < kMostTouched) touch[touched++] = element;
  }

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

// Calls f(lane, image, y, x) for the output pixels in the lanes of a unit: in one row of the images, or, where strips
// are of pixels one after another, in any.
template <class V, class F>
static inline void for_lanes(const MaskedConv& g, const Strips& s, int64_t unit, F&& f) {
  constexpr int64_t kUnit = kUnitLanes<typename V::S>;
  const int64_t w = g.shape.out_w, h = s.pointwise ? g.shape.out_h : 1;
  int64_t pixel = unit * kUnit;
  const int64_t end = min64(pixel + kUnit, g.shape.batch * h * w);
  int64_t x = pixel % w, y = pixel / w % h, image = pixel / w / h;
  for (int lane = 0; pixel < end; ++pixel, ++lane) {
    f(lane, image, y, x);
    if (++x == w) {
      x = 0;
      if (++y == h) y = 0, ++image;
    }
  }
}

// The row or column of the input that one of the output reads; -1 where it is outside, or between the input's pixels.
static inline int64_t read_at(int64_t at, int64_t spread, int64_t size) {
  if (at < 0 || at % spread != 0) return -1;
  return at / spread < size ? at / spread : -1;
}

// The map of all copies of the input of a strip. Rows are for `input_rows` to fill.
template <class V>
static LaneMap<V> input_map(const MaskedConv& g, const Strips& s, const Strip& strip, void* memory) {
  const ConvShape& c = g.shape;
  const int64_t units = s.pointwise ? s.rows : 1, used = s.pointwise ? strip.rows : 1;
  const int64_t step = c.spread_w > 1 ? 1 : g.input.x * c.stride_w;
  LaneMap<V> map(c.kernel_w * units, s.pointwise ? 1 : s.staged_rows, step, memory);
  for (int64_t dx = 0; dx < c.kernel_w; ++dx)
    for (int64_t unit = 0; unit < used; ++unit)
      for_lanes<V>(g, s, strip.unit + unit, [&](int lane, int64_t image, int64_t y, int64_t x) {
        const int64_t iy = s.pointwise ? read_at(y * c.stride_h - c.pad_h, c.spread_h, c.in_h) : 0;
        const int64_t ix = read_at(x * c.stride_w + dx * c.dilation_w - c.pad_w, c.spread_w, c.in_w);
        if (iy >= 0 && ix >= 0)
          map.places[(dx * units + unit) * map.kUnit + lane] = image * g.input.n + iy * g.input.y + ix * g.input.x;
      });
  map.find_runs();
  return map;
}

// Fills the rows of an input's map; `first` is the staged row that output row 0 reads for each dy.
template <class V>
static void input_rows(const MaskedConv& g, const Strips& s, const Strip& strip, const int64_t* first,
                       LaneMap<V>& map) {
  const ConvShape& c = g.shape;
  map.clear_rows();
  if (s.pointwise) map.shift[0] = 0;
  for (int64_t dy = 0; dy < c.kernel_h && !s.pointwise; ++dy)
    for (int64_t row = 0; row < strip.rows; ++row) {
      const int64_t y = read_at((strip.row + row) * c.stride_h + dy * c.dilation_h - c.pad_h, c.spread_h, c.in_h);
      if (y >= 0) map.shift[first[dy] + row] = y * g.input.y;
    }
  map.sort_rows();
}

template <class V>
static LaneMap<V> output_map(const MaskedConv& g, const Strips& s, const Strip& strip, void* memory) {
  LaneMap<V> map(s.pointwise ? s.rows : 1, s.pointwise ? 1 : s.rows, g.output.x, memory);
  for (int64_t unit = 0; unit < (s.pointwise ? strip.rows : 1); ++unit)
    for_lanes<V>(g, s, strip.unit + unit, [&](int lane, int64_t image, int64_t y, int64_t x) {
      map.places[unit * map.kUnit + lane] = image * g.output.n + (s.pointwise ? y * g.output.y : 0) + x * g.output.x;
    });
  map.find_runs();
  return map;
}

template <class V>
static void output_rows(const MaskedConv& g, const Strips& s, const Strip& strip, LaneMap<V>& map) {
  map.clear_rows();
  if (s.pointwise) map.shift[0] = 0;
  for (int64_t r = 0; r < strip.rows && !s.pointwise; ++r) map.shift[r] = (strip.row + r) * g.output.y;
  map.sort_rows();
}

}  // namespace
}  // namespace maskfuse
