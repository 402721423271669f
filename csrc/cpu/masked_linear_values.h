// The active weights of a panel, copied out of the matrix in the order in which the accumulate kernel reads them
// (masked_linear_plan.h), with the mask applied and half types widened. Included by masked_linear_{avx2,avx512}.cpp
// only.
#pragma once

#include "masked_linear_lanes.h"

namespace maskfuse {
namespace {

static constexpr struct Identity {
  uint8_t number[256];
  constexpr Identity() : number() {
    for (int i = 0; i < 256; ++i) number[i] = (uint8_t)i;
  }
} kIdentity;

// One tile's part of a plan, or the list of everything where there is no plan: all rows four by four, all columns.
struct Tile {
  PlanRun dense[2];  // of a tile without a plan
  const PlanRun* runs;
  int run_count;
  const uint8_t* rows;     // `width` an entry
  const uint8_t* columns;  // one list an entry, or, without a plan, one list for all
  bool one_list;
  int64_t value;                 // where the tile's values begin, in the panel
  int64_t row0, column0, width;  // in the matrix
};

// How the rows and columns of a pass's index are cut. The index's rows are the result's columns.
struct Tiles {
  const Plan* plan;
  int64_t panel, chunk, rows, columns;

  Tiles(const MaskedGemm& g, const Part& part)
      : plan(g.plan),
        panel(g.plan ? g.plan->header->panel : part.panel),
        chunk(g.plan ? g.plan->header->chunk : kDenseChunk),
        rows(g.n),
        columns(g.k) {}

  int64_t chunks() const { return ceil_div(columns, chunk); }

  // Number of values of a panel.
  int64_t values(int64_t p) const {
    if (!plan) return min64(panel, rows - p * panel) * columns;
    const PlanTile* t = plan->tiles + p * chunks();
    return (int64_t)t[chunks()].value - t[0].value;
  }

