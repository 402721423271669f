// Weights of the chosen channels in lanes, before tiles are summed: once a call, or by each task for its image.
// Included by gathered_conv2d_{avx2,avx512}.cpp only.
#pragma once

#include "gathered_conv2d_window.h"

namespace maskfuse {
namespace {

// What lies where in a task's memory.
template <class V>
struct TileMemory {
  using S = typename V::S;
  int32_t *reads, *slots, *slot_of, *writes;
  void *places, *next_places;
  int32_t* groups;
  S *own_lanes, *input, *sums, *fill;

  TileMemory(const ConvShape& c, const GatheredSchedule& s, void* scratch) {
    char* const at = (char*)scratch;
    reads = (int32_t*)(at + s.lists_at), slots = reads + c.in, slot_of = slots + c.in, writes = slot_of + c.in;
    places = at + s.places_at, next_places = at + s.next_places_at;
    groups = writes + c.out;
    own_lanes = (S*)(at + s.own_lanes_at), input = (S*)(at + s.input_at);
    sums = (S*)(at + s.own_sums_at), fill = (S*)(at + s.fill_at);
  }
};

// Bits of the channels that the forward form sums over, and of those that it computes.
struct Chosen {
  const uint32_t *reads, *writes;
  int64_t reads_ld, writes_ld;

  explicit Chosen(const GatheredConv& g) : Chosen(g, g.conv.pass == Pass::input_grad) {}

 private:
  Chosen(const GatheredConv& g, bool turned)
      : reads(turned ? g.out_channels : g.in_channels),
        writes(turned ? g.in_channels : g.out_channels),
        reads_ld(turned ? g.out_ld : g.in_ld),
        writes_ld(turned ? g.in_ld : g.out_ld) {}
};

// Lists the channels of an image, and where the weights of those that are read are: in the order of the list, or, where
// weights are shared by images of different lists, of all channels. Returns how many slots there are.
template <class V>
static int64_t list_reads(const GatheredConv& problem, const GatheredSchedule& s, const ConvShape& c, int64_t image,
                          const TileMemory<V>& m, int64_t* count) {
  const Chosen chosen(problem);
  const int64_t reads = list_channels(chosen_of(chosen.reads, chosen.reads_ld, image), c.in, m.reads);
  const bool all = s.shared_lanes && chosen.reads && chosen.reads_ld != 0;
  for (int64_t i = 0; i < reads; ++i) m.slots[i] = all ? m.reads[i] : (int32_t)i;
  *count = reads;
  return all ? c.in : reads;
}

// Weights of result channels rows[0, count), count <= W, to lanes: [slot][tap][lane].
template <class V, class T>
static void weights_to_lanes(const MaskedConv& g, const ConvShape& c, const int32_t* rows, int count,
                             const int32_t* slot_of, typename V::S* to) {
  using S = typename V::S;
  constexpr int W = V::W;
  const int64_t taps = c.taps();
  const T* const weight = (const T*)g.weight;
  const auto load = [&](int64_t row, int64_t column, int n) {
    const T* const at = weight + row * g.weight_ld + column;
    return g.bits ? V::load_bits(at, bits_from(g.bits + row * g.bits_ld, column, n), n) : V::load_n(at, n);
  };
  typename V::Reg r[W];
  if (g.pass == Pass::forward) {
    // Rows of the weight in blocks of W x W.
    int64_t channel = 0, tap = 0;
    for (int64_t k = 0; k < c.in * taps; k += W) {
      const int n = (int)min64(W, c.in * taps - k);
      for (int i = 0; i < W; ++i) r[i] = i < count ? load(rows[i], k, n) : V::zero();
      V::transpose(r);
      for (int j = 0; j < n; ++j) {
        if (slot_of[channel] >= 0) V::store(to + (slot_of[channel] * taps + tap) * W, r[j]);
        if (++tap == taps) tap = 0, ++channel;
      }
    }
    return;
  }
  for (int64_t channel = 0; channel < c.in; ++channel) {
    if (slot_of[channel] < 0) continue;
    S* const lines = to + slot_of[channel] * taps * W;
    if (taps == 1) {
      const T* const row = weight + channel * g.weight_ld;
      const uint32_t* const bits = g.bits ? g.bits + channel * g.bits_ld : nullptr;
      for (int i = 0; i < W; ++i)
        lines[i] = i < count && (!bits || (mask_at(bits, rows[i]) & 1)) ? widen(row + rows[i]) : S(0);
      continue;
    }
    // Kernels turned round.
    for (int64_t t = 0; t < taps; t += W) {
      const int n = (int)min64(W, taps - t);
      for (int i = 0; i < W; ++i) r[i] = i < count ? load(channel, rows[i] * taps + t, n) : V::zero();
      V::transpose(r);
      for (int j = 0; j < n; ++j) V::store(lines + (taps - 1 - t - j) * W, r[j]);
    }
  }
}

static inline void slots_by_channel(const int32_t* reads, const int32_t* slots, int64_t count, int64_t channels,
                                    int32_t* slot_of) {
  for (int64_t c = 0; c < channels; ++c) slot_of[c] = -1;
  for (int64_t i = 0; i < count; ++i) slot_of[reads[i]] = slots[i];
}

// One block of the shared lanes.
template <class V, class T>
static void lanes_task(const GatheredConv& problem, const GatheredSchedule& s, int64_t index, void* shared,
                       void* scratch) {
  constexpr int W = V::W;
  const MaskedConv g = gathered_form(problem);
  const ConvShape& c = g.shape;
  const TileMemory<V> m(c, s, scratch);
  int64_t count;
  const int64_t slots = list_reads<V>(problem, s, c, 0, m, &count);
  if (slots == count)
    slots_by_channel(m.reads, m.slots, count, c.in, m.slot_of);
  else
    for (int64_t i = 0; i < c.in; ++i) m.slot_of[i] = (int32_t)i;
  const int64_t writes = list_channels(Chosen(problem).writes, c.out, m.writes);
  const int rows = (int)min64(W, writes - index * W);
  weights_to_lanes<V, T>(g, c, m.writes + index * W, rows, m.slot_of,
                         (typename V::S*)((char*)shared + s.lanes_at) + index * slots * c.taps() * W);
}

}  // namespace
}  // namespace maskfuse
