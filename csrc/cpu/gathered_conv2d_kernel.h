// A convolution of chosen channels, forward and input_grad. Included by gathered_conv2d_{avx2,avx512}.cpp only.
//
//   weights of the chosen channels to lanes
//   for a tile of an image
//     for as many of the channels to sum over as fit
//       stage them                                                    first- or second-level cache
//       for two blocks of the result: for up to 14 pixels of a row    sums in registers
//         for channels, for taps: sums += weights x pixel             two vectors of weights, a pixel in all lanes
//     sums to the image
#pragma once

#include <utility>

#include "gathered_conv2d_lanes.h"
#include "gathered_conv2d_result.h"

namespace maskfuse {
namespace {

// Pixels at once: two blocks of sums for each, two vectors of weights and one pixel fill the registers.
template <class V>
inline constexpr int kMostTogether = (V::kRegisters - 3) / 2;

// What is summed for some pixels side by side and two blocks: channels [0, count) of the staged ones.
template <class V>
struct Sum {
  using S = typename V::S;
  const S* input;
  int64_t channel_step, pixel_step, taps, count;  // pixel_step is 1, or channel_step is
  const int64_t* tap_at;
  const int32_t* slots;  // where in `weights` a channel is
  const S* weights[2];
  const S* start[2];  // lanes that sums start from, or null: from where they are
  S* sums[2];
};

// kRows: pixels of a channel lie side by side, not a pixel's channels.
template <class V, int kPixels, int kBlocks, bool kRows>
__attribute__((noinline)) static void sum_pixels(const Sum<V>& s) {
  using Reg = typename V::Reg;
  constexpr int W = V::W;
  Reg sum[kBlocks][kPixels];
#pragma GCC unroll 2
  for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p) sum[b][p] = V::load(s.start[0] ? s.start[b] : s.sums[b] + p * W);
  for (int64_t i = 0; i < s.count; ++i) {
    const typename V::S* const channel = s.input + i * s.channel_step;
    const int64_t at = s.slots[i] * s.taps * W;
    for (int64_t t = 0; t < s.taps; ++t) {
      const typename V::S* from = channel + s.tap_at[t];
      Reg weight[kBlocks];
#pragma GCC unroll 2
      for (int b = 0; b < kBlocks; ++b) weight[b] = V::load(s.weights[b] + at + t * W);
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
        const Reg pixel = V::set1(kRows ? from[p] : *from);
        if constexpr (!kRows) from += s.pixel_step;
#pragma GCC unroll 2
        for (int b = 0; b < kBlocks; ++b) sum[b][p] = V::fma(pixel, weight[b], sum[b][p]);
      }
    }
  }
#pragma GCC unroll 2
  for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p) V::store(s.sums[b] + p * W, sum[b][p]);
}

template <class V>
struct SumTable {
  void (*of[kMostTogether<V>][2])(const Sum<V>&);  // [pixels - 1][blocks - 1]
};

template <class V, bool kRows, int... kLess>
static constexpr SumTable<V> sum_table(std::integer_sequence<int, kLess...>) {
  return {{{sum_pixels<V, kLess + 1, 1, kRows>, sum_pixels<V, kLess + 1, 2, kRows>}...}};
}

