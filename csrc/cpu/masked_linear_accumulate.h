// Forward and input_grad with activations in lanes: every active weight is broadcast and multiplies one line of the
// batch. Included by masked_linear_{avx2,avx512}.cpp only.
//
//   once a call      A in lanes, shared by all threads                          [block][column][lane]
//   for a panel of the result's columns (a thread's own)
//     copy the active weights in the order of the plan                         streamed from cache
//     for a block of the batch
//       sums of the panel, from the bias on                                    second-level cache
//       for a chunk of columns                                                 A's tile: first-level cache
//         for an entry: sums in registers += weight x line, for its list
//       sums back out of lanes, rounded
//
// Where values are few, or were packed in this order, the loops over panels and blocks change places: all values are
// copied first, and a thread lays out the blocks of the batch that it works on, which no other thread reads.
//
// Bound, for a single row: one line of loads for one of multiply-adds, so half of what a dense product reaches. Four
// rows that share a list load a line once for four.
#pragma once

#include "masked_linear_values.h"

namespace maskfuse {
namespace {

// One row: kVectors sums, twice where registers allow, so that an addition need not wait for the one before. The line
// of a column c begins kStep * c behind x: columns are numbers of lines, or their places (masked_conv2d_accumulate.h).
// sums.load(row, v, registers) and sums.store are where a row's sums, from vector v on, come from and go.
template <class V, int kVectors, int kStep, class Column, class Sums>
static inline void accumulate_single(const typename V::S* x, const Column* columns, int length,
                                     const typename V::S* values, int row, const Sums& sums) {
  using Reg = typename V::Reg;
  constexpr int W = V::W;
  constexpr int kSets = kVectors * 2 <= V::kRegisters / 2 ? 2 : 1;
  Reg sum[kSets][kVectors];
  sums.load(row, 0, sum[0]);
  if constexpr (kSets == 2)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[1][v] = V::zero();
  const auto add = [&](int set, int k) __attribute__((always_inline)) {
    const typename V::S* line = x + (int64_t)columns[k] * kStep;
    const Reg w = V::set1(values[k]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[set][v] = V::fma(w, V::load(line + v * W), sum[set][v]);
  };
  int k = 0;
  if constexpr (kSets == 2)
    for (; k + 2 <= length; k += 2) add(0, k), add(1, k + 1);
  for (; k < length; ++k) add(0, k);
  if constexpr (kSets == 2)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sum[0][v] = V::add(sum[0][v], sum[1][v]);
  sums.store(row, 0, sum[0]);
}

// Four rows with one list, kStrip vectors of them at a time.
template <class V, int kVectors, int kStep, class Column, class Sums>
static inline void accumulate_four(const typename V::S* x, const Column* columns, int length,
                                   const typename V::S* values, const uint8_t* rows, const Sums& sums) {
  using Reg = typename V::Reg;
  constexpr int W = V::W;
  constexpr int kStrip = kVectors < V::kRegisters / 8 ? kVectors : V::kRegisters / 8;
  for (int strip = 0; strip < kVectors; strip += kStrip) {
    Reg sum[4][kStrip];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sums.load(rows[i], strip, sum[i]);
    for (int k = 0; k < length; ++k) {
      const typename V::S* from = x + (int64_t)columns[k] * kStep + strip * W;
      Reg line[kStrip];
#pragma GCC unroll 4
      for (int v = 0; v < kStrip; ++v) line[v] = V::load(from + v * W);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Reg w = V::set1(values[4 * k + i]);
#pragma GCC unroll 4
        for (int v = 0; v < kStrip; ++v) sum[i][v] = V::fma(w, line[v], sum[i][v]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sums.store(rows[i], strip, sum[i]);
  }
}

// Sums in lines, one for each row of a panel.
template <class V, int kPitch>
struct LineSums {
  typename V::S* lines;

  template <int kCount>
  void load(int row, int v, typename V::Reg (&sum)[kCount]) const {
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) sum[i] = V::load(lines + row * kPitch + (v + i) * V::W);
  }
  template <int kCount>
  void store(int row, int v, const typename V::Reg (&sum)[kCount]) const {
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) V::store(lines + row * kPitch + (v + i) * V::W, sum[i]);
  }
};

// Asks for what is read next while entries are worked on, a share with each: they visit lines in an order that the
// hardware does not foresee.
struct FetchBytes {
  const char *at, *end;
  int64_t share;

  FetchBytes(const Tile& tile, const void* from, int64_t bytes) : at((const char*)from), end(at + bytes) {
    const int64_t entries = tile.entries();
    share = entries > 0 ? (bytes / entries + 127) / 64 * 64 : 0;
  }
  void operator()() {
    const char* const until = at + share < end ? at + share : end;
    for (; at < until; at += 64) __builtin_prefetch(at, 0, 2);
  }
};

// One tile: x is its first column's line; `sums` has those of the panel's rows.
template <class V, int kVectors, int kStep, class Column, class Fetch, class Sums>
static void accumulate_tile(const Tile& tile, const Column* columns, const typename V::S* x, Fetch&& fetch,
                            const typename V::S* values, const Sums& sums) {
  const uint8_t* rows = tile.rows;
  for (int i = 0; i < tile.run_count; ++i) {
    const PlanRun run = tile.runs[i];
    const int step = tile.one_list ? 0 : run.length;
    if (run.width == 1) {
      for (int e = 0; e < run.entries; ++e, columns += step, values += run.length) {
        fetch();
        accumulate_single<V, kVectors, kStep>(x, columns, run.length, values, *rows++, sums);
      }
    } else {
      for (int e = 0; e < run.entries; ++e, columns += step, values += 4 * run.length, rows += 4) {
        fetch();
        accumulate_four<V, kVectors, kStep>(x, columns, run.length, values, rows, sums);
      }
    }
  }
}

// The operand whose rows are the batch, in lanes. Part: m blocks of the batch, n columns.
template <class V, class T>
static void lanes_task(const MaskedGemm& g, const Part& part) {
  const bool grad = g.pass == Pass::weight_grad;
  const int64_t batch = grad ? g.k : g.m, columns = grad ? g.n : g.k;
  const T* from = (const T*)(grad ? g.b : g.a) + part.n0;
  const int64_t ld = grad ? g.b_ld : g.a_ld;
  for (int64_t m = part.m0; m < part.m1; ++m) {
    const BatchBlock block = batch_block<V>(batch, m);
    typename V::S* lanes = (typename V::S*)part.shared + block.begin * columns + part.n0 * block.vectors * V::W;
    to_lanes<V>(from + block.begin * ld, ld, block.rows, part.n1 - part.n0, block.vectors, lanes);
  }
}

// A panel of the result for a block of the batch: x is the block in lanes, y where the panel's sums are kept.
template <class V, class T>
static void accumulate_panel(const MaskedGemm& g, const Tiles& tiles, int64_t panel, const BatchBlock& block,
                             const typename V::S* x, const typename V::S* values, typename V::S* y) {
  using S = typename V::S;
  constexpr int W = V::W;
  const int64_t n = panel * tiles.panel, tall = min64(tiles.panel, g.n - n);
  for (int64_t r = 0; r < tall; ++r) {
    const auto start = g.bias ? V::set1((S)widen((const T*)g.bias + n + r)) : V::zero();
    for (int v = 0; v < block.vectors; ++v) V::store(y + (r * block.vectors + v) * W, start);
  }
  for_vectors<V>(block.vectors, [&](auto number) {
    constexpr int kVectors = decltype(number)::value, kPitch = kVectors * W;
    Tile tile;
    for (int64_t c = 0; c < tiles.chunks(); ++c) {
      tiles.at(panel, c, tile);
      const int64_t next = min64(tiles.chunk, tiles.columns - tile.column0 - tile.width);
      const S* const lines = x + tile.column0 * kPitch;
      accumulate_tile<V, kVectors, kPitch>(
          tile, tile.columns, lines, FetchBytes(tile, lines + tile.width * kPitch, next * kPitch * (int64_t)sizeof(S)),
          values + tile.value, LineSums<V, kPitch>{y});
    }
  });
  from_lanes<V>(y, block.vectors, block.rows, tall, (T*)g.c + block.begin * g.c_ld + n, g.c_ld);
}

// Part: m blocks of the batch, n whole panels, whose values fit the second-level cache.
template <class V, class T, bool kTransposed, MaskKind kMask>
static void accumulate_task(const MaskedGemm& g, const Part& part) {
  using S = typename V::S;
  const Tiles tiles(g, part);
  const S* const ordered = g.packed ? (const S*)g.packed->ordered : nullptr;
  S* const y = (S*)part.scratch;
  S* const copied = y + tiles.panel * Lanes<V>::kLanes;
  if (!ordered) {
    S* to = copied;
    for (int64_t n = part.n0; n < part.n1; n += tiles.panel) {
      panel_values<V, T, kTransposed, kMask>(g, tiles, n / tiles.panel, to);
      to += tiles.values(n / tiles.panel);
    }
  }
  for (int64_t m = part.m0; m < part.m1; ++m) {
    const BatchBlock block = batch_block<V>(g.m, m);
    const S* const x = (const S*)part.shared + block.begin * g.k;
    const S* from = copied;
    for (int64_t n = part.n0; n < part.n1; n += tiles.panel) {
      const int64_t panel = n / tiles.panel;
      accumulate_panel<V, T>(g, tiles, panel, block, x, ordered ? ordered + tiles.ordered(panel) : from, y);
      from += tiles.values(panel);
    }
  }
}

// Part: m blocks of the batch, all panels. Every thread has its blocks in lanes to itself; what threads share are the
// values, which are few.
template <class V, class T>
static void accumulate_batch_task(const MaskedGemm& g, const Part& part) {
  using S = typename V::S;
  const Tiles tiles(g, part);
  const S* const values = (const S*)(g.packed && g.packed->ordered ? g.packed->ordered : part.shared);
  S* const y = (S*)part.scratch;
  S* const x = y + tiles.panel * Lanes<V>::kLanes;
  for (int64_t m = part.m0; m < part.m1; ++m) {
    const BatchBlock block = batch_block<V>(g.m, m);
    to_lanes<V>((const T*)g.a + block.begin * g.a_ld, g.a_ld, block.rows, g.k, block.vectors, x);
    for (int64_t n = part.n0; n < part.n1; n += tiles.panel)
      accumulate_panel<V, T>(g, tiles, n / tiles.panel, block, x, values + tiles.ordered(n / tiles.panel), y);
  }
}

}  // namespace
}  // namespace maskfuse
