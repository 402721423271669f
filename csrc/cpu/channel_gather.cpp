// Two loops: planes, copied whole and made for their size; and rows of single elements, the channels of a pixel, copied
// four rows at a time because that reads each index once for four elements.
#include "channel_gather.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

namespace maskfuse {
namespace {

struct Vector16 {
  uint64_t low, high;
};

// From this many bytes on the C library's copy, which knows the machine's vectors, is worth its call.
constexpr int64_t kLongCopy = 128;

// Planes up to this long are over before the hardware's prefetcher has found them: the one kAhead further is asked for.
constexpr int64_t kShortPlane = 1024, kAhead = 8, kLine = 64;

// Sixteen bytes and more, the last vector overlapping the one before.
inline void copy_bytes(char* to, const char* from, int64_t bytes) {
  if (bytes >= kLongCopy) {
    std::memcpy(to, from, (size_t)bytes);
    return;
  }
  int64_t i = 0;
  for (; i + 16 <= bytes; i += 16) __builtin_memcpy(to + i, from + i, 16);
  if (i < bytes) __builtin_memcpy(to + bytes - 16, from + bytes - 16, 16);
}

inline void zero_bytes(char* to, int64_t bytes) {
  if (bytes >= kLongCopy) {
    std::memset(to, 0, (size_t)bytes);
    return;
  }
  constexpr char kZero[16] = {};
  int64_t i = 0;
  for (; i + 16 <= bytes; i += 16) __builtin_memcpy(to + i, kZero, 16);
  if (i < bytes) __builtin_memcpy(to + bytes - 16, kZero, 16);
}

inline void prefetch(const char* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(from + i);
  __builtin_prefetch(from + bytes - 1);
}

// One sample's planes: `count` of `bytes` each, consecutive in `to`; plane i is the input at from + list[i] * stride.
using CopyPlanes = void (*)(char* to, const char* from, int64_t stride, const int32_t* list, int64_t count,
                            int64_t bytes);

// T: as large as one output, which need not be aligned. Without a branch, which random lists would mispredict: what is
// not taken is read from the first input and masked.
template <class T>
void copy_elements(char* to, const char* from, int64_t stride, const int32_t* list, int64_t count, int64_t) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t taken = ~((int64_t)list[i] >> 63);
    T value;
    __builtin_memcpy(&value, from + (list[i] & taken) * stride, sizeof(T));
    value &= (T)taken;
    __builtin_memcpy(to + i * sizeof(T), &value, sizeof(T));
  }
}

// kPart: half of `bytes` or more, so that two of them cover it.
template <int64_t kPart>
void copy_pieces(char* to, const char* from, int64_t stride, const int32_t* list, int64_t count, int64_t bytes) {
  constexpr char kZero[16] = {};
  for (int64_t i = 0; i < count; ++i, to += bytes) {
    const char* const piece = list[i] < 0 ? kZero : from + list[i] * stride;
    __builtin_memcpy(to, piece, kPart);
    __builtin_memcpy(to + bytes - kPart, piece + bytes - kPart, kPart);
  }
}

// Sixteen bytes and more; inputs that follow each other are one copy.
void copy_planes(char* to, const char* from, int64_t stride, const int32_t* list, int64_t count, int64_t bytes) {
  const bool dense = stride == bytes, is_short = bytes <= kShortPlane;
  for (int64_t i = 0, run; i < count; i += run, to += run * bytes) {
    run = 1;
    if (is_short && i + kAhead < count && list[i + kAhead] >= 0) prefetch(from + list[i + kAhead] * stride, bytes);
    if (list[i] < 0) {
      while (i + run < count && list[i + run] < 0) ++run;
      zero_bytes(to, run * bytes);
    } else {
      if (dense)
        while (i + run < count && list[i + run] == list[i] + run) ++run;
      copy_bytes(to, from + list[i] * stride, run * bytes);
    }
  }
}

CopyPlanes planes_of(int64_t bytes) {
  switch (bytes) {
    case 1:
      return copy_elements<uint8_t>;
    case 2:
      return copy_elements<uint16_t>;
    case 4:
      return copy_elements<uint32_t>;
    case 8:
      return copy_elements<uint64_t>;
    case 3:
      return copy_pieces<2>;
    default:
      return bytes < 8 ? copy_pieces<4> : bytes <= 16 ? copy_pieces<8> : copy_planes;
  }
}

const int32_t* list_of(const ChannelCopy& c, int64_t output, int64_t input) {
  return c.channel + (c.rows_of_input ? input : output) * c.rows;
}

