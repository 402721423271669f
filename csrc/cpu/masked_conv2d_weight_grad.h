// weight_grad of a convolution: a product over output pixels for each active weight.
// Included by masked_conv2d_{avx2,avx512}.cpp only.
//
//   for a slice of the strips (any thread)
//     for a strip: input and gradient in lanes
//       for two blocks of rows, for a panel of the weight's rows, for a chunk of columns
//         for an entry: the row of the gradient in registers times the lines of its list       sums += , in the order
//         of the plan
//   for a panel: sums of all slices, one slice after another, to their places
#pragma once

#include "masked_conv2d_accumulate.h"
#include "masked_linear_weight_grad.h"

namespace maskfuse {
namespace {

// Lines of a block, from those of the whole strip on.
static inline int64_t block_line(const Strips& s, const RowBlock& block) {
  return block.unit * s.staged_rows + block.row;
}
static inline int64_t out_block_line(const Strips& s, const RowBlock& block) { return block.unit * s.rows + block.row; }

// Part: m slices, n panels.
template <class V, class T>
static void conv_sampled_task(const MaskedConv& g, const ConvPart& part) {
  using S = typename V::S;
  constexpr int kUnit = kUnitLanes<S>;
  const Strips& s = part.schedule->strips;
  const ConvMemory memory(part);
  const Tiles tiles = tiles_of(g);
  S *const x = (S*)memory.input, *const dy = (S*)memory.output;
  const int64_t row0 = part.n0 * tiles.panel, row1 = min64(part.n1 * tiles.panel, tiles.rows);
  const int64_t total = s.strips(), slices = part.schedule->slices;
  for (int64_t slice = part.m0; slice < part.m1; ++slice) {
    S* const sums = (S*)memory.sums + slice * ordered_values(*g.plan);
    for (int64_t panel = part.n0; panel < part.n1; ++panel)
      __builtin_memset(sums + tiles.ordered(panel), 0, (size_t)tiles.values(panel) * sizeof(S));
    for (int64_t m = slice * total / slices; m < (slice + 1) * total / slices; ++m) {
      const Strip strip = strip_at<V>(g, s, m);
      if (strip.rows == 0) continue;
      LaneMap<V> from = input_map<V>(g, s, strip, memory.map);
      LaneMap<V> grad = output_map<V>(g, s, strip, memory.map + LaneMap<V>::bytes(from.patterns, from.rows));
      input_rows<V>(g, s, strip, memory.first, from);
      output_rows<V>(g, s, strip, grad);
      stage<V, T>(g.input, from, 0, g.shape.in, g.plan->column_pattern, g.shape.taps(), s.plane, x);
      stage<V, T>(g.output, grad, row0, row1, g.plan->row_pattern, 1, s.out_plane, dy);
      const auto sample = [&](const RowBlock* blocks, auto number_of_vectors, auto number_of_blocks) {
        constexpr int kVectors = decltype(number_of_vectors)::value, kBlocks = decltype(number_of_blocks)::value;
        Tile tile;
        for (int64_t panel = part.n0; panel < part.n1; ++panel)
          for (int64_t c = 0; c < tiles.chunks(); ++c) {
            tiles.at(panel, c, tile);
            const S *lines[kBlocks], *rows[kBlocks];
            for (int b = 0; b < kBlocks; ++b) {
              lines[b] = x + (chunk_line(g, s, tile.column0) + block_line(s, blocks[b])) * kUnit;
              rows[b] = dy + ((panel * tiles.panel - row0) * s.out_plane + out_block_line(s, blocks[b])) * kUnit;
            }
            sample_tile<V, kVectors, kBlocks, kUnit>(tile, memory.offsets + (tile.columns - tiles.plan->columns), lines,
                                                     rows, s.out_plane * kUnit,
                                                     sums + tiles.ordered(panel) + tile.value);
          }
      };
      // Two blocks at once where they have as many rows: their sums are joined together.
      const int64_t count = row_blocks(strip);
      for (int64_t b = 0; b < count;) {
        const RowBlock blocks[2] = {row_block(strip, b), row_block(strip, b + 1 < count ? b + 1 : b)};
        const bool pair = b + 1 < count && blocks[1].rows == blocks[0].rows;
        for_vectors<V>(blocks[0].rows * kUnit / V::W, [&](auto number) {
          if (pair)
            sample(blocks, number, Int<2>{});
          else
            sample(blocks, number, Int<1>{});
        });
        b += pair ? 2 : 1;
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
