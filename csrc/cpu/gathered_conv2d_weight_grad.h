// The weight's gradient of a convolution of chosen channels. Included by gathered_conv2d_{avx2,avx512}.cpp only.
//
//   for a slice of the tiles of all images, three blocks of output channels, and some input channels
//     stage the gradient in lanes, [block][pixel][lane], and the input as for the forward pass
//     for eight of (input channel, tap)                               sums in registers
//       for pixels: sums += input x gradient                          an input in all lanes, three vectors of gradient
//   sums of all slices, [block][input channel][tap][lane], to the rows of the weight
#pragma once

#include "gathered_conv2d_result.h"

namespace maskfuse {
namespace {

// Pairs of an input channel and a tap at once.
template <class V>
inline constexpr int kPairs = V::kRegisters / 4;

// What is summed for kPairs pairs and kGradBlocks blocks at most.
template <class V>
struct GradSum {
  using S = typename V::S;
  const S* input[kPairs<V>];
  const S* grad[kGradBlocks];
  int64_t rows, columns;          // of the tile
  int64_t input_row, input_step;  // elements from row to row, and from pixel to pixel
  bool first;                     // sums start from zero
  S* sums[kGradBlocks];           // of a block,
  int64_t at[kPairs<V>];          // and a pair
};

template <class V, int kChannels, int kBlocks>
__attribute__((noinline)) static void sum_grad(const GradSum<V>& s) {
  using Reg = typename V::Reg;
  constexpr int W = V::W;
  Reg sum[kBlocks][kChannels];
#pragma GCC unroll 3
  for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 8
    for (int i = 0; i < kChannels; ++i) sum[b][i] = s.first ? V::zero() : V::load(s.sums[b] + s.at[i]);
  const typename V::S *input[kChannels], *grad[kBlocks];
#pragma GCC unroll 8
  for (int i = 0; i < kChannels; ++i) input[i] = s.input[i];
#pragma GCC unroll 3
  for (int b = 0; b < kBlocks; ++b) grad[b] = s.grad[b];
  for (int64_t row = 0; row < s.rows; ++row)
    for (int64_t p = row * s.columns, at = row * s.input_row; p < (row + 1) * s.columns; ++p, at += s.input_step) {
      Reg pixel[kBlocks];
#pragma GCC unroll 3
      for (int b = 0; b < kBlocks; ++b) pixel[b] = V::load(grad[b] + p * W);
#pragma GCC unroll 8
      for (int i = 0; i < kChannels; ++i) {
        const Reg one = V::set1(input[i][at]);
#pragma GCC unroll 3
        for (int b = 0; b < kBlocks; ++b) sum[b][i] = V::fma(one, pixel[b], sum[b][i]);
      }
    }
#pragma GCC unroll 3
  for (int b = 0; b < kBlocks; ++b)
#pragma GCC unroll 8
    for (int i = 0; i < kChannels; ++i) V::store(s.sums[b] + s.at[i], sum[b][i]);
}

template <class V, int kBlocks>
static inline void sum_grad_of(int64_t pairs, const GradSum<V>& s) {
  if constexpr (kPairs<V> >= 8) {
    if (pairs == 8) return sum_grad<V, 8, kBlocks>(s);
  }
  if (pairs == 4) return sum_grad<V, 4, kBlocks>(s);
  if (pairs == 2) return sum_grad<V, 2, kBlocks>(s);
  sum_grad<V, 1, kBlocks>(s);
}

// Slots are the input channels that any image may have chosen: all of them where images choose their own.
template <class V>
struct GradMemory {
  using S = typename V::S;
  int32_t *reads, *slots, *writes;
  void* places;
  S *input, *grad, *sums;
  bool own;

