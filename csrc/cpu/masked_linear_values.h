// The active weights of a panel, copied out of the matrix in the order in which the accumulate kernel reads them
// (masked_linear_plan.h), with the mask applied and half types widened. Included by masked_linear_{avx2,avx512}.cpp
// only.
#pragma once

#include "masked_linear_lanes.h"
#include "masked_linear_tile.h"

namespace maskfuse {
namespace {

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
  if constexpr (kMask == MaskKind::gate) return widen(w.at(row, column)) * sigmoid_of(widen(w.factor(row, column)));
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

// kRows rows (one or four) whose list is no whole chunk, W columns at a time: what is active in any of them moves to
// the front of its vector. Each store may run over the end of what it adds, where the next one writes.
template <class V, class T, int kRows>
static inline void short_rows(const MaskedGemm& g, const int64_t* row, int64_t column0, int64_t width,
                              typename V::S* to) {
  WeightRow<T> rows[kRows];
  for (int i = 0; i < kRows; ++i) rows[i] = weight_row<T>(g, row[i]);
  for (int64_t k = 0; k < width; k += V::W) {
    const int64_t column = column0 + k;
    const int inside = (int)min64(V::W, width - k);
    uint32_t any = 0;
    for (int i = 0; i < kRows; ++i) any |= mask_at(rows[i].bits, column);
    any &= inside < V::W ? (1u << inside) - 1 : V::kAll;
    if (any == 0) continue;
    typename V::Reg r[kRows];
    for (int i = 0; i < kRows; ++i) r[i] = V::compress(load_weight<V, MaskKind::bits>(rows[i], column, inside), any);
    if constexpr (kRows == 4) V::interleave4(r);
    const int count = kRows * __builtin_popcount(any);
    for (int i = 0; i < kRows && i * V::W < count; ++i) V::store(to + i * V::W, r[i]);
    to += count;
  }
}

// `groups` times W neighbouring rows with one list of the transposed matrix: B is read along its rows, W / 4 of them
// at a time, so that whole vectors of each four of rows are written.
template <class V, class T, MaskKind kMask>
static inline void neighbours(const MaskedGemm& g, int64_t row, int64_t groups, int64_t column0, const uint8_t* columns,
                              int length, typename V::S* to) {
  constexpr int W = V::W, kSteps = W / 4;
  for (int k = 0; k < length; k += kSteps) {
    const int steps = (int)min64(kSteps, length - k);
    for (int64_t i = 0; i < groups; ++i) {
      typename V::Reg r[kSteps];
      for (int j = 0; j < kSteps; ++j) {
        if (j < steps) {
          const WeightRow<T> from = weight_row<T>(g, column0 + columns[k + j]);
          if (k + j + kSteps < length)
            __builtin_prefetch(weight_row<T>(g, column0 + columns[k + j + kSteps]).value + row + i * W);
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

// How many groups of W neighbours, each from a multiple of W on, the next entries of four rows are; `lists` of their
// lists are the same.
template <class V>
static inline int64_t neighbour_groups(const uint8_t* rows, int64_t row0, int lists) {
  if ((row0 + rows[0]) % V::W != 0) return 0;
  int64_t count = 1;
  while (count < 4 * lists && rows[count] == rows[0] + count) ++count;
  return count / V::W;
}

// How many of the next entries have the first one's list.
static inline int equal_lists(const uint8_t* columns, int length, int entries) {
  int same = 1;
  for (; same < entries; ++same)
    for (int k = 0; k < length; ++k)
      if (columns[same * length + k] != columns[k]) return same;
  return same;
}

// `entries` exact entries with one list and rows in rising order, of the transposed matrix: what B's rows have for
// them moves together, W columns at a time, and goes to the entries four by four. At most 64 entries, a panel's rows.
template <class V, class T>
static inline void rising_rows(const MaskedGemm& g, int64_t row0, const uint8_t* rows, int entries, int64_t column0,
                               const uint8_t* columns, int length, typename V::S* to) {
  constexpr int W = V::W;
  uint32_t active[256 / W + 1] = {};
  const int first = rows[0] / W, last = rows[4 * entries - 1] / W;
  for (int i = 0; i < 4 * entries; ++i) active[rows[i] / W] |= 1u << (rows[i] % W);
  typename V::S moved[256 + W];
  for (int k = 0; k < length; ++k) {
    const T* const from = (const T*)g.b + (column0 + columns[k]) * g.b_ld + row0;
    typename V::S* end = moved;
    for (int i = first; i <= last; ++i) {
      if (active[i] == 0) continue;
      const int inside = i == last ? rows[4 * entries - 1] % W + 1 : W;
      V::store(end, V::compress(V::load_n(from + i * W, inside), active[i]));
      end += __builtin_popcount(active[i]);
    }
    for (int e = 0; e < entries; ++e)
      for (int j = 0; j < 4; ++j) to[((int64_t)e * length + k) * 4 + j] = moved[4 * e + j];
  }
}

static inline bool are_rising(const uint8_t* rows, int count) {
  for (int i = 1; i < count; ++i)
    if (rows[i] <= rows[i - 1]) return false;
  return true;
}

// Asks for a stretch of a row: rows come in an order that the hardware does not foresee.
template <class T>
static inline void fetch(const T* from, int64_t count) {
  for (int64_t byte = 0; byte < count * (int64_t)sizeof(T); byte += 64) __builtin_prefetch((const char*)from + byte);
}

// Values of all tiles of a panel. `values` has room for four vectors of overhang, at most kPackedPad.
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
          const int64_t row = tile.row0 + rows[0];
          if (!kTransposed && e + 4 < run.entries) fetch<T>(w.at(tile.row0 + rows[4], tile.column0), tile.width);
          if (kMask == MaskKind::bits && !kTransposed && tiles.plan && run.length * 4 > tile.width)
            short_rows<V, T, 1>(g, &row, tile.column0, tile.width, to);
          else
            single_values<kMask>(w, row, tile.column0, columns, run, to);
        } else {
          const int64_t row[4] = {tile.row0 + rows[0], tile.row0 + rows[1], tile.row0 + rows[2], tile.row0 + rows[3]};
          const bool all = run.length == tile.width;
          if (!kTransposed) {
            for (int j = 0; j < 4 && e + 1 < run.entries; ++j)
              fetch<T>(w.at(tile.row0 + rows[4 + j], tile.column0), tile.width);
            if (all)
              four_long_rows<V, T, kMask>(g, row, tile.column0, run.length, to);
            else
              short_rows<V, T, 4>(g, row, tile.column0, tile.width, to);
          } else {
            const int left = run.entries - e;
            const int lists = tile.one_list || all ? left : run.exact ? equal_lists(columns, run.length, left) : 1;
            const int64_t groups = neighbour_groups<V>(rows, tile.row0, lists);
            if (groups > 0) {
              neighbours<V, T, kMask>(g, row[0], groups, tile.column0, columns, run.length, to);
              entries = (int)groups * V::W / 4;
            } else if (run.exact && are_rising(rows, 4 * lists)) {
              rising_rows<V, T>(g, tile.row0, rows, lists, tile.column0, columns, run.length, to);
              entries = lists;
            } else {
              for (int k = 0; k < run.length; ++k)
                for (int j = 0; j < 4; ++j)
                  to[4 * k + j] = value_at<kMask>(w, row[j], tile.column0 + columns[k], run.exact);
            }
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

// Part: n whole panels, whose values go to their places among those of all, in `shared`.
template <class V, class T, bool kTransposed>
static void values_task(const MaskedGemm& g, const Part& part) {
  static_assert(4 * V::W <= kPackedPad);
  const Tiles tiles(g, part);
  for (int64_t n = part.n0; n < part.n1; n += tiles.panel) {
    const int64_t panel = n / tiles.panel;
    panel_values<V, T, kTransposed, MaskKind::bits>(g, tiles, panel,
                                                    (typename V::S*)part.shared + tiles.ordered(panel));
  }
}

}  // namespace
}  // namespace maskfuse
