// weight_grad of a convolution: a product over output pixels for each active weight.
// Included by masked_conv2d_{avx2,avx512}.cpp only.
//
//   for a slice of the strips (any thread)
//     for a strip, which is two blocks of lanes: the gradient in lanes           second-level cache
//       for a chunk of columns: its channels in lanes, a copy for each dx        first-level cache
//         for an entry: the row of the gradient in registers times the lines of its list
//           sums += , in the order of the plan
//   for a panel: sums of all slices, one slice after another, to their places
#pragma once

#include "masked_conv2d_stage.h"
#include "masked_conv2d_values.h"
#include "masked_linear_weight_grad.h"

namespace maskfuse {
namespace {

// Part: m slices, n panels.
template <class V, class T>
static void conv_sampled_task(const MaskedConv& g, const ConvPart& part) {
  using S = typename V::S;
  constexpr int kUnit = kUnitLanes<S>;
  const ConvShape& shape = g.shape;
  const Strips& s = part.schedule->strips;
  const ConvMemory memory(part);
  const Tiles tiles = tiles_of(g);
  S *const x = (S*)memory.input, *const dy = (S*)memory.output;
  const int64_t row0 = part.n0 * tiles.panel, row1 = min64(part.n1 * tiles.panel, tiles.rows);
  const int64_t strips = s.strips(), slices = part.schedule->slices;
  for (int64_t slice = part.m0; slice < part.m1; ++slice) {
    S* const sums = (S*)memory.sums + slice * ordered_values(*g.plan);
    for (int64_t panel = part.n0; panel < part.n1; ++panel)
      __builtin_memset(sums + tiles.ordered(panel), 0, (size_t)tiles.values(panel) * sizeof(S));
    for (int64_t m = slice * strips / slices; m < (slice + 1) * strips / slices; ++m) {
      const Strip strip = strip_at<V>(g, s, m);
      if (strip.rows == 0) continue;
      LaneMap<V> from = input_map<V>(g, s, strip, memory.map);
      LaneMap<V> grad = output_map<V>(g, s, strip, memory.map + LaneMap<V>::bytes(from.patterns, from.rows));
      input_rows<V>(g, s, strip, memory.first, from);
      output_rows<V>(g, s, strip, grad);
      stage<V, T>(g.output, grad, row0, row1, g.plan->row_pattern, 1, s.out_plane, false, dy);
      const int64_t blocks = ceil_div(strip.rows, kBlockUnits);
      const auto block_row = [&](int64_t b) { return b * strip.rows / blocks; };
      Tile tile;
      // Blocks [b, b + kBlocks), `number` of vectors each.
      const auto sample = [&](int64_t panel, int64_t b, auto number_of_vectors, auto number_of_blocks) {
        constexpr int kVectors = decltype(number_of_vectors)::value, kBlocks = decltype(number_of_blocks)::value;
        const S *lines[kBlocks], *rows[kBlocks];
        for (int i = 0; i < kBlocks; ++i) {
          lines[i] = x + block_row(b + i) * kUnit;
          rows[i] = dy + ((panel * tiles.panel - row0) * s.out_plane + block_row(b + i)) * kUnit;
        }
        sample_tile<V, kVectors, kBlocks, kUnit>(tile, memory.offsets + (tile.columns - tiles.plan->columns), lines,
                                                 rows, s.out_plane * kUnit, sums + tiles.ordered(panel) + tile.value);
      };
      for (int64_t c = 0; c < tiles.chunks(); ++c) {
        const int64_t column = c * tiles.chunk, channel = column / shape.taps();
        const int64_t last = ceil_div(min64(column + tiles.chunk, tiles.columns), shape.taps());
        stage<V, T>(g.input, from, channel, last, g.plan->column_pattern, shape.taps(), s.plane, false, x);
        for (int64_t panel = part.n0; panel < part.n1; ++panel) {
          tiles.at(panel, c, tile);
          // Two blocks at once where they have as many rows: their sums are joined together.
          if (blocks == 2 && strip.rows % 2 == 0)
            for_vectors<V>(strip.rows / 2 * kUnit / V::W, [&](auto number) { sample(panel, 0, number, Int<2>{}); });
          else
            for (int64_t b = 0; b < blocks; ++b)
              for_vectors<V>((block_row(b + 1) - block_row(b)) * kUnit / V::W,
                             [&](auto number) { sample(panel, b, number, Int<1>{}); });
        }
      }
    }
  }
}

// Part: n panels.
template <class V, class T>
static void conv_reduced_task(const MaskedConv& g, const ConvPart& part) {
  using S = typename V::S;
  const MaskedGemm w = weight_problem(g);
  const Tiles tiles(w, Part{});
  const int64_t slices = part.schedule->slices, apart = ordered_values(*g.plan);
  for (int64_t panel = part.n0; panel < part.n1; ++panel) {
    S* const sums = (S*)ConvMemory(part).sums + tiles.ordered(panel);
    // Every panel has its pad: whole vectors.
    for (int64_t slice = 1; slice < slices; ++slice)
      for (int64_t i = 0; i < tiles.values(panel); i += V::W)
        V::store(sums + i, V::add(V::load(sums + i), V::load(sums + slice * apart + i)));
    scatter_values<V, T>(w, tiles, panel, sums);
  }
}

}  // namespace
}  // namespace maskfuse
