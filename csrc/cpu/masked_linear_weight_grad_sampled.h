// weight_grad where few weights are active: dots over the batch, for active weights only. Included by
// masked_linear_weight_grad.h only.
//
//   once a call      X in lanes, shared by all threads
//   for a panel of the weight's rows
//     for two blocks of the batch
//       the panel's columns of dY, in lanes                                    second-level cache
//       for a chunk of columns, for an entry: the row of dY in registers
//         for its list: products with the lines of X, each a vector of partial sums
//         W of those together become one vector of sums                        values, in the order of the plan
//     values to their places, zeros elsewhere
#pragma once

#include "masked_linear_accumulate.h"

namespace maskfuse {
namespace {

// Adds the sums of W vectors at a time to values: `product(k)` is the k-th of `length` vectors. What is missing of a
// group is zero; the length is the same for all entries of a run, so branches on it are predicted.
template <class V, class Product>
static inline void add_sums(int length, typename V::S* values, const Product& product) {
  using Reg = typename V::Reg;
  constexpr int W = V::W, kGroup = V::kGroup, kGroups = W / kGroup;
  for (int k = 0; k < length; k += W) {
    Reg joined[kGroups];
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
      const int first = k + g * kGroup, left = length - first;
      Reg part[kGroup];
#pragma GCC unroll 4
      for (int i = 0; i < kGroup; ++i) part[i] = i < left ? product(first + i) : V::zero();
      joined[g] = left > 0 ? V::join(part) : V::zero();
    }
    const int count = (int)min64(W, length - k);
    V::store_n(values + k, V::add(V::load_n(values + k, count), V::sums(joined)), count);
  }
}

// One tile: x[b] and dy[b] are those of block b of the batch; rows of dy lie `pitch` apart, and the line of a column c
// begins kStep * c behind x[b].
template <class V, int kVectors, int kBlocks, int kStep, class Column>
static void sample_tile(const Tile& tile, const Column* columns, const typename V::S* const* x,
                        const typename V::S* const* dy, int64_t pitch, typename V::S* values) {
  using Reg = typename V::Reg;
  constexpr int W = V::W;
  const uint8_t* rows = tile.rows;
  for (int i = 0; i < tile.run_count; ++i) {
    const PlanRun run = tile.runs[i];
    for (int e = 0; e < run.entries; ++e) {
      if (run.width == 1) {
        Reg row[kBlocks][kVectors];
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) row[b][v] = V::load(dy[b] + rows[0] * pitch + v * W);
        add_sums<V>(run.length, values, [&](int k) __attribute__((always_inline)) {
          const int64_t line = (int64_t)columns[k] * kStep;
          Reg sum = V::mul(row[0][0], V::load(x[0] + line));
#pragma GCC unroll 2
          for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 8
            for (int v = b == 0; v < kVectors; ++v) sum = V::fma(row[b][v], V::load(x[b] + line + v * W), sum);
          return sum;
        });
      } else {
        for (int b = 0; b < kBlocks; ++b) {
          add_sums<V>(4 * run.length, values, [&](int k) __attribute__((always_inline)) {
            const typename V::S* const line = x[b] + (int64_t)columns[k / 4] * kStep;
            const typename V::S* const row = dy[b] + rows[k % 4] * pitch;
            Reg sum = V::mul(V::load(row), V::load(line));
#pragma GCC unroll 8
            for (int v = 1; v < kVectors; ++v) sum = V::fma(V::load(row + v * W), V::load(line + v * W), sum);
            return sum;
          });
        }
      }
      rows += run.width;
      columns += run.length;
      values += (int64_t)run.length * run.width;
    }
  }
}

