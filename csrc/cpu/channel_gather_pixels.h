// Rows of single elements, the channels of a pixel: by steps of vectors where the list rises, else four rows at a time
// because that reads each index once for four elements. Included by channel_gather.cpp only.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "channel_gather_pieces.h"
#include "channel_gather_steps.h"

namespace maskfuse {
namespace {

struct Vector16 {
  uint64_t low, high;
};

template <class T>
inline T load(const char* from) {
  T value;
  __builtin_memcpy(&value, from, sizeof(T));
  return value;
}

// Rows of one list. Elements are T in size; they need not be aligned.
template <class T>
class Rows {
 public:
  explicit Rows(const ChannelCopy& copy) : c(copy), vectors(channel_steps(sizeof(T))) {}
  ~Rows() { flush(); }

  // Copies a row now or with others of its list, at the latest when this object goes.
  void add(char* to, const char* from, const int32_t* row_list) {
    if (row_list != list) {
      flush();
      list = row_list;
      known = false, step_count = 0;
    }
    if (step_count > 0) return by_steps(to, from);
    tos[pending] = to, froms[pending] = from;
    if (++pending == kTogether) {
      copy_together();
      pending = 0;
    }
  }

 private:
  static constexpr int kTogether = 4;

  void flush() {
    for (int r = 0; r < pending; ++r) one(tos[r], froms[r]);
    pending = 0;
  }

  void by_steps(char* to, const char* from) {
    (gaps ? vectors.spread : vectors.compress)(to, from, steps.get(), step_count);
    zero_rest(to);
  }

  void zero_rest(char* to) {
    if (used < c.channels) std::memset(to + used * sizeof(T), 0, (size_t)(c.channels - used) * sizeof(T));
  }

  void one(char* to, const char* from) {
    if constexpr (sizeof(T) == sizeof(Vector16))
      copy_pieces<8>(to, from, c.from_channel, list, c.channels, c.element);
    else
      copy_elements<T>(to, from, c.from_channel, list, c.channels, c.element);
  }

  // What kind of list it is: how long without the zeros at its end, one run of channels, zeros in between.
  void look() {
    known = true;
    used = c.channels;
    while (used > 0 && list[used - 1] < 0) --used;
    run = true, gaps = false;
    for (int64_t i = 0; i < used; ++i) {
      run = run && list[i] == list[0] + i;
      gaps = gaps || list[i] < 0;
    }
    run = run && !gaps && c.from_channel == (int64_t)sizeof(T);
    if (!run && make_steps()) return;
    if (!gaps) return;
    // A zero is one more element behind the row, which is copied beside its neighbours for that.
    if (!staged) staged.reset(new (std::nothrow) char[(size_t)(kTogether * (c.from_channels + 1)) * sizeof(T)]);
    if (!slots) slots.reset(new (std::nothrow) int32_t[(size_t)c.channels]);
    if (!staged || !slots) return;
    for (int64_t i = 0; i < used; ++i) slots[i] = list[i] < 0 ? (int32_t)c.from_channels : list[i];
  }

  // Whether the list is one of steps, of two elements or more each: below that they gain nothing.
  bool make_steps() {
    if (vectors.width == 0 || c.from_channel != (int64_t)sizeof(T)) return false;
    const int64_t most = std::max(c.channels, c.from_channels) / vectors.width + 1;
    if (!steps) steps.reset(new (std::nothrow) ChannelStep[(size_t)most]);
    if (!steps) return false;
    step_count = (gaps ? spreading_steps : compressing_steps)(list, used, c.channels, vectors.width, steps.get());
    if (step_count * 2 > used) step_count = 0;
    return step_count > 0;
  }

