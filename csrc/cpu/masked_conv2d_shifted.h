// Forward and input_grad of a convolution whose kernels are three wide, the latter in its forward form, of one copy of
// the input that is not shifted: a sum for each dx, which is shifted when it is complete.
// Included by masked_conv2d_{avx2,avx512}.cpp only.
//
// Lanes are places side by side of image rows, image after image, `pitch` places each; a strip is two units of them
// and two rows of the output. With s(dx) = sum over channels and dy of w[dy, dx] x[y + dy, lane]:
//
//   y[lane] = s(0)[lane + shift(0)] + s(1)[lane + shift(1)] + s(2)[lane + shift(2)]        shift(dx) = dx dilation -
//   pad
//
// where lane + shift is in the image of `lane`, else nothing. A strip does not compute its outermost lanes, which lack
// a neighbour: they are in the strip beside it too, unless images end there.
//
//   once a call: lists of active weights (masked_conv2d_lists.h)
//   for a strip (a thread's own)
//     for a chunk of the input's channels: in lanes                              first-level cache
//       for a channel of the output: s(0), s(1), s(2) in registers += weight x line, list by list; joined;
//         to what earlier chunks gave, or, in the last chunk, to the image
//
// What masked_conv2d_accumulate.h has and this has not: shifted copies, three times as much to stage, which let a chunk
// be a third as large. What this loses: the outermost lanes, and a dozen instructions to shift and join.
#pragma once

#include "masked_conv2d_lists.h"
#include "masked_conv2d_stage.h"

namespace maskfuse {
namespace {

// What a sum of one dx needs to be added where it belongs.
template <class V>
struct Shift {
  static constexpr int kVectors = kShiftedUnits * LaneMap<V>::kVectors;
  typename V::Turn turn;      // of the vector of these lanes and the next
  uint32_t inside[kVectors];  // lanes whose neighbour is in the image
  bool left;                  // from lanes before one's own
};

// Lanes of a strip: place `first + lane` of all images' rows.
struct ShiftedStrip {
  int64_t first, begin, end;  // places; those of the output that it computes
};

static inline ShiftedStrip shifted_strip(const ConvShape& c, const ShiftedLanes& s, int64_t across) {
  const int64_t begin = across * s.useful;
  return {begin - s.before, begin, min64(begin + s.useful, c.batch * s.pitch)};
}

// The map of a strip's input, or output, whose lines are [row][unit]. Rows are for `input_rows` and `output_rows` to
// fill.
template <class V>
static LaneMap<V> shifted_map(const Image& image, int64_t width, const ShiftedLanes& s, int64_t first, int64_t begin,
                              int64_t end, int64_t rows, void* memory) {
  LaneMap<V> map(kShiftedUnits, rows, image.x, memory);
  map.pattern_step = 1, map.row_step = kShiftedUnits;
  for (int64_t place = begin; place < end; ++place)
    if (place % s.pitch < width) map.places[place - first] = place / s.pitch * image.n + place % s.pitch * image.x;
  map.find_runs();
  return map;
}

template <class V>
static void find_shifts(const ConvShape& c, const ShiftedLanes& s, const ShiftedStrip& strip, Shift<V>* shifts) {
  for (int dx = 0; dx < kShifts; ++dx) {
    const int64_t by = dx * c.dilation_w - c.pad_w;
    Shift<V>& shift = shifts[dx];
    shift.left = by < 0;
    shift.turn = V::turn((int)(by < 0 ? by + V::W : by));
    for (int v = 0; v < Shift<V>::kVectors; ++v) {
      shift.inside[v] = 0;
      for (int lane = 0; lane < V::W; ++lane) {
        const int64_t place = strip.first + v * V::W + lane, x = place % s.pitch + by;
        if (place >= strip.begin && place < strip.end && x >= 0 && x < c.in_w) shift.inside[v] |= 1u << lane;
      }
    }
  }
}

// One list: sums of kRows rows += values times the lines that begin at `x` + offset.
template <class V, int kRows, int kSets>
static inline void add_list(const typename V::S* x, const uint16_t* offsets, const typename V::S* values, int length,
                            typename V::Reg (&sum)[kSets][kRows][Shift<V>::kVectors]) {
  constexpr int W = V::W, kVectors = Shift<V>::kVectors;
  const auto add = [&](int set, int k) __attribute__((always_inline)) {
    const typename V::S* const line = x + offsets[k];
    const typename V::Reg w = V::set1(values[k]);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        sum[set][r][v] = V::fma(w, V::load(line + (r * kVectors + v) * W), sum[set][r][v]);
  };
  int k = 0;
  if constexpr (kSets == 2)
    for (; k + 2 <= length; k += 2) add(0, k), add(1, k + 1);
  for (; k < length; ++k) add(0, k);
}

// result += sum, shifted.
template <class V>
static inline void add_shifted(const typename V::Reg* sum, const Shift<V>& shift, typename V::Reg* result) {
  constexpr int kVectors = Shift<V>::kVectors;
  const auto add = [&](int v, typename V::Reg a, typename V::Reg b) __attribute__((always_inline)) {
    result[v] = V::add_bits(result[v], V::take(a, b, shift.turn), shift.inside[v]);
  };
  if (shift.left) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) add(v, v > 0 ? sum[v > 0 ? v - 1 : 0] : V::zero(), sum[v]);
  } else {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) add(v, sum[v], v + 1 < kVectors ? sum[v + 1 < kVectors ? v + 1 : v] : V::zero());
  }
}