  // Fills `tile`, whose address the view keeps.
  void at(int64_t p, int64_t c, Tile& tile) const {
    tile.row0 = p * panel, tile.column0 = c * chunk;
    tile.width = min64(chunk, columns - tile.column0);
    if (plan) {
      const PlanTile* t = plan->tiles + p * chunks() + c;
      tile.runs = plan->runs + t[0].run;
      tile.run_count = (int)(t[1].run - t[0].run);
      tile.rows = plan->rows + t[0].row;
      tile.columns = plan->columns + t[0].column;
      tile.value = t[0].value - plan->tiles[p * chunks()].value;
      tile.one_list = false;
      return;
    }
    const int64_t tall = min64(panel, rows - tile.row0);
    tile.run_count = 0;
    if (tall >= 4) tile.dense[tile.run_count++] = {(uint16_t)(tall / 4), (uint16_t)tile.width, 4, 0};
    if (tall % 4) tile.dense[tile.run_count++] = {(uint16_t)(tall % 4), (uint16_t)tile.width, 1, 0};
    tile.runs = tile.dense;
    tile.rows = tile.columns = kIdentity.number;
    tile.value = tile.column0 * tall;
    tile.one_list = true;
  }
};

// The matrix of weights by rows and columns of the index: B itself in the forward pass, its transpose in the other.
template <class T, bool kTransposed>
struct Weights {
  const MaskedGemm& g;
  const T* at(int64_t row, int64_t column) const {
    return (const T*)g.b + (kTransposed ? column * g.b_ld + row : row * g.b_ld + column);
  }
  bool active(int64_t row, int64_t column) const {
    return mask_at(g.bits + (kTransposed ? column : row) * g.bits_ld, kTransposed ? row : column) & 1;
  }
  const T* factor(int64_t row, int64_t column) const {
    return (const T*)g.factor + (kTransposed ? column * g.factor_ld + row : row * g.factor_ld + column);
  }
};

// Element (row, column) of the masked matrix; `exact` where the bits need not be looked at.
template <MaskKind kMask, class T, bool kTransposed>
static inline auto value_at(const Weights<T, kTransposed>& w, int64_t row, int64_t column, bool exact) {
  if constexpr (kMask == MaskKind::factor) return widen(w.at(row, column)) * widen(w.factor(row, column));
  return exact || w.active(row, column) ? widen(w.at(row, column)) : decltype(widen(w.at(row, column)))(0);
}

// Values of one row's list.
template <MaskKind kMask, class T, bool kTransposed, class S>
static inline void single_values(const Weights<T, kTransposed>& w, int64_t row, int64_t column0, const uint8_t* columns,
                                 const PlanRun& run, S* to) {
  if (kMask == MaskKind::bits && run.exact) {
    const T* const from = w.at(row, column0);
    const int64_t step = kTransposed ? w.g.b_ld : 1;
    for (int k = 0; k < run.length; ++k) to[k] = widen(from + columns[k] * step);
  } else {
    for (int k = 0; k < run.length; ++k) to[k] = value_at<kMask>(w, row, column0 + columns[k], false);
  }
}

// Four rows one after another, all of the chunk's columns: W columns at a time. Stores may run over the end of the
// list, where the next one will be written.
template <class V, class T, MaskKind kMask>
static inline void four_long_rows(const MaskedGemm& g, const int64_t* row, int64_t column0, int length,
                                  typename V::S* to) {
  WeightRow<T> rows[4];
  for (int i = 0; i < 4; ++i) rows[i] = weight_row<T>(g, row[i]);
  for (int k = 0; k < length; k += V::W) {
    const int width = (int)min64(V::W, length - k);
    typename V::Reg r[4];
    for (int i = 0; i < 4; ++i) r[i] = load_weight<V, kMask>(rows[i], column0 + k, width);
    V::interleave4(r);
    for (int i = 0; i < 4; ++i) V::store(to + 4 * k + i * V::W, r[i]);
  }
}

// `groups` times W neighbouring rows, all of the chunk's columns, of the transposed matrix: B is read along its rows,
// W / 4 of them at a time, so that whole vectors of each four of rows are written.
template <class V, class T, MaskKind kMask>
static inline void neighbours(const MaskedGemm& g, int64_t row, int64_t groups, int64_t column0, int length,
                              typename V::S* to) {
  constexpr int W = V::W, kSteps = W / 4;
  for (int k = 0; k < length; k += kSteps) {
    const int steps = (int)min64(kSteps, length - k);
    for (int64_t i = 0; i < groups; ++i) {
      typename V::Reg r[kSteps];
      for (int j = 0; j < kSteps; ++j) {
        if (j < steps) {
          const WeightRow<T> from = weight_row<T>(g, column0 + k + j);
          if (k + j + kSteps < length) __builtin_prefetch(from.value + kSteps * g.b_ld + row + i * W);
          r[j] = load_weight<V, kMask>(from, row + i * W, W);
        } else {
          r[j] = V::zero();
        }
      }
      V::transpose_fours(r);
      for (int j = 0; j < kSteps; ++j) V::store_n(to + (i * kSteps + j) * 4 * length + 4 * k, r[j], 4 * steps);
    }
  }
}

// How many groups of W neighbours, each from a multiple of W on, the next entries of four rows are.
template <class V>
static inline int64_t neighbour_groups(const uint8_t* rows, int64_t row0, int entries) {
  if ((row0 + rows[0]) % V::W != 0) return 0;
  int64_t count = 1;
  while (count < 4 * entries && rows[count] == rows[0] + count) ++count;
  return count / V::W;
}

// Asks for a stretch of a row: rows come in an order that the hardware does not foresee.
template <class T>
static inline void fetch(const T* from, int64_t count) {
  for (int64_t byte = 0; byte < count * (int64_t)sizeof(T); byte += 64) __builtin_prefetch((const char*)from + byte);
}

// Values of all tiles of a panel. `values` has room for a vector of overhang.
template <class V, class T, bool kTransposed, MaskKind kMask>
static void panel_values(const MaskedGemm& g, const Tiles& tiles, int64_t panel, typename V::S* values) {
  const Weights<T, kTransposed> w{g};
  Tile tile;
  for (int64_t c = 0; c < tiles.chunks(); ++c) {
    tiles.at(panel, c, tile);
    const uint8_t *rows = tile.rows, *columns = tile.columns;
    typename V::S* to = values + tile.value;
    if (kTransposed && tiles.plan && tile.run_count > 0 && tile.runs[0].width == 1) {
      // Lists run down B's columns: its part that the tile reads is fetched row by row first.
      const int64_t tall = min64(tiles.panel, tiles.rows - tile.row0);
      for (int64_t k = 0; k < tile.width; ++k) fetch<T>(w.at(tile.row0, tile.column0 + k), tall);
    }
    for (int i = 0; i < tile.run_count; ++i) {
      const PlanRun& run = tile.runs[i];
      for (int e = 0; e < run.entries;) {
        int entries = 1;  // done at once
        if (run.width == 1) {
          if (!kTransposed && e + 4 < run.entries) fetch<T>(w.at(tile.row0 + rows[4], tile.column0), tile.width);
          single_values<kMask>(w, tile.row0 + rows[0], tile.column0, columns, run, to);
        } else {
          const int64_t row[4] = {tile.row0 + rows[0], tile.row0 + rows[1], tile.row0 + rows[2], tile.row0 + rows[3]};
          const bool all = run.length == tile.width;
          const int64_t groups = all && kTransposed ? neighbour_groups<V>(rows, tile.row0, run.entries - e) : 0;
          if (all && !kTransposed) {
            for (int j = 0; j < 4 && e + 1 < run.entries; ++j)
              fetch<T>(w.at(tile.row0 + rows[4 + j], tile.column0), tile.width);
            four_long_rows<V, T, kMask>(g, row, tile.column0, run.length, to);
          } else if (groups > 0) {
            neighbours<V, T, kMask>(g, row[0], groups, tile.column0, run.length, to);
            entries = (int)groups * V::W / 4;
          } else {
            for (int k = 0; k < run.length; ++k)
              for (int j = 0; j < 4; ++j)
                to[4 * k + j] = value_at<kMask>(w, row[j], tile.column0 + columns[k], run.exact);
          }
        }
        e += entries;
        rows += entries * run.width;
        if (!tile.one_list) columns += entries * run.length;
        to += (int64_t)entries * run.length * run.width;
      }
    }
  }
}

}  // namespace
}  // namespace maskfuse
