// The CUDA kernels of the channel ops on the stand-in for the device, against the CPU's naive ones.
#include <algorithm>
#include <cstring>

#include "../cpu/channel_scatter.h"
#include "../cuda/channel_gather.h"
#include "../cuda/channel_inverse.h"
#include "../cuda/channel_scatter.h"
#include "../cuda/channel_select.h"
#include "../cuda/channel_strips.h"
#include "harness.h"

using namespace maskfuse;
using namespace maskfuse::test;

namespace {

constexpr char kUnwritten = 77;

// An activation, with gaps between samples, channels and pixels; bytes are those of small whole numbers.
struct Input {
  int64_t samples, channels;
  std::vector<char> bytes;
};

Input random_input(ChannelCopy* c, bool small) {
  Input in{random_int(1, 4), random_int(1, small ? 9 : 40), {}};
  c->pixels = random_int(1, random_int(0, 1) ? 4 : 150);
  const int64_t step = random_int(1, 2), gap = random_int(0, 3) * c->element;
  c->from_channels = in.channels;
  c->from_channel = step * c->element * (c->channels_last ? 1 : c->pixels);
  c->from_pixel = c->element * (c->channels_last ? in.channels * step : 1);
  c->from_sample = in.channels * c->pixels * step * c->element + gap;
  in.bytes.resize(in.samples * c->from_sample - gap);
  return in;
}

// Entries of an index: some of them from the end, some out of range. `plain` has what they name.
struct Index {
  std::vector<int64_t> wide;
  std::vector<int32_t> narrow, plain;
  cuda::ChannelList list;
};

void random_index(int64_t count, int64_t size, bool outside, Index* index) {
  for (int64_t i = 0; i < count; ++i) {
    int64_t entry = size > 0 ? random_int(-size, size - 1) : 0;
    if (size == 0 || (outside && random_int(0, 5) == 0)) entry = random_int(0, 1) ? size + random_int(0, 3) : -size - 1;
    index->narrow.push_back((int32_t)entry);
    // In its low half, a wide one may look as if it were in range.
    if (entry >= size && random_int(0, 1)) entry += (int64_t{1} << 32) - size;
    if (entry < -size && random_int(0, 1)) entry -= (int64_t{1} << 32) - size;
    index->wide.push_back(entry);
    index->plain.push_back(entry < -size || entry >= size ? kNoChannel : (int32_t)((entry + size) % size));
  }
  const bool is_wide = random_int(0, 1);
  const void* const entries = is_wide ? (const void*)index->wide.data() : index->narrow.data();
  index->list = cuda::index_list(entries, is_wide, size);
}

void gathers() {
  for (int i = 0; i < 400; ++i) {
    ChannelCopy c{};
    c.element = 1 << random_int(0, 4), c.channels_last = random_int(0, 1);
    Input in = random_input(&c, false);
    for (auto& byte : in.bytes) byte = (char)random_int(1, 70);
    const bool batch = random_int(0, 1), per_sample = random_int(0, 1);
    c.samples = batch ? random_int(1, 5) : in.samples, c.channels = random_int(1, 40);
    c.rows = per_sample ? c.channels : 0;
    std::vector<char> want(c.samples * c.channels * c.pixels * c.element), got(want.size(), kUnwritten);
    Index channels, samples;
    random_index((per_sample ? c.samples : 1) * c.channels, in.channels, random_int(0, 1), &channels);
    if (batch) random_index(c.samples, in.samples, random_int(0, 1), &samples);
    c.from = in.bytes.data(), c.to = want.data(), c.channel = channels.plain.data();
    c.sample = batch ? samples.plain.data() : nullptr;
    copy_channels_naive(c, 0, copy_units(c));
    c.to = got.data();
    const cudaError_t error =
        cuda::channel_gather(c, channels.list, batch ? samples.list : cuda::ChannelList{}, nullptr);
    CHECK(error == cudaSuccess, "error %d", error);
    CHECK(got == want, "element %ld, %ld x %ld x %ld, channels_last %d", (long)c.element, (long)c.samples,
          (long)c.channels, (long)c.pixels, c.channels_last);
  }
}

// The position lists of an index whose entries out of range are kNoChannel.
void expected_inverse(const int32_t* index, int64_t count, int64_t size, int32_t* first, int32_t* next) {
  std::fill(first, first + size, kNoChannel);
  for (int64_t p = count - 1; p >= 0; --p) {
    next[p] = kNoChannel;
    if (index[p] >= 0) next[p] = first[index[p]], first[index[p]] = (int32_t)p;
  }
}

struct Inverse {
  std::vector<int32_t> first, next;