// What a chunk of the input's channels gives to kRows rows of a strip, in so many of the output's channels, the first
// of which has `bounds`. start(channel, result) tells what they were, store(channel, result) takes what they are.
template <class V, int kRows, class Start, class Store>
static inline void shifted_rows(const ConvMemory& memory, const uint32_t* bounds, int64_t channels,
                                const typename V::S* x, const Shift<V>* shifts, const Start& start,
                                const Store& store) {
  using Reg = typename V::Reg;
  constexpr int kVectors = Shift<V>::kVectors;
  constexpr int kSets = 2 * kShifts * kRows * kVectors <= V::kRegisters * 3 / 4 ? 2 : 1;
  const uint16_t* offsets = memory.offsets + bounds[0];
  const typename V::S* values = (const typename V::S*)memory.values + bounds[0];
  for (int64_t o = 0; o < channels; ++o, bounds += kShifts) {
    Reg sum[kShifts][kSets][kRows][kVectors];
#pragma GCC unroll 4
    for (int dx = 0; dx < kShifts; ++dx) {
#pragma GCC unroll 4
      for (int set = 0; set < kSets; ++set)
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) sum[dx][set][r][v] = V::zero();
      const int length = (int)(bounds[dx + 1] - bounds[dx]);
      add_list<V, kRows, kSets>(x, offsets, values, length, sum[dx]);
      offsets += length, values += length;
    }
    Reg result[kRows][kVectors];
    start(o, result);
#pragma GCC unroll 4
    for (int dx = 0; dx < kShifts; ++dx)
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        if constexpr (kSets == 2)
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) sum[dx][0][r][v] = V::add(sum[dx][0][r][v], sum[dx][1][r][v]);
        add_shifted<V>(sum[dx][0][r], shifts[dx], result[r]);
      }
    store(o, result);
  }
}

// Part: m strips, n channels of the output.
template <class V, class T>
static void shifted_task(const MaskedConv& g, const ConvPart& part) {
  using S = typename V::S;
  constexpr int W = V::W, kUnit = LaneMap<V>::kUnit, kVectors = Shift<V>::kVectors;
  // Rows whose sums registers hold.
  constexpr int kRows = kShifts * kShiftedRows * kVectors <= V::kRegisters * 3 / 4 ? kShiftedRows : 1;
  const ConvShape& c = g.shape;
  const Strips& s = part.schedule->strips;
  const ShiftedLanes& lanes = part.schedule->shifted;
  const ConvMemory memory(part);
  if (too_many(g, part)) return;
  S *const x = (S*)memory.input, *const y = (S*)memory.output;
  Shift<V> shifts[kShifts];
  for (int64_t m = part.m0; m < part.m1;) {
    // Strips below one another have their lanes in the same places.
    const ShiftedStrip across = shifted_strip(c, lanes, m / s.parts);
    const int64_t places = c.batch * lanes.pitch, first = across.first;
    LaneMap<V> from = shifted_map<V>(g.input, c.in_w, lanes, first, first < 0 ? 0 : first,
                                     min64(places, first + kShiftedUnits * kUnit), s.staged_rows, memory.map);
    LaneMap<V> to = shifted_map<V>(g.output, c.out_w, lanes, first, across.begin, across.end, s.rows,
                                   memory.map + LaneMap<V>::bytes(from.patterns, from.rows));
    find_shifts<V>(c, lanes, across, shifts);
    const bool in_place = V::template kMasks<T> && to.in_spans;
    for (const int64_t end = min64(part.m1, (m / s.parts + 1) * s.parts); m < end; ++m) {
      const Strip strip = strip_at<V>(g, s, m);
      input_rows<V>(g, s, strip, memory.first, from);
      output_rows<V>(g, s, strip, to);
      for (int64_t chunk = 0; chunk < lanes.chunks; ++chunk) {
        const int64_t channel = chunk * lanes.chunk;
        stage<V, T>(g.input, from, channel, min64(channel + lanes.chunk, c.in), g.plan->column_pattern, c.taps(),
                    s.plane, false, x);
        const bool first_chunk = chunk == 0, to_image = in_place && chunk + 1 == lanes.chunks;
        const auto rows = [&](int64_t row, auto count) {
          constexpr int kCount = decltype(count)::value;
          S* const sums = y + row * kVectors * W;
          const int64_t plane = s.out_plane * kUnit, image_plane = g.output.c;
          const T* const bias = g.bias ? (const T*)g.bias + part.n0 : nullptr;
          T* const image = (T*)g.output.data + part.n0 * image_plane;
          const auto start = [&](int64_t o, auto& result) __attribute__((always_inline)) {
            const auto begin = first_chunk && bias ? V::set1((S)widen(bias + o)) : V::zero();
#pragma GCC unroll 8
            for (int i = 0; i < kCount * kVectors; ++i)
              result[i / kVectors][i % kVectors] = first_chunk ? begin : V::load(sums + o * plane + i * W);
          };
          const auto store = [&](int64_t o, const auto& result) __attribute__((always_inline)) {
            if constexpr (V::template kMasks<T>) {
              if (to_image) {
                for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 4
                  for (int v = 0; v < kVectors; ++v)
                    to.store_spans(image + o * image_plane + to.shift[row + r], v, result[r][v]);
                return;
              }
            }
#pragma GCC unroll 8
            for (int i = 0; i < kCount * kVectors; ++i)
              V::store(sums + o * plane + i * W, result[i / kVectors][i % kVectors]);
          };
          shifted_rows<V, kCount>(memory, memory.bounds + (chunk * c.out + part.n0) * kShifts, part.n1 - part.n0,
                                  x + row * kVectors * W, shifts, start, store);
        };
        int64_t row = 0;
        for (; row + kRows <= strip.rows; row += kRows) rows(row, Int<kRows>{});
        for (; row < strip.rows; ++row) rows(row, Int<1>{});
      }
      if (!in_place) unstage<V, T>(g.output, to, part.n0, part.n1 - part.n0, s.out_plane, y);
    }
  }
}

}  // namespace
}  // namespace maskfuse