// The values of a panel to their places, zeros elsewhere, tile by tile.
template <class V, class T>
static void scatter_values(const MaskedGemm& g, const Tiles& tiles, int64_t panel, const typename V::S* values) {
  Tile tile;
  for (int64_t c = 0; c < tiles.chunks(); ++c) {
    tiles.at(panel, c, tile);
    for (int64_t r = tile.row0; r < min64(tile.row0 + tiles.panel, tiles.rows); ++r)
      for (int64_t i = 0; i < tile.width; i += V::W)
        V::store_n((T*)g.c + r * g.c_ld + tile.column0 + i, V::zero(), (int)min64(V::W, tile.width - i));
    const uint8_t *rows = tile.rows, *columns = tile.columns;
    const typename V::S* from = values + tile.value;
    for (int i = 0; i < tile.run_count; ++i) {
      const PlanRun& run = tile.runs[i];
      for (int e = 0; e < run.entries; ++e, rows += run.width, columns += run.length) {
        for (int j = 0; j < run.width; ++j) {
          T* const to = (T*)g.c + (tile.row0 + rows[j]) * g.c_ld + tile.column0;
          const uint32_t* const bits = g.bits + (tile.row0 + rows[j]) * g.bits_ld;
          for (int k = 0; k < run.length; ++k)
            if (run.exact || (mask_at(bits, tile.column0 + columns[k]) & 1))
              V::store_n(to + columns[k], V::set1(from[k * run.width + j]), 1);
        }
        from += (int64_t)run.length * run.width;
      }
    }
  }
}

// Part: m whole panels, n all columns.
template <class V, class T>
static void sampled_task(const MaskedGemm& g, const Part& part) {
  using S = typename V::S;
  constexpr int kLanes = Lanes<V>::kLanes;
  Tiles tiles(g, part);
  tiles.rows = g.m, tiles.columns = g.n;  // the index of the forward pass: rows of the weight
  S* const dy_lanes = (S*)part.scratch;
  S* const values = dy_lanes + 2 * tiles.panel * kLanes;
  for (int64_t m = part.m0; m < part.m1; m += tiles.panel) {
    const int64_t panel = m / tiles.panel, tall = min64(tiles.panel, g.m - m);
    const PlanTile* first = tiles.plan->tiles + panel * tiles.chunks();
    const int64_t total = first[tiles.chunks()].value - first[0].value;
    for (int64_t i = 0; i < total; i += V::W) V::store(values + i, V::zero());

    const auto sample = [&](const BatchBlock* blocks, auto number_of_vectors, auto number_of_blocks) {
      constexpr int kVectors = decltype(number_of_vectors)::value, kBlocks = decltype(number_of_blocks)::value;
      const S* dy[kBlocks];
      for (int b = 0; b < kBlocks; ++b) {
        S* const to = dy_lanes + b * tiles.panel * kLanes;
        to_lanes<V>((const T*)g.a + blocks[b].begin * g.a_ld + m, g.a_ld, blocks[b].rows, tall, kVectors, to);
        dy[b] = to;
      }
      Tile tile;
      for (int64_t c = 0; c < tiles.chunks(); ++c) {
        tiles.at(panel, c, tile);
        const S* x[kBlocks];
        for (int b = 0; b < kBlocks; ++b)
          x[b] = (const S*)part.shared + blocks[b].begin * g.n + tile.column0 * kVectors * V::W;
        sample_tile<V, kVectors, kBlocks, kVectors * V::W>(tile, tile.columns, x, dy, kVectors * V::W,
                                                           values + tile.value);
      }
    };
    // Two blocks at once where they have as many vectors: their sums are joined together.
    const int64_t count = batch_blocks<V>(g.k);
    for (int64_t k = 0; k < count;) {
      const BatchBlock blocks[2] = {batch_block<V>(g.k, k), batch_block<V>(g.k, k + 1 < count ? k + 1 : k)};
      const bool pair = k + 1 < count && blocks[1].vectors == blocks[0].vectors;
      for_vectors<V>(blocks[0].vectors, [&](auto number) {
        if (pair)
          sample(blocks, number, Int<2>{});
        else
          sample(blocks, number, Int<1>{});
      });
      k += pair ? 2 : 1;
    }
    scatter_values<V, T>(g, tiles, panel, values);
  }
}

}  // namespace
}  // namespace maskfuse