  Inverse(int64_t rows, int64_t count, int64_t size) : first(rows * size, -9), next(rows * count, -9) {}
  cuda::ChannelInverse of(const Index& index, int64_t rows, int64_t count) {
    return {index.list, rows, count, first.data(), next.data()};
  }
};

// Tables larger than shared memory are among them.
void inverses() {
  for (int i = 0; i < 120; ++i) {
    const int64_t rows = random_int(1, 3), count = random_int(0, i % 20 == 0 ? 700 : 90);
    const int64_t size = i % 20 == 1 ? 20000 : random_int(0, 80), other = random_int(1, 40);
    Index channels, samples;
    random_index(rows * count, size, i % 3 == 0, &channels);
    random_index(other, 17, false, &samples);
    Inverse got(rows, count, size), got_other(1, other, 17), want(rows, count, size), want_other(1, other, 17);
    for (int64_t r = 0; r < rows; ++r)
      expected_inverse(channels.plain.data() + r * count, count, size, want.first.data() + r * size,
                       want.next.data() + r * count);
    expected_inverse(samples.plain.data(), other, 17, want_other.first.data(), want_other.next.data());
    const bool both = random_int(0, 1);
    const cuda::ChannelInverse second = both ? got_other.of(samples, 1, other) : cuda::ChannelInverse{};
    CHECK(cuda::channel_inverse(got.of(channels, rows, count), second, nullptr) == cudaSuccess, "launch");
    CHECK(got.first == want.first && got.next == want.next, "%ld x %ld of %ld", (long)rows, (long)count, (long)size);
    if (both) CHECK(got_other.first == want_other.first && got_other.next == want_other.next, "samples");
  }
}

int64_t bytes_of(Number number) {
  switch (number) {
    case Number::boolean:
    case Number::i8:
      return 1;
    case Number::i16:
    case Number::bf16:
    case Number::f16:
      return 2;
    case Number::i32:
    case Number::f32:
      return 4;
    default:
      return 8;
  }
}

// Numbers whose bits are random, but neither NaN nor infinite: the order of additions shows in the last bits.
void fill(Number number, std::vector<char>* bytes) {
  for (auto& byte : *bytes) byte = (char)random_int(0, 255);
  const int64_t size = bytes_of(number);
  if (number == Number::boolean)
    for (auto& byte : *bytes) byte &= 1;
  if (number == Number::f32 || number == Number::f64 || number == Number::bf16 || number == Number::f16)
    for (size_t i = 0; i + size <= bytes->size(); i += size) (*bytes)[i + size - 1] = (char)random_int(0x38, 0x3f);
}

void sums() {
  for (int i = 0; i < 400; ++i) {
    ChannelSum s{};
    ChannelCopy& c = s.copy;
    s.number = (Number)random_int(0, (int)Number::f16);
    const bool real = bytes_of(s.number) > 1 && s.number >= Number::f32;
    s.parts = real ? random_int(1, 2) : 1;
    c.element = bytes_of(s.number) * s.parts, c.channels_last = random_int(0, 1);
    Input in = random_input(&c, true);
    fill(s.number, &in.bytes);
    const bool batch = random_int(0, 1), per_sample = random_int(0, 1);
    const int64_t rows = per_sample ? in.samples : 1;
    c.samples = batch ? random_int(1, 4) : in.samples, c.channels = random_int(1, 12);
    Index channels, samples;
    random_index(rows * in.channels, c.channels, i % 4 == 0, &channels);
    random_index(in.samples, c.samples, i % 4 == 0, &samples);
    Inverse of_channels(rows, in.channels, c.channels), of_samples(1, in.samples, c.samples);
    CHECK(cuda::channel_inverse(of_channels.of(channels, rows, in.channels),
                                batch ? of_samples.of(samples, 1, in.samples) : cuda::ChannelInverse{},
                                nullptr) == cudaSuccess,
          "launch");
    s.next_channel = of_channels.next.data(), s.next_rows = rows > 1 ? in.channels : 0;
    s.next_sample = batch ? of_samples.next.data() : nullptr;
    c.channel = of_channels.first.data(), c.rows = rows > 1 ? c.channels : 0, c.rows_of_input = true;
    c.sample = batch ? of_samples.first.data() : nullptr, c.from = in.bytes.data();
    std::vector<char> want(c.samples * c.channels * c.pixels * c.element), got(want.size(), kUnwritten);
    c.to = want.data();
    sum_channels(s, 0, copy_units(c));
    c.to = got.data();
    CHECK(cuda::channel_scatter(s, nullptr) == cudaSuccess, "launch");
    CHECK(got == want, "number %d, %ld x %ld x %ld, channels_last %d", (int)s.number, (long)c.samples, (long)c.channels,
          (long)c.pixels, c.channels_last);
  }
}

void masks() {
  for (int i = 0; i < 60; ++i) {
    const int64_t samples = random_int(1, 9), channels = random_int(0, 300), most = random_int(0, 320);
    std::vector<uint8_t> mask(samples * channels);
    for (auto& byte : mask) byte = (uint8_t)random_int(0, 1);
    std::vector<int32_t> list(samples * most, -9), positions(samples * channels, -9), want(most);
    cuda::active_channels(mask.data(), samples, channels, most, list.data(), nullptr);
    cuda::active_positions(mask.data(), samples, channels, most, positions.data(), nullptr);
    for (int64_t n = 0; n < samples; ++n) {
      active_channels(mask.data() + n * channels, channels, most, want.data());
      CHECK(std::equal(want.begin(), want.end(), list.begin() + n * most), "sample %ld", (long)n);
      std::vector<int32_t> places(channels);
      invert_mask(mask.data() + n * channels, channels, most, places.data());
      CHECK(std::equal(places.begin(), places.end(), positions.begin() + n * channels), "sample %ld", (long)n);
    }
  }
}

// The words that a thread takes, of outputs that no memory holds.
void places() {
  for (int i = 0; i < 20000; ++i) {
    ChannelCopy c{};
    const int64_t most = i % 3 == 0 ? cuda::kMostWords : i % 3 == 1 ? 3000 : 20;
    c.samples = random_int(1, most), c.channels = random_int(1, most), c.pixels = random_int(1, most);
    c.element = 1, c.channels_last = random_int(0, 1);
    c.samples = std::min(c.samples, (INT64_MAX >> 1) / c.channels / (c.pixels + 16));
    if (c.samples == 0) continue;
    cuda::ChannelStrips s;
    CHECK(cuda::channel_strips(c, 1, random_int(1, 16), &s), "%ld pixels", (long)c.pixels);
    const int64_t units = c.samples * (c.channels_last ? s.strip : c.channels);
    const int64_t unit = random_int(0, units - 1), inner = c.channels_last ? c.channels : s.strip;
    const int64_t number = unit * inner + random_int(0, inner - 1);
    const auto thread = (uint32_t)random_int(0, std::min<int64_t>(cuda::kLaunchThreads - 1, number));
    cuda::begin_launch(&s, number - thread);
    CHECK(thread < s.launch_threads, "%u threads", s.launch_threads);
    const cuda::ChannelPlace place = cuda::channel_place(s, thread);
    const int64_t in_unit = number % inner, outer = c.channels_last ? s.strip : c.channels;
    CHECK(place.sample == unit / outer && place.channel == (c.channels_last ? in_unit : unit % outer) &&
              place.word == (c.channels_last ? unit % outer : in_unit),
          "%ld x %ld x %ld", (long)c.samples, (long)c.channels, (long)c.pixels);
  }
}

void divisions() {
  constexpr uint32_t kMost = 0xffffffff;
  for (int i = 0; i < 20000; ++i) {
    const auto divisor = (uint32_t)random_int(1, i % 2 ? 300 : 1u << 31), x = (uint32_t)random_int(0, kMost);
    const cuda::Divisor by(i < 32 ? 1u << i : divisor);
    for (uint32_t y : {x, 0u, kMost, by.value - 1, by.value, x - x % by.value})
      CHECK(by.quotient(y) == y / by.value, "%u / %u", y, by.value);
  }
}

}  // namespace

int main() {
  gathers();
  inverses();
  sums();
  masks();
  places();
  divisions();
  return report("cuda_channels");
}
