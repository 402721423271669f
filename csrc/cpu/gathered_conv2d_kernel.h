// A convolution of the channels that an image has chosen. Included by gathered_conv2d_{avx2,avx512}.cpp only.
//
//   for some strips of an image
//     sums of all rows of the result, from the bias on                       second-level cache
//     for as many of the channels to sum over as fit                         their weights: second-level cache
//       for a strip: the channels in lanes, a copy for each dx               first-level cache
//         for four rows: sums in registers += weight x line, for all taps    weights where they lie, row by row
//     sums to the image
//
// input_grad is the forward form of masked_conv2d.h: it sums over all of the gradient's channels, and rows of the
// result are the chosen ones.
#pragma once

#include "gathered_conv2d.h"
#include "masked_conv2d_stage.h"

namespace maskfuse {
namespace {

// kRows rows of the result, kStrip vectors of them at a time.
template <class V, class T, int kVectors, int kRows>
__attribute__((noinline)) static void gathered_rows(const typename V::S* x, const int32_t* lines, const int64_t* places,
                                                    int64_t length, const T* const* weight, typename V::S* const* y) {
  using Reg = typename V::Reg;
  constexpr int W = V::W;
  constexpr int kStrip = kVectors < V::kRegisters / 8 ? kVectors : V::kRegisters / 8;
  for (int strip = 0; strip < kVectors; strip += kStrip) {
    Reg sum[kRows][kStrip];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < kStrip; ++v) sum[i][v] = V::load(y[i] + (strip + v) * W);
    for (int64_t k = 0; k < length; ++k) {
      const typename V::S* const from = x + (int64_t)lines[k] * kUnitLanes<typename V::S> + strip * W;
      const int64_t place = places[k];
      Reg line[kStrip];
#pragma GCC unroll 4
      for (int v = 0; v < kStrip; ++v) line[v] = V::load(from + v * W);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        const Reg w = V::set1(widen(weight[i] + place));
#pragma GCC unroll 4
        for (int v = 0; v < kStrip; ++v) sum[i][v] = V::fma(w, line[v], sum[i][v]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < kStrip; ++v) V::store(y[i] + (strip + v) * W, sum[i][v]);
  }
}

// The next channels to sum over, from `channel` on, as many as fit: their bits, a word each group.
struct ChannelChunk {
  int64_t begin, end, count;
};

static inline uint32_t group_bits(const uint32_t* chosen, int64_t channel, int64_t channels) {
  const int64_t left = channels - channel;
  const uint32_t inside = left >= kChannelGroup ? 0xffff : (1u << left) - 1;
  return (chosen ? mask_at(chosen, channel) : ~0u) & inside;
}

static inline ChannelChunk next_chunk(const uint32_t* chosen, int64_t channel, int64_t channels, int64_t most) {
  ChannelChunk chunk{channel, channel, 0};
  for (; chunk.end < channels; chunk.end += kChannelGroup) {
    const int count = __builtin_popcount(group_bits(chosen, chunk.end, channels));
    if (chunk.count + count > most) break;
    chunk.count += count;
  }
  return chunk;
}

// The chosen channels of a chunk to lines, one behind another.
template <class V, class T>
static inline void stage_chosen(const Image& image, const LaneMap<V>& map, const ChannelChunk& chunk,
                                const uint32_t* chosen, int64_t channels, int64_t plane, typename V::S* to) {
  constexpr int W = V::W, kUnit = LaneMap<V>::kUnit;
  static_assert(kChannelGroup % W == 0);
  const T* const from = (const T*)image.data;
  for (int64_t c = chunk.begin; c < chunk.end; c += kChannelGroup) {
    uint32_t bits = group_bits(chosen, c, channels);
    if (image.c == 1 && channels > 1) {
      for (int64_t k = c; bits != 0; k += W, bits >>= W) {
        const uint32_t some = bits & V::kAll;
        if (some == 0) continue;
        stage_transposed<V>(from + k, map, min64(W, channels - k), some, plane, to);
        to += __builtin_popcount(some) * plane * kUnit;
      }
      continue;
    }
    for (; bits != 0; bits &= bits - 1, to += plane * kUnit)
      stage_channel<V>(from + (c + __builtin_ctz(bits)) * image.c, map, to);
  }
}

template <class V, class T>
static void gathered_task(const GatheredConv& problem, const GatheredSchedule& s, int64_t index, void* scratch) {
  using S = typename V::S;
  constexpr int kUnit = kUnitLanes<S>;
  const int64_t image = index / s.parts, part = index % s.parts, strips = s.strips.strips();
  const bool grad = problem.conv.pass == Pass::input_grad;
  MaskedConv g = forward_form(problem.conv);
  g.shape.batch = 1;
  g.input.data = (T*)g.input.data + image * g.input.n, g.output.data = (T*)g.output.data + image * g.output.n;
  const ConvShape& c = g.shape;
  const uint32_t* const chosen = problem.channels + image * problem.channels_ld;
  const uint32_t* const chosen_in = grad ? nullptr : chosen;
  char* const memory = (char*)scratch;
  auto* const first = (int64_t*)(memory + s.first_at);
  auto* const lines = (int32_t*)(memory + s.lines_at);
  auto* const places = (int64_t*)(memory + s.places_at);
  auto* const rows = (int32_t*)(memory + s.rows_at);
  S* const x = (S*)(memory + s.input_at);
  const auto sums_of = [&](int64_t i) { return (S*)(memory + s.output_at + i * s.output_bytes); };
  // Channel c of the input, and row r of the result, have weights at c * in_step + r * out_step + tap.
  const int64_t taps = c.taps(), in_step = grad ? g.weight_ld : taps, out_step = grad ? taps : g.weight_ld;

  staged_rows(c, s.strips.rows, first);
  for (int64_t k = 0; k < s.most * taps; ++k) {
    const int64_t tap = grad ? taps - 1 - k % taps : k % taps;
    lines[k] = (int32_t)(k / taps * s.strips.plane + tap % c.kernel_w * s.strips.staged_rows + first[tap / c.kernel_w]);
  }
  int64_t count = 0;
  for (int64_t r = 0; r < c.out; ++r)
    if (!grad || (mask_at(chosen, r) & 1)) rows[count++] = (int32_t)r;

  const int64_t end = (part + 1) * strips / s.parts;
  for (int64_t m = part * strips / s.parts; m < end; m += s.together) {
    const int64_t together = min64(s.together, end - m);
    Strip strip[kMostTogether];
    LaneMap<V> from[kMostTogether];
    for (int64_t i = 0; i < together; ++i) {
      strip[i] = strip_at<V>(g, s.strips, m + i);
      from[i] = input_map<V>(g, s.strips, strip[i], memory + s.map_at + i * s.map_bytes);
      input_rows<V>(g, s.strips, strip[i], first, from[i]);
      for (int64_t r = 0; r < c.out; ++r) {
        const auto start = g.bias ? V::set1((S)widen((const T*)g.bias + r)) : V::zero();
        S* const sums = sums_of(i) + r * s.strips.out_plane * kUnit;
        for (int64_t k = 0; k < strip[i].rows * kUnit; k += V::W) V::store(sums + k, start);
      }
    }
    for (int64_t channel = 0; channel < c.in;) {
      const ChannelChunk chunk = next_chunk(chosen_in, channel, c.in, s.most);
      channel = chunk.end;
      int64_t length = 0;
      for (int64_t k = chunk.begin; k < chunk.end; k += kChannelGroup)
        for (uint32_t bits = group_bits(chosen_in, k, c.in); bits != 0; bits &= bits - 1)
          for (int64_t t = 0; t < taps; ++t) places[length++] = (k + __builtin_ctz(bits)) * in_step + t;
      for (int64_t i = 0; i < together; ++i) {
        stage_chosen<V, T>(g.input, from[i], chunk, chosen_in, c.in, s.strips.plane, x);
        for_vectors<V>(strip[i].rows * kUnit / V::W, [&](auto number) {
          constexpr int kVectors = decltype(number)::value;
          const auto sums = [&](int64_t r, auto number_of_rows) {
            constexpr int kRows = decltype(number_of_rows)::value;
            const T* weight[kRows];
            S* to_rows[kRows];
            for (int j = 0; j < kRows; ++j) {
              weight[j] = (const T*)g.weight + rows[r + j] * out_step;
              to_rows[j] = sums_of(i) + rows[r + j] * s.strips.out_plane * kUnit;
            }
            gathered_rows<V, T, kVectors, kRows>(x, lines, places, length, weight, to_rows);
          };
          int64_t r = 0;
          for (; r + 4 <= count; r += 4) sums(r, Int<4>{});
          for (; r < count; ++r) sums(r, Int<1>{});
        });
      }
    }
    for (int64_t i = 0; i < together; ++i) {
      LaneMap<V> to = output_map<V>(g, s.strips, strip[i], memory + s.map_at + i * s.map_bytes);
      output_rows<V>(g, s.strips, strip[i], to);
      unstage<V, T>(g.output, to, 0, c.out, s.strips.out_plane, sums_of(i));
    }
  }
}

template <class VectorF32, class VectorF64>
static GatheredTask gathered_task_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32:
      return gathered_task<VectorF32, float>;
    case Dtype::f64:
      return gathered_task<VectorF64, double>;
    case Dtype::bf16:
      return gathered_task<VectorF32, Bf16>;
    default:
      return gathered_task<VectorF32, Fp16>;
  }
}

}  // namespace
}  // namespace maskfuse
