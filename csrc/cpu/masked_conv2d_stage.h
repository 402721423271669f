// Channels of an image to lines, and back, by the map of a strip. Included by
// {masked,gathered}_conv2d_{avx2,avx512}.cpp only.
#pragma once

#include "masked_conv2d_strip.h"

namespace maskfuse {
namespace {

// Whether channel c has a weight that is active; `pattern` over `taps` columns a channel, or null.
static inline bool channel_is_active(const uint32_t* pattern, int64_t channel, int64_t taps) {
  if (pattern == nullptr) return true;
  for (int64_t i = channel * taps; i < (channel + 1) * taps; ++i)
    if (mask_at(pattern, i) & 1) return true;
  return false;
}

// One channel, where spans hold all lanes.
template <class V, class T>
static inline void stage_spans(const T* channel, const LaneMap<V>& map, typename V::S* lines) {
  constexpr int W = V::W, kUnit = LaneMap<V>::kUnit, kVectors = LaneMap<V>::kVectors;
  if (map.whole && map.inside == 1 && map.rows == 1) {
    channel += map.shift[0];
    for (int64_t v = 0; v < map.patterns * kVectors; ++v)
      V::store(lines + v * W, V::load_n(channel + map.spans[v][0].from, W));
    return;
  }
  for (int64_t p = 0; p < map.patterns; ++p)
    for (int v = 0; v < kVectors; ++v) {
      const Span one = map.spans[p * kVectors + v][0], two = map.spans[p * kVectors + v][1];
      typename V::S* const to = lines + p * map.pattern_step * kUnit + v * W;
      const StagedRow *row = map.sorted, *const outside = row + map.inside, *const end = row + map.rows;
      const auto rows = [&](auto load) __attribute__((always_inline)) {
        for (; row < outside; ++row) V::store(to + row->line, load(channel + row->shift));
      };
      const auto masked = [&](const T* row) { return V::blend(V::zero(), row + one.from, one.bits); };
      if (one.bits == V::kAll)
        rows([&](const T* row) { return V::load_n(row + one.from, W); });
      else if (two.bits == 0)
        rows(masked);
      else
        rows([&](const T* row) { return V::blend(masked(row), row + two.from, two.bits); });
      for (; row < end; ++row) V::store(to + row->line, V::zero());
    }
}

template <class V, class T>
static inline void stage_pieces(const T* channel, const LaneMap<V>& map, typename V::S* lines) {
  constexpr int kVectors = LaneMap<V>::kVectors;
  for (int64_t v = 0; v < map.patterns * kVectors; ++v)
    for (int64_t row = 0; row < map.rows; ++row)
      V::store(lines + map.line(v / kVectors, row) * map.kUnit + v % kVectors * V::W,
               map.shift[row] == map.kOutside ? V::zero() : map.load(channel + map.shift[row], v));
}

// One channel.
template <class V, class T>
static inline void stage_channel(const T* channel, const LaneMap<V>& map, typename V::S* lines) {
  if constexpr (V::template kMasks<T>) {
    if (map.in_spans) return stage_spans<V>(channel, map, lines);
  }
  stage_pieces<V>(channel, map, lines);
}

// `width` channels, at most W, of an image whose channels lie side by side: those whose bits are set, one behind
// another.
template <class V, class T>
static inline void stage_transposed(const T* from, const LaneMap<V>& map, int64_t width, uint32_t bits, int64_t plane,
                                    typename V::S* to) {
  constexpr int W = V::W, kUnit = LaneMap<V>::kUnit, kVectors = LaneMap<V>::kVectors;
  const uint32_t all = (uint32_t)((uint64_t{1} << width) - 1);
  const int count = __builtin_popcount(bits);
  for (int64_t v = 0; v < map.patterns * kVectors; ++v) {
    const int64_t* const place = map.places + v * W;
    for (int64_t row = 0; row < map.rows; ++row) {
      const int64_t shift = map.shift[row];
      typename V::S* const line = to + map.line(v / kVectors, row) * kUnit + v % kVectors * W;
      typename V::Reg r[W];
      for (int i = 0; i < W; ++i) {
        r[i] = shift == map.kOutside || place[i] < 0 ? V::zero() : V::load_n(from + shift + place[i], (int)width);
        if (bits != all) r[i] = V::compress(r[i], bits);
      }
      if (shift != map.kOutside) V::transpose(r);
      for (int i = 0; i < W; ++i)
        if (i < count) V::store(line + i * plane * kUnit, r[i]);
    }
  }
}

// Channels [begin, end) of an image to lines: channel c's are `plane` lines from (c - begin) * plane on. In planes,
// those without an active weight are not read, but become zeros where lists may hold a column that is inactive.
template <class V, class T>
static void stage(const Image& image, const LaneMap<V>& map, int64_t begin, int64_t end, const uint32_t* pattern,
                  int64_t taps, int64_t plane, bool zeros, typename V::S* to) {
  const T* const from = (const T*)image.data;
  if (image.c == 1 && end - begin > 1) {
    for (int64_t c = begin; c < end; c += V::W, to += V::W * plane * map.kUnit) {
      const int64_t width = min64(V::W, end - c);
      stage_transposed<V>(from + c, map, width, (uint32_t)((uint64_t{1} << width) - 1), plane, to);
    }
    return;
  }
  for (int64_t c = begin; c < end; ++c, to += plane * map.kUnit) {
    if (channel_is_active(pattern, c, taps))
      stage_channel<V>(from + c * image.c, map, to);
    else if (zeros)
      __builtin_memset(to, 0, (size_t)(plane * map.kUnit) * sizeof(typename V::S));
  }
}

// `channels` channels of a strip's output, `plane` lines each, to the image, from `channel` on.
template <class V, class T>
static void unstage(const Image& image, const LaneMap<V>& map, int64_t channel, int64_t channels, int64_t plane,
                    const typename V::S* from) {
  constexpr int W = V::W, kUnit = LaneMap<V>::kUnit, kVectors = LaneMap<V>::kVectors;
  T* const to = (T*)image.data + channel * image.c;
  const auto vectors = [&](auto body) __attribute__((always_inline)) {
    for (int64_t i = 0; i < map.inside; ++i) {
      const StagedRow& row = map.sorted[i];
      for (int64_t v = 0; v < map.patterns * kVectors; ++v)
        body(row.shift, v, row.line + v / kVectors * map.pattern_step * kUnit + v % kVectors * W);
    }
  };
  if (image.c == 1 && (channels > 1 || map.step > 1)) {
    for (int64_t c = 0; c < channels; c += W) {
      const int width = (int)min64(W, channels - c);
      vectors([&](int64_t shift, int64_t v, int64_t line) {
        typename V::Reg r[W];
        for (int i = 0; i < W; ++i) r[i] = i < width ? V::load(from + (c + i) * plane * kUnit + line) : V::zero();
        V::transpose(r);
        const int64_t* const place = map.places + v * W;
        for (int i = 0; i < W; ++i)
          if (place[i] >= 0) V::store_n(to + shift + place[i] + c, r[i], width);
      });
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c, from += plane * kUnit) {
    T* const channel_to = to + c * image.c;
    if constexpr (V::template kMasks<T>) {
      if (map.in_spans) {
        vectors([&](int64_t shift, int64_t v, int64_t line)
                    __attribute__((always_inline)) { map.store_spans(channel_to + shift, v, V::load(from + line)); });
        continue;
      }
    }
    vectors([&](int64_t shift, int64_t v, int64_t line) { map.store(channel_to + shift, v, V::load(from + line)); });
  }
}

// Asks for channels [begin, end) of an image where a map's rows are, `ahead` elements further on, into the second-level
// cache: `share` lines with each call.
class FetchLines {
 public:
  template <class V>
  FetchLines(const Image& image, int64_t element, const LaneMap<V>& map, int64_t ahead, int64_t begin, int64_t end,
             int64_t calls)
      : next((const char*)image.data + (begin * image.c + ahead) * element),
        step(image.c == 1 ? 64 : image.c * element),
        left(image.c == 1 ? ceil_div((end - begin) * element, 64) : end - begin) {
    for (int64_t i = 0; i < map.inside; ++i)
      for (int j = 0; j < map.touched && count < kMost; ++j)
        at[count++] = (map.sorted[i].shift + map.touch[j]) * element;
    if (count == 0) left = 0;
    share = ceil_div(2 * left * count, calls);  // done halfway: in time for what comes last too
  }

  void operator()() {
    for (int64_t i = 0; i < share && left > 0; ++i) {
      __builtin_prefetch(next + at[k], 0, 2);
      if (++k < count) continue;
      k = 0, next += step, --left;
    }
  }

 private:
  static constexpr int kMost = 256;
  const char* next;
  int64_t step, left, share;
  int count = 0, k = 0;
  int64_t at[kMost];  // bytes
};

}  // namespace
}  // namespace maskfuse
