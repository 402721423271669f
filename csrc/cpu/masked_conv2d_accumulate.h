// Forward and input_grad of a convolution: every active weight is broadcast and multiplies one line of a strip.
// Included by masked_conv2d_{avx2,avx512}.cpp only.
//
//   forward                                                input_grad
//   once a call: active weights copied in the order of the plan, and for each of its columns the place of its line
//   for a strip (a thread's own)
//     the input in lanes, a copy for each dx               the gradient in lanes; zeros for the input's
//     for a block of four rows, for a panel of the weight's rows (columns)
//       sums of the panel, from the bias on                sums are lines of the input's copies themselves
//       for a chunk of columns (rows)                      lines: first-level cache
//         for an entry: sums in registers += weight x line, for its list
//       sums to the image                                  after the last block: lines, each shifted by its dx, are
//       added
//                                                          to the image
#pragma once

#include "masked_conv2d_strip.h"
#include "masked_linear_accumulate.h"

namespace maskfuse {
namespace {

// The weight, as kernels of masked_linear.h see it: rows of the plan's index are n.
static inline MaskedGemm weight_problem(const MaskedConv& g) {
  MaskedGemm w{};
  const bool grad = g.pass == Pass::input_grad;
  w.pass = g.pass, w.dtype = g.dtype;
  w.n = grad ? g.shape.columns() : g.shape.out, w.k = grad ? g.shape.out : g.shape.columns();
  w.b = g.weight, w.b_ld = g.weight_ld;
  w.bits = g.bits, w.bits_ld = g.bits_ld;
  w.plan = g.plan, w.packed = g.packed;
  w.c = g.weight_grad, w.c_ld = g.weight_grad_ld;
  return w;
}

static inline Tiles tiles_of(const MaskedConv& g) { return Tiles(weight_problem(g), Part{}); }

// What is where in the memory of a call.
struct ConvMemory {
  const int32_t* lines;  // of each of the weight's columns, in a strip of the input
  uint16_t* offsets;     // of each of the plan's columns, in lines from its chunk's first
  char *values, *sums;
  char *input, *output, *panel, *map;