  GradMemory(const GatheredConv& problem, const GatheredSchedule& s, void* shared, void* scratch) {
    char* const at = (char*)scratch;
    reads = (int32_t*)(at + s.lists_at), slots = reads + problem.conv.shape.in, writes = slots + problem.conv.shape.in;
    places = at + s.places_at;
    input = (S*)(at + s.input_at), grad = (S*)(at + s.own_sums_at), sums = (S*)((char*)shared + s.sums_at);
    own = problem.in_channels && problem.in_ld != 0;
  }
};

// One slice of tiles, some blocks and some slots.
template <class V, class T>
static void grad_sums_task(const GatheredConv& problem, const GatheredSchedule& s, int64_t index, void* shared,
                           void* scratch) {
  using S = typename V::S;
  constexpr int W = V::W;
  const MaskedConv g = gathered_form(problem);
  const ConvShape& c = g.shape;
  const GradMemory<V> m(problem, s, shared, scratch);
  const int64_t taps = c.taps(), slots = s.slots, slot_parts = ceil_div(slots, s.chunk);
  const int64_t slice = index % s.slices, part = index / s.slices % slot_parts;
  const int64_t slot0 = part * slots / slot_parts, slot1 = (part + 1) * slots / slot_parts;
  const int64_t block0 = index / s.slices / slot_parts * kGradBlocks,
                blocks = min64(kGradBlocks, s.out_blocks - block0);
  const int64_t writes = list_channels(problem.out_channels, c.out, m.writes);
  const int64_t tiles = c.batch * s.tiling.tiles(), end = (slice + 1) * tiles / s.slices;
  const auto sums = [&](int64_t b, int64_t slot) {
    return m.sums + (((slice * s.out_blocks + block0 + b) * slots + slot) * taps) * W;
  };
  for (int64_t b = 0; b < blocks; ++b)
    for (int64_t k = 0; m.own && k < (slot1 - slot0) * taps; ++k) V::store(sums(b, slot0) + k * W, V::zero());
  int64_t listed = -1, reads = 0;
  bool first = !m.own;
  for (int64_t tile = slice * tiles / s.slices; tile < end; ++tile, first = false) {
    const int64_t image = tile / s.tiling.tiles();
    if (listed < 0 || (m.own && listed != image)) {
      // The channels of this part, and their slots.
      const int64_t all = list_channels(chosen_of(problem.in_channels, problem.in_ld, image), c.in, m.reads);
      reads = 0;
      for (int64_t i = 0; i < all; ++i) {
        const int64_t slot = m.own ? m.reads[i] : i;
        if (slot < slot0 || slot >= slot1) continue;
        m.slots[reads] = (int32_t)slot, m.reads[reads++] = m.reads[i];
      }
      listed = image;
    }
    Image input = g.input, grad = g.output;
    input.data = (T*)input.data + image * input.n, grad.data = (T*)grad.data + image * grad.n;
    const Window w(g, s.tiling, tile % s.tiling.tiles(), m.places);
    const int64_t pixels = w.out_rows * w.out_columns;
    for (int64_t b = 0; b < blocks; ++b)
      stage_block<V, T>(grad, w, m.writes + (block0 + b) * W, (int)min64(W, writes - (block0 + b) * W), c.out,
                        m.grad + b * pixels * W);
    GradSum<V> sum{};
    sum.rows = w.out_rows, sum.columns = w.out_columns, sum.first = first;
    // Single pixels without borders are read where they lie.
    const bool in_place = sizeof(T) == sizeof(S) && taps == 1 && (c.pad_h | c.pad_w) == 0 && input.x == 1;
    sum.input_row = in_place ? c.stride_h * input.y : w.columns, sum.input_step = in_place ? c.stride_w : 1;
    const bool by_pixel = taps == 1 && input.c == 1 && input.x != 1;
    if (by_pixel) sum.input_row = w.columns * s.chunk, sum.input_step = s.chunk;
    if (by_pixel)
      stage_pixels<V, T>(input, w, m.reads, reads, c.in, s.chunk, m.input);
    else if (!in_place)
      stage_channels<V, T>(input, w, m.reads, reads, c.in, s.plane, m.input);
    for (int64_t b = 0; b < blocks; ++b) sum.grad[b] = m.grad + b * pixels * W;
    for (int64_t b = 0; b < blocks; ++b) sum.sums[b] = sums(b, 0);
    for (int64_t k = 0, step; k < reads * taps; k += step) {
      for (step = kPairs<V>; step > reads * taps - k;) step /= 2;
      for (int64_t j = 0; j < step; ++j) {
        const int64_t channel = (k + j) / taps, tap = (k + j) % taps;
        sum.input[j] = in_place   ? (const S*)input.data + m.reads[channel] * input.c + w.row_at[0] + w.column_at[0]
                       : by_pixel ? m.input + channel + w.tap_at[tap] * s.chunk
                                  : m.input + channel * s.plane + w.tap_at[tap];
        sum.at[j] = (m.slots[channel] * taps + tap) * W;
      }
      if (blocks == 3)
        sum_grad_of<V, 3>(step, sum);
      else if (blocks == 2)
        sum_grad_of<V, 2>(step, sum);
      else
        sum_grad_of<V, 1>(step, sum);
    }
  }
}

// Rows of the weight's gradient, a block's.
template <class V, class T>
static void grad_rows_task(const GatheredConv& problem, const GatheredSchedule& s, int64_t index, void* shared,
                           void* scratch) {
  constexpr int W = V::W;
  const MaskedConv g = gathered_form(problem);
  const ConvShape& c = g.shape;
  const GradMemory<V> m(problem, s, shared, scratch);
  const int64_t taps = c.taps(), writes = list_channels(problem.out_channels, c.out, m.writes);
  list_channels(m.own ? nullptr : problem.in_channels, c.in, m.reads);
  const auto row = [&](int64_t o) { return (T*)g.weight_grad + o * g.weight_grad_ld; };
  const auto zero = [&](int64_t o, int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; k += W) V::store_n(row(o) + k, V::zero(), (int)min64(W, end - k));
  };
  const int64_t block = index, used = min64(W, writes - block * W);
  // Rows without a chosen channel are written with those of the block before.
  const int32_t* const rows = m.writes + block * W;
  for (int64_t o = block == 0 ? 0 : rows[0], i = 0; o < (block + 1 < s.out_blocks ? m.writes[(block + 1) * W] : c.out);
       ++o)
    if (i < used && rows[i] == o)
      ++i;
    else
      zero(o, 0, c.in * taps);
  // Of channels side by side, W columns at a time.
  int64_t next = 0;
  for (int64_t slot = 0, run; slot < s.slots && used > 0; slot += run) {
    for (run = 1; slot + run < s.slots && m.reads[slot + run] == m.reads[slot] + run;) ++run;
    const int64_t column = m.reads[slot] * taps;
    for (int64_t i = 0; i < used; ++i) zero(rows[i], next, column);
    next = column + run * taps;
    for (int64_t k = 0; k < run * taps; k += W) {
      typename V::Reg r[W];
      const int n = (int)min64(W, run * taps - k);
      for (int j = 0; j < W; ++j) {
        r[j] = V::zero();
        for (int64_t slice = 0; slice < s.slices && j < n; ++slice)
          r[j] = V::add(r[j], V::load(m.sums + (((slice * s.out_blocks + block) * s.slots + slot) * taps + k + j) * W));
      }
      V::transpose(r);
      for (int64_t i = 0; i < used; ++i) {
        const uint32_t* const bits = g.bits ? g.bits + rows[i] * g.bits_ld : nullptr;
        V::store_n(row(rows[i]) + column + k, bits ? V::keep(r[i], bits_from(bits, column + k, n)) : r[i], n);
      }
    }
  }
  for (int64_t i = 0; i < used; ++i) zero(rows[i], next, c.in * taps);
}

}  // namespace
}  // namespace maskfuse