int64_t input_sample(const ChannelCopy& c, int64_t output) { return c.sample ? c.sample[output] : output; }

void copy_in_planes(const ChannelCopy& c, int64_t begin, int64_t end) {
  const int64_t bytes = c.pixels * c.element;
  const CopyPlanes copy = planes_of(bytes);
  for (int64_t unit = begin; unit < end;) {
    const int64_t output = unit / c.channels, channel = unit % c.channels;
    const int64_t count = std::min(c.channels - channel, end - unit), input = input_sample(c, output);
    char* const to = c.to + unit * bytes;
    if (input < 0)
      std::memset(to, 0, (size_t)(count * bytes));
    else
      copy(to, c.from + input * c.from_sample, c.from_channel, list_of(c, output, input) + channel, count, bytes);
    unit += count;
  }
}

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
  explicit Rows(const ChannelCopy& copy) : c(copy) {}
  ~Rows() { flush(); }

  // Copies a row now or with others of its list, at the latest when this object goes.
  void add(char* to, const char* from, const int32_t* row_list) {
    if (row_list != list) {
      flush();
      list = row_list;
      known = false;
    }
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
    if (!gaps) return;
    // A zero is one more element behind the row, which is copied beside its neighbours for that.
    if (!staged) staged.reset(new (std::nothrow) char[(size_t)(kTogether * (c.from_channels + 1)) * sizeof(T)]);
    if (!slots) slots.reset(new (std::nothrow) int32_t[(size_t)c.channels]);
    if (!staged || !slots) return;
    for (int64_t i = 0; i < used; ++i) slots[i] = list[i] < 0 ? (int32_t)c.from_channels : list[i];
  }

  void copy_together() {
    if (!known) look();
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
    if (used < c.channels)
      for (int r = 0; r < kTogether; ++r)
        std::memset(tos[r] + used * sizeof(T), 0, (size_t)(c.channels - used) * sizeof(T));
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
  const int32_t* list = nullptr;
  char* tos[kTogether];
  const char* froms[kTogether];
  int pending = 0;
  bool known = false, run = false, gaps = false;
  int64_t used = 0;
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

template <class Index>
int64_t resolve(const Index* index, int64_t count, int64_t size, int32_t* to) {
  bool outside = false;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t value = index[i] < 0 ? index[i] + size : index[i];
    outside |= (uint64_t)value >= (uint64_t)size;
    to[i] = (int32_t)value;
  }
  if (!outside) return -1;
  for (int64_t i = 0;; ++i)
    if (index[i] < -size || index[i] >= size) return i;
}

}  // namespace

int64_t copy_units(const ChannelCopy& c) { return c.samples * (c.channels_last ? c.pixels : c.channels); }

int64_t copy_unit_bytes(const ChannelCopy& c) { return c.element * (c.channels_last ? c.channels : c.pixels); }

void copy_channels(const ChannelCopy& c, int64_t begin, int64_t end) {
  if (c.channels_last)
    copy_in_pixels(c, begin, end);
  else
    copy_in_planes(c, begin, end);
}

void copy_channels_naive(const ChannelCopy& c, int64_t begin, int64_t end) {
  const int64_t inner = c.channels_last ? c.channels : c.pixels;
  for (int64_t unit = begin; unit < end; ++unit) {
    for (int64_t i = 0; i < inner; ++i) {
      const int64_t outer = c.channels_last ? c.pixels : c.channels;
      const int64_t output = unit / outer;
      const int64_t channel = c.channels_last ? i : unit % outer, pixel = c.channels_last ? unit % outer : i;
      const int64_t input = input_sample(c, output);
      const int64_t from = input < 0 ? kNoChannel : list_of(c, output, input)[channel];
      char* const to = c.to + (unit * inner + i) * c.element;
      if (from < 0)
        std::memset(to, 0, (size_t)c.element);
      else
        std::memcpy(to, c.from + input * c.from_sample + from * c.from_channel + pixel * c.from_pixel,
                    (size_t)c.element);
    }
  }
}

int64_t resolve_indices(const int32_t* index, int64_t count, int64_t size, int32_t* to) {
  return resolve(index, count, size, to);
}
int64_t resolve_indices(const int64_t* index, int64_t count, int64_t size, int32_t* to) {
  return resolve(index, count, size, to);
}

void active_channels(const uint8_t* mask, int64_t channels, int64_t most, int32_t* to) {
  int64_t count = 0;
  for (int64_t c = 0; c < channels && count < most; ++c)
    if (mask[c]) to[count++] = (int32_t)c;
  std::fill(to + count, to + most, kNoChannel);
}

}  // namespace maskfuse
