// What a tile of gathered_conv2d reads of its input.
// Included by gathered_conv2d_{avx2,avx512}.cpp only.
#pragma once

#include "gathered_conv2d_window.h"

namespace maskfuse {
namespace {

// A line of staged columns of one channel, from the image's row at `from`; null where it is outside. The vectors that
// are stored may run over the line's end.
template <class V, class T>
static inline void stage_line(const T* from, const Window& w, typename V::S* to) {
  constexpr int W = V::W;
  int64_t k = 0;
  if (from && w.begin < w.end && w.step > 0 && w.step < W) {
    for (; k < w.begin; k += W) V::store(to + k, V::zero());
    // Of a vector of the image, the pixels at the step.
    const int64_t each = (W - 1) / w.step + 1;
    uint32_t bits = 0;
    for (int64_t i = 0; i < each; ++i) bits |= 1u << (i * w.step);
    for (k = w.begin, from += w.column_at[w.begin]; k < w.end; k += each, from += each * w.step) {
      const auto some = V::load_n(from, (int)min64(W, (w.end - k - 1) * w.step + 1));
      V::store(to + k, w.step == 1 ? some : V::compress(some, bits));
    }
    k = w.end;
  } else if (from) {
    for (; k < w.columns; ++k) to[k] = w.column_at[k] == kOutside ? 0 : widen(from + w.column_at[k]);
  }
  for (; k < w.columns; k += W) V::store(to + k, V::zero());
}

// Channels list[0, count) of the window, one behind another: [channel][row][column].
template <class V, class T>
static void stage_channels(const Image& image, const Window& w, const int32_t* list, int64_t count, int64_t channels,
                           int64_t plane, typename V::S* to) {
  constexpr int W = V::W;
  const T* const data = (const T*)image.data;
  if (image.c != 1 || image.x == 1) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t row = 0; row < w.rows; ++row)
        stage_line<V, T>(w.row_at[row] == kOutside ? nullptr : data + list[i] * image.c + w.row_at[row], w,
                         to + i * plane + row * w.columns);
    return;
  }
  // Channels lie side by side: W of them and W pixels at a time, for those that are chosen.
  for (int64_t i = 0, end; i < count; i = end) {
    const int64_t group = list[i] / W * W;
    for (end = i + 1; end < count && list[end] < group + W;) ++end;
    const int width = (int)min64(W, channels - group);
    for (int64_t row = 0; row < w.rows; ++row)
      for (int64_t k = 0; k < w.columns; k += W) {
        typename V::Reg r[W];
        const bool outside = w.row_at[row] == kOutside;
        for (int64_t j = 0; j < W; ++j)
          r[j] = outside || k + j >= w.columns || w.column_at[k + j] == kOutside
                     ? V::zero()
                     : V::load_n(data + w.row_at[row] + w.column_at[k + j] + group, width);
        V::transpose(r);
        for (int64_t j = i; j < end; ++j) V::store(to + j * plane + row * w.columns + k, r[list[j] - group]);
      }
  }
}

// Some of W channels that lie side by side: from which on, and which of them.
struct Piece {
  int32_t channel;
  uint32_t bits;
};

// The same of an image whose channels lie side by side, in their order, count <= kGradColumns: [row][column][channel],
// `step` from pixel to pixel. The vectors that are stored may run over the end.
template <class V, class T>
static void stage_pixels(const Image& image, const Window& w, const int32_t* list, int64_t count, int64_t channels,
                         int64_t step, typename V::S* to) {
  constexpr int W = V::W;
  Piece pieces[kGradColumns];
  int used = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (used == 0 || list[i] >= pieces[used - 1].channel + W) pieces[used++] = {list[i], 0};
    pieces[used - 1].bits |= 1u << (list[i] - pieces[used - 1].channel);
  }
  const T* const data = (const T*)image.data;
  for (int64_t row = 0; row < w.rows; ++row)
    for (int64_t k = 0; k < w.columns; ++k, to += step) {
      if (w.row_at[row] == kOutside || w.column_at[k] == kOutside) {
        for (int64_t i = 0; i < count; i += W) V::store(to + i, V::zero());
        continue;
      }
      const T* const from = data + w.row_at[row] + w.column_at[k];
      typename V::S* next = to;
      for (int p = 0; p < used; ++p) {
        const auto some = V::load_n(from + pieces[p].channel, (int)min64(W, channels - pieces[p].channel));
        const bool leading = (pieces[p].bits & (pieces[p].bits + 1)) == 0;
        V::store(next, leading ? some : V::compress(some, pieces[p].bits));
        next += __builtin_popcount(pieces[p].bits);
      }
    }
}

// Asks for what is staged next, a few lines of memory with each call, into the second-level cache: of each listed
// channel the part of the image that a window reads.
class FetchWindow {
 public:
  FetchWindow(const Image& image, int64_t element, const Window& w, const int32_t* list, int64_t count, int64_t calls)
      : list_(list), count_(w.begin == w.end || w.step <= 0 ? 0 : count), step_(image.c * element) {
    int64_t first = INT64_MAX, last = INT64_MIN;
    for (int64_t i = 0; i < w.rows; ++i)
      if (w.row_at[i] != kOutside) first = min64(first, w.row_at[i]), last = w.row_at[i] > last ? w.row_at[i] : last;
    if (first > last) count_ = 0;
    if (count_ == 0) return;
    from_ = (const char*)image.data + (first + w.column_at[w.begin]) * element;
    bytes_ = (last - first + w.column_at[w.end - 1] - w.column_at[w.begin] + 1) * element;
    share_ = ceil_div(count_ * (bytes_ / 64 + 1), calls);
  }

  void operator()() {
    for (int64_t n = 0; n < share_ && i_ < count_; ++n) {
      __builtin_prefetch(from_ + list_[i_] * step_ + at_, 0, 2);
      at_ += 64;
      if (at_ < bytes_ + 63) continue;
      at_ = 0, ++i_;
    }
  }

 private:
  const int32_t* list_;
  int64_t count_, step_, bytes_ = 0, share_ = 0, i_ = 0, at_ = 0;
  const char* from_ = nullptr;
};

}  // namespace
}  // namespace maskfuse