// One tile of an image.
template <class V, class T>
static void tile_task(const GatheredConv& problem, const GatheredSchedule& s, int64_t index, void* shared,
                      void* scratch) {
  using S = typename V::S;
  constexpr int W = V::W;
  using Lengths = std::make_integer_sequence<int, kMostTogether<V>>;
  static constexpr SumTable<V> kSums[2] = {sum_table<V, false>(Lengths{}), sum_table<V, true>(Lengths{})};
  MaskedConv g = gathered_form(problem);
  const ConvShape& c = g.shape;
  const TileMemory<V> m(c, s, scratch);
  const Chosen chosen(problem);
  const int64_t image = index / s.tiling.tiles(), taps = c.taps();
  g.input.data = (T*)g.input.data + image * g.input.n, g.output.data = (T*)g.output.data + image * g.output.n;
  const Window w(g, s.tiling, index % s.tiling.tiles(), m.places);
  int64_t reads;
  const int64_t slots = list_reads<V>(problem, s, c, image, m, &reads);
  const int64_t writes = list_channels(chosen_of(chosen.writes, chosen.writes_ld, image), c.out, m.writes);
  const int64_t blocks = ceil_div(writes, W), pixels = w.out_rows * w.out_columns;
  const S* lanes = (const S*)((const char*)shared + s.lanes_at);
  if (!s.shared_lanes) {
    slots_by_channel(m.reads, m.slots, reads, c.in, m.slot_of);
    for (int64_t b = 0; b < blocks; ++b)
      weights_to_lanes<V, T>(g, c, m.writes + b * W, (int)min64(W, writes - b * W), m.slot_of,
                             m.own_lanes + b * slots * taps * W);
    lanes = m.own_lanes;
  }
  // Sums start from the bias.
  S* const start = m.fill;
  for (int64_t i = 0; i < blocks * W; ++i)
    start[i] = i < writes && g.bias ? (S)widen((const T*)g.bias + m.writes[i]) : S(0);
  const int64_t groups = ceil_div(w.out_columns, kMostTogether<V>);
  // Staged as they lie: rows of a channel, or channels of a pixel.
  const bool rows = g.input.c != 1 || g.input.x == 1;
  const int64_t pixel_step = rows ? 1 : s.chunk;
  for (int64_t t = 0; t < taps; ++t) w.tap_at[t] *= pixel_step;
  const int64_t last = c.batch * s.tiling.tiles();
  const bool has_next = rows && index + 1 < last && (chosen.reads_ld == 0 || (index + 1) / s.tiling.tiles() == image);
  Image next_input = g.input;
  next_input.data = (T*)next_input.data + ((index + 1) / s.tiling.tiles() - image) * next_input.n;
  const Window next_window(g, s.tiling, (index + 1) % s.tiling.tiles(), m.next_places);
  for (int64_t from = 0; from == 0 || from < reads; from += s.chunk) {
    Sum<V> sum{};
    sum.count = min64(s.chunk, reads - from);
    if (rows)
      stage_channels<V, T>(g.input, w, m.reads + from, sum.count, c.in, s.plane, m.input);
    else
      stage_pixels<V, T>(g.input, w, m.reads + from, sum.count, c.in, s.chunk, m.input);
    sum.channel_step = rows ? s.plane : 1, sum.pixel_step = pixel_step, sum.taps = taps;
    sum.tap_at = w.tap_at, sum.slots = m.slots + from;
    // What comes next is on its way meanwhile: the next channels, or the first of the next tile.
    const int64_t next = from + s.chunk, calls = blocks == 0 ? 1 : ceil_div(blocks, 2) * w.out_rows * groups;
    FetchWindow fetch(next < reads ? g.input : next_input, sizeof(T), next < reads ? w : next_window,
                      m.reads + (next < reads ? next : 0),
                      min64(s.chunk, next < reads && rows ? reads - next
                                     : has_next           ? reads
                                                          : 0),
                      calls);
    for (int64_t b = 0; b < blocks; b += 2) {
      const int both = b + 1 < blocks;
      for (int i = 0; i <= both; ++i) {
        sum.weights[i] = lanes + (b + i) * slots * taps * W;
        sum.start[i] = from == 0 ? start + (b + i) * W : nullptr;
      }
      for (int64_t row = 0; row < w.out_rows; ++row)
        for (int64_t k = 0; k < groups; ++k) {
          const int64_t begin = k * w.out_columns / groups, end = (k + 1) * w.out_columns / groups;
          sum.input = m.input + (row * w.columns + begin) * pixel_step;
          for (int i = 0; i <= both; ++i) sum.sums[i] = m.sums + ((b + i) * pixels + row * w.out_columns + begin) * W;
          kSums[rows].of[end - begin - 1][both](sum);
          fetch();
        }
    }
  }
  unstage<V, T>(g.output, w, m.writes, writes, c.out, (const T*)g.bias, pixels, m.sums, m.fill, m.groups);
}

}  // namespace
}  // namespace maskfuse