  void copy_together() {
    if (!known) look();
    if (step_count > 0) {
      for (int r = 0; r < kTogether; ++r) by_steps(tos[r], froms[r]);
      return;
    }
    if (gaps && (!staged || !slots)) {  // no memory
      pending = kTogether;
      return flush();
    }
    if (run) {
      for (int r = 0; r < kTogether; ++r)
        if (used > 0) std::memcpy(tos[r], froms[r] + list[0] * c.from_channel, (size_t)used * sizeof(T));
    } else if (gaps) {
      const char* rows[kTogether];
      for (int r = 0; r < kTogether; ++r) rows[r] = stage(r);
      pick(rows, slots.get(), sizeof(T));
    } else if (c.from_channel == (int64_t)sizeof(T)) {
      pick(froms, list, sizeof(T));
    } else {
      pick(froms, list, c.from_channel);
    }
    for (int r = 0; r < kTogether; ++r) zero_rest(tos[r]);
  }

  // `stride` is a parameter so that the usual one is a constant.
  [[gnu::always_inline]] void pick(const char* const* rows, const int32_t* from, int64_t stride) {
    const char *const a = rows[0], *const b = rows[1], *const d = rows[2], *const e = rows[3];
    char *const ta = tos[0], *const tb = tos[1], *const td = tos[2], *const te = tos[3];
    const int64_t count = used;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = from[i] * stride, to = i * (int64_t)sizeof(T);
      const T va = load<T>(a + at), vb = load<T>(b + at), vd = load<T>(d + at), ve = load<T>(e + at);
      __builtin_memcpy(ta + to, &va, sizeof(T));
      __builtin_memcpy(tb + to, &vb, sizeof(T));
      __builtin_memcpy(td + to, &vd, sizeof(T));
      __builtin_memcpy(te + to, &ve, sizeof(T));
    }
  }

  const char* stage(int r) {
    char* const row = staged.get() + r * (c.from_channels + 1) * (int64_t)sizeof(T);
    const int64_t dense = c.from_channels * (int64_t)sizeof(T);
    if (c.from_channel == (int64_t)sizeof(T))
      std::memcpy(row, froms[r], (size_t)dense);
    else
      for (int64_t k = 0; k < c.from_channels; ++k)
        std::memcpy(row + k * sizeof(T), froms[r] + k * c.from_channel, sizeof(T));
    std::memset(row + dense, 0, sizeof(T));
    return row;
  }

  const ChannelCopy& c;
  const ChannelSteps vectors;  // looked up once: tests change the level in use
  const int32_t* list = nullptr;
  char* tos[kTogether];
  const char* froms[kTogether];
  int pending = 0;
  bool known = false, run = false, gaps = false;
  int64_t used = 0;
  int64_t step_count = 0;
  std::unique_ptr<ChannelStep[]> steps;
  std::unique_ptr<char[]> staged;
  std::unique_ptr<int32_t[]> slots;
};

template <class T>
void copy_rows(const ChannelCopy& c, int64_t begin, int64_t end) {
  const int64_t bytes = c.channels * c.element;
  Rows<T> rows(c);
  for (int64_t output = begin / c.pixels, pixel = begin % c.pixels, unit = begin; unit < end; ++output, pixel = 0) {
    const int64_t stop = std::min(end, unit + c.pixels - pixel), input = input_sample(c, output);
    if (input < 0) {
      std::memset(c.to + unit * bytes, 0, (size_t)((stop - unit) * bytes));
      unit = stop;
      continue;
    }
    const int32_t* const list = list_of(c, output, input);
    const char* from = c.from + input * c.from_sample + pixel * c.from_pixel;
    for (; unit < stop; ++unit, from += c.from_pixel) rows.add(c.to + unit * bytes, from, list);
  }
}

void copy_in_pixels(const ChannelCopy& c, int64_t begin, int64_t end) {
  switch (c.element) {
    case 1:
      return copy_rows<uint8_t>(c, begin, end);
    case 2:
      return copy_rows<uint16_t>(c, begin, end);
    case 4:
      return copy_rows<uint32_t>(c, begin, end);
    case 8:
      return copy_rows<uint64_t>(c, begin, end);
    default:
      return copy_rows<Vector16>(c, begin, end);
  }
}

}  // namespace
}  // namespace maskfuse