  explicit ConvMemory(const ConvPart& part) {
    const ConvSchedule& s = *part.schedule;
    char *const shared = (char*)part.shared, *const scratch = (char*)part.scratch;
    lines = (const int32_t*)(shared + s.lines_at);
    offsets = (uint16_t*)(shared + s.offsets_at);
    values = shared + s.values_at, sums = shared + s.sums_at;
    input = scratch + s.input_at, output = scratch + s.output_at, panel = scratch + s.panel_at;
    map = scratch + s.map_at;
  }
};

// The line where a chunk that begins with `column` begins: its channel's, or, for input_grad, its output channel's.
static inline int64_t chunk_line(const MaskedConv& g, const Strips& s, int64_t column) {
  return g.pass == Pass::input_grad ? column * s.out_plane : column / g.shape.taps() * s.plane;
}

// The part of the plan's columns that tiles of panels [begin, end) have, as places of lines.
static inline void find_offsets(const MaskedConv& g, const ConvPart& part, const Tiles& tiles) {
  const Strips& s = part.schedule->strips;
  const ConvMemory memory(part);
  Tile tile;
  for (int64_t panel = part.n0; panel < part.n1; ++panel) {
    for (int64_t c = 0; c < tiles.chunks(); ++c) {
      tiles.at(panel, c, tile);
      const int64_t first = chunk_line(g, s, tile.column0);
      uint16_t line[256];
      for (int64_t k = 0; k < tile.width; ++k)
        line[k] = g.pass == Pass::input_grad ? (uint16_t)(k * s.out_plane)
                                             : (uint16_t)(memory.lines[tile.column0 + k] - first);
      uint16_t* const to = memory.offsets + (tile.columns - tiles.plan->columns);
      const PlanTile* const t = tiles.plan->tiles + panel * tiles.chunks() + c;
      for (int64_t k = 0; k < (int64_t)t[1].column - t[0].column; ++k) to[k] = line[tile.columns[k]];
    }
  }
}

// Part: n panels.
template <class V, class T, bool kTransposed>
static void conv_values_task(const MaskedConv& g, const ConvPart& part) {
  const MaskedGemm w = weight_problem(g);
  const Tiles tiles(w, Part{});
  if (!(g.packed && g.packed->ordered)) {
    auto* const values = (typename V::S*)ConvMemory(part).values;
    for (int64_t panel = part.n0; panel < part.n1; ++panel)
      panel_values<V, T, kTransposed, MaskKind::bits>(w, tiles, panel, values + tiles.ordered(panel));
  }
  find_offsets(g, part, tiles);
}

// Part: n panels.
static void conv_offsets_task(const MaskedConv& g, const ConvPart& part) { find_offsets(g, part, tiles_of(g)); }

// Lines of a block, from those of the whole strip on.
static inline int64_t block_line(const Strips& s, const RowBlock& block) {
  return block.unit * s.staged_rows + block.row;
}
static inline int64_t out_block_line(const Strips& s, const RowBlock& block) { return block.unit * s.rows + block.row; }

// Part: m strips, n panels.
template <class V, class T>
static void conv_forward_task(const MaskedConv& g, const ConvPart& part) {
  using S = typename V::S;
  constexpr int kUnit = kUnitLanes<S>;
  const Strips& s = part.schedule->strips;
  const ConvMemory memory(part);
  const Tiles tiles = tiles_of(g);
  const S* const values = g.packed && g.packed->ordered ? (const S*)g.packed->ordered : (const S*)memory.values;
  S *const x = (S*)memory.input, *const y = (S*)memory.output;
  const int64_t row0 = part.n0 * tiles.panel, row1 = min64(part.n1 * tiles.panel, tiles.rows);
  for (int64_t m = part.m0; m < part.m1; ++m) {
    const Strip strip = strip_at<V>(g, s, m / s.strips(), m % s.strips());
    if (strip.rows == 0) continue;
    RowMap<V> from(s.copies * s.wide * s.staged_rows, g.input.x * g.shape.stride_w, memory.map);
    RowMap<V> to(s.wide * s.rows, g.output.x, memory.map + RowMap<V>::bytes(from.rows));
    input_places<V>(g, s, strip, memory.lines, from);
    output_places<V>(g, s, strip, to);
    stage<V, T>(g.input, from, 0, g.shape.in, g.plan->column_pattern, g.shape.taps(), s.plane, m == part.m0, x);
    for (int64_t r = row0; r < row1; ++r) {
      const auto start = g.bias ? V::set1((S)widen((const T*)g.bias + r)) : V::zero();
      S* const lines = y + (r - row0) * s.out_plane * kUnit;
      for (int64_t i = 0; i < s.out_plane * kUnit; i += V::W) V::store(lines + i, start);
    }
    for (int64_t b = 0; b < row_blocks(strip); ++b) {
      const RowBlock block = row_block(strip, b);
      for (int64_t panel = part.n0; panel < part.n1; ++panel) {
        S* const first = y + ((panel * tiles.panel - row0) * s.out_plane + out_block_line(s, block)) * kUnit;
        for_vectors<V>(block.rows * kUnit / V::W, [&](auto number) {
          constexpr int kVectors = decltype(number)::value;
          Tile tile;
          for (int64_t c = 0; c < tiles.chunks(); ++c) {
            tiles.at(panel, c, tile);
            accumulate_tile<V, kVectors, kUnit, false>(
                tile, memory.offsets + (tile.columns - tiles.plan->columns),
                x + (chunk_line(g, s, tile.column0) + block_line(s, block)) * kUnit, nullptr, 0,
                values + tiles.ordered(panel) + tile.value,
                [&](int row) __attribute__((always_inline)) { return first + row * s.out_plane * kUnit; });
          }
        });
      }
    }
    unstage<V, T>(g.output, to, row0, row1 - row0, s.out_plane, y);
  }
}

// The input's channels whose weights are columns [begin, end).
static inline int64_t channel_of(const MaskedConv& g, int64_t column) { return column / g.shape.taps(); }

// Rounds sums to the image they belong to: [image][channel][y][x], of channels [begin, end).
template <class V, class T>
static void round_sums(const MaskedConv& g, const typename V::S* sums, int64_t image0, int64_t images, int64_t begin,
                       int64_t end) {
  constexpr int W = V::W;
  const ConvShape& c = g.shape;
  const int64_t pixels = c.in_h * c.in_w, channels = end - begin;
  for (int64_t n = 0; n < images; ++n) {
    const typename V::S* const from = sums + n * channels * pixels;
    T* const to = (T*)g.input.data + (image0 + n) * g.input.n + begin * g.input.c;
    if (g.input.c == 1) {
      const int64_t apart = c.in_w > 1 ? g.input.x : g.input.y;  // pixels
      for (int64_t p = 0; p < pixels; p += W) {
        const int used = (int)min64(W, pixels - p);
        for (int64_t k = 0; k < channels; k += W) {
          const int width = (int)min64(W, channels - k);
          typename V::Reg r[W];
          for (int i = 0; i < W; ++i) r[i] = i < width ? V::load_n(from + (k + i) * pixels + p, used) : V::zero();
          V::transpose(r);
          for (int i = 0; i < used; ++i) V::store_n(to + (p + i) * apart + k, r[i], width);
        }
      }
    } else {
      for (int64_t k = 0; k < channels; ++k)
        for (int64_t p = 0; p < pixels; p += W) {
          const int used = (int)min64(W, pixels - p);
          V::store_n(to + k * g.input.c + p, V::load_n(from + k * pixels + p, used), used);
        }
    }
  }
}

// Part: m groups of images, n panels, of whole channels.
template <class V, class T>
static void conv_input_grad_task(const MaskedConv& g, const ConvPart& part) {
  using S = typename V::S;
  constexpr int kUnit = kUnitLanes<S>;
  const ConvShape& c = g.shape;
  const Strips& s = part.schedule->strips;
  const ConvMemory memory(part);
  const Tiles tiles = tiles_of(g);
  const S* const values = (const S*)memory.values;
  const uint32_t* const in_pattern = g.plan->row_pattern;
  S *const dx = (S*)memory.input, *const dy = (S*)memory.output;
  const int64_t pixels = c.in_h * c.in_w;
  // Sums are kept in the image itself where it takes them as they are.
  const bool in_place = sizeof(T) == sizeof(S) && g.input.x == 1 && g.input.y == c.in_w && g.input.c == pixels;
  const int64_t begin = channel_of(g, part.n0 * tiles.panel);
  const int64_t end = channel_of(g, min64(part.n1 * tiles.panel, tiles.rows)), channels = end - begin;
  __builtin_memset(dx, 0, (size_t)(channels * s.plane * kUnit) * sizeof(S));
  for (int64_t group = part.m0; group < part.m1; ++group) {
    const int64_t image0 = group * s.images, images = min64(s.images, c.batch - image0);
    S* const sums = in_place ? (S*)g.input.data + image0 * g.input.n + begin * pixels : (S*)memory.panel;
    const int64_t apart = in_place ? g.input.n : channels * pixels;
    for (int64_t n = 0; n < images; ++n) __builtin_memset(sums + n * apart, 0, (size_t)(channels * pixels) * sizeof(S));
    // Where the strip's lanes are among the sums.
    MaskedConv local = g;
    local.input = {sums, apart, pixels, c.in_w, 1};
    for (int64_t m = 0; m < s.strips(); ++m) {
      const Strip strip = strip_at<V>(g, s, group, m);
      if (strip.rows == 0) continue;
      RowMap<V> to(s.copies * s.wide * s.staged_rows, c.stride_w, memory.map);
      RowMap<V> from(s.wide * s.rows, g.output.x, memory.map + RowMap<V>::bytes(to.rows));
      Strip inside = strip;
      inside.image = 0;
      input_places<V>(local, s, inside, memory.lines, to);
      output_places<V>(g, s, strip, from);
      stage<V, T>(g.output, from, 0, c.out, g.plan->column_pattern, 1, s.out_plane, m == 0 && group == part.m0, dy);
      // Rows of taps below one another share lines.
      for (int64_t b = 0; b < row_blocks(strip); ++b) {
        const RowBlock block = row_block(strip, b);
        for (int64_t panel = part.n0; panel < part.n1; ++panel) {
          const int32_t* const lines = memory.lines + panel * tiles.panel;
          S* const first = dx + (block_line(s, block) - begin * s.plane) * kUnit;
          for_vectors<V>(block.rows * kUnit / V::W, [&](auto number) {
            constexpr int kVectors = decltype(number)::value;
            Tile tile;
            for (int64_t k = 0; k < tiles.chunks(); ++k) {
              tiles.at(panel, k, tile);
              accumulate_tile<V, kVectors, kUnit, true>(
                  tile, memory.offsets + (tile.columns - tiles.plan->columns),
                  dy + (chunk_line(g, s, tile.column0) + out_block_line(s, block)) * kUnit, nullptr, 0,
                  values + tiles.ordered(panel) + tile.value,
                  [&](int row) __attribute__((always_inline)) { return first + (int64_t)lines[row] * kUnit; });
            }
          });
        }
      }
      for (int64_t channel = begin; channel < end; ++channel) {
        if (!channel_is_active(in_pattern, channel, c.taps())) continue;
        S* const from_lines = dx + (channel - begin) * s.plane * kUnit;
        S* const to_sums = sums + (channel - begin) * pixels;
        for (int64_t v = 0; v < to.rows * to.kVectors; ++v) {
          const auto value = V::load(from_lines + v * V::W);
          V::store(from_lines + v * V::W, V::zero());  // for the next strip
          to.in_spans ? to.add_spans(to_sums, v, value) : to.add(to_sums, v, value);
        }
      }
    }
    if (!in_place) round_sums<V, T>(g, sums, image0, images, begin, end);
  }
}

}  // namespace
}  // namespace maskfuse
