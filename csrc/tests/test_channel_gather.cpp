// Copies and sums of channels: the fast loops against the naive one, in buffers of exactly their size.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <thread>

#include "channel_scatter.h"
#include "half.h"
#include "harness.h"
#include "isa.h"

using namespace maskfuse;
using namespace maskfuse::test;

namespace {

enum class Lists { none, some, most, run, rising, inverse };

struct Problem {
  ChannelCopy copy{};
  std::vector<char> from, to;
  std::vector<int32_t> samples, lists;
};

// Entries: channels in any order, kNoChannel between them, at the end, or not at all; or rising, as of a mask, and
// rising by one with kNoChannel between, as of a mask's inverse.
std::vector<int32_t> random_list(int64_t channels, int64_t count, Lists kind) {
  std::vector<int32_t> list(count);
  if (kind == Lists::rising || kind == Lists::inverse) {
    const bool rising = kind == Lists::rising;
    const int64_t from = rising ? channels : count, most = rising ? count : channels;
    std::vector<uint8_t> mask(from);
    const int64_t one_of = random_int(1, 5);
    for (auto& byte : mask) byte = random_int(0, 5) < one_of;
    (rising ? active_channels : invert_mask)(mask.data(), from, most, list.data());
    return list;
  }
  const int64_t first = count <= channels ? random_int(0, channels - count) : 0;
  for (int64_t i = 0; i < count; ++i) {
    list[i] = (int32_t)random_int(0, channels - 1);
    if (kind == Lists::run) list[i] = first + i < channels ? (int32_t)(first + i) : kNoChannel;
    if (kind == Lists::some && random_int(0, 2) == 0) list[i] = kNoChannel;
    if (kind == Lists::most && (i >= 2 || channels == 1)) list[i] = kNoChannel;
  }
  return list;
}

Problem random_problem(int64_t element, bool channels_last) {
  Problem p;
  ChannelCopy& c = p.copy;
  const int64_t in_samples = random_int(1, 4), in_channels = random_int(1, 90);
  c.samples = random_int(1, 5), c.channels = random_int(1, 90), c.pixels = random_int(1, 70);
  if (random_int(0, 3) == 0) c.pixels = random_int(1, 4);
  c.element = element, c.channels_last = channels_last, c.from_channels = in_channels;
  // Gaps between what is copied: every `step`th channel of a larger input.
  const int64_t step = random_int(1, 2), gap = random_int(0, 3) * element;
  c.from_channel = step * element * (channels_last ? 1 : c.pixels);
  c.from_pixel = element * (channels_last ? in_channels * step : 1);
  c.from_sample = in_channels * c.pixels * step * element + gap;
  p.from.resize(in_samples * c.from_sample);
  for (auto& byte : p.from) byte = (char)random_int(1, 127);
  p.to.resize(c.samples * c.channels * c.pixels * element);
  p.samples.resize(c.samples);
  for (auto& sample : p.samples) sample = (int32_t)random_int(random_int(0, 4) == 0 ? -1 : 0, in_samples - 1);
  c.rows_of_input = random_int(0, 1);
  const bool shared = random_int(0, 1);
  c.rows = shared ? 0 : c.channels;
  for (int64_t row = 0; row < (shared ? 1 : std::max(in_samples, c.samples)); ++row)
    for (int32_t entry : random_list(in_channels, c.channels, (Lists)random_int(0, 5))) p.lists.push_back(entry);
  if (random_int(0, 1) && c.samples <= in_samples) p.samples.clear();
  c.from = p.from.data(), c.to = p.to.data(), c.channel = p.lists.data();
  c.sample = p.samples.empty() ? nullptr : p.samples.data();
  return p;
}

void copies() {
  for (int i = 0; i < 3000; ++i) {
    const int64_t element = 1 << random_int(0, 4);
    Problem p = random_problem(element, random_int(0, 1));
    const int64_t units = copy_units(p.copy);
    CHECK(units * copy_unit_bytes(p.copy) == (int64_t)p.to.size(), "%ld units", (long)units);
    std::fill(p.to.begin(), p.to.end(), (char)-1);
    copy_channels_naive(p.copy, 0, units);
    const std::vector<char> want = p.to;
    std::fill(p.to.begin(), p.to.end(), (char)-1);
    const int64_t cut = random_int(0, units);
    copy_channels(p.copy, 0, cut);
    const bool untouched = std::all_of(p.to.begin() + cut * copy_unit_bytes(p.copy), p.to.end(),
                                       [](char byte) { return byte == (char)-1; });
    CHECK(untouched, "units [0, %ld) of %ld wrote past their end", (long)cut, (long)units);
    copy_channels(p.copy, cut, units);
    CHECK(p.to == want, "element %ld, %ld x %ld x %ld, channels_last %d, from_channel %ld, rows %ld", (long)element,
          (long)p.copy.samples, (long)p.copy.channels, (long)p.copy.pixels, p.copy.channels_last,
          (long)p.copy.from_channel, (long)p.copy.rows);
  }
}

// Two threads write ranges that touch each other; the thread sanitizer watches.
void threads() {
  for (bool channels_last : {false, true}) {
    Problem p = random_problem(4, channels_last);
    const int64_t units = copy_units(p.copy);
    copy_channels_naive(p.copy, 0, units);
    const std::vector<char> want = p.to;
    std::thread other([&] { copy_channels(p.copy, 0, units / 2); });
    copy_channels(p.copy, units / 2, units);
    other.join();
    CHECK(p.to == want, "channels_last %d", channels_last);
  }
}

void indices() {
  for (int i = 0; i < 300; ++i) {
    const int64_t size = random_int(1, 30), count = random_int(0, 40);
    std::vector<int64_t> index(count);
    for (auto& entry : index) entry = random_int(-size, size - 1);
    std::vector<int32_t> resolved(count), first(size), next(count);
    CHECK(resolve_indices(index.data(), count, size, resolved.data()) == -1, "in range");
    for (int64_t k = 0; k < count; ++k) CHECK(resolved[k] == (index[k] + size) % size, "index %ld", (long)index[k]);
    const bool repeated = invert_indices(resolved.data(), count, size, first.data(), next.data());
    bool twice = false;
    for (int64_t entry = 0; entry < size; ++entry) {
      int64_t at = first[entry], found = 0;
      for (int64_t k = 0; k < count; ++k) {
        if (resolved[k] != entry) continue;
        CHECK(at == k, "entry %ld: position %ld, not %ld", (long)entry, (long)at, (long)k);
        at = next[at];
        ++found;
      }
      CHECK(at == kNoChannel, "entry %ld goes on", (long)entry);
      twice = twice || found > 1;
    }
    CHECK(repeated == twice, "repeated");
    if (count == 0) continue;
    const int64_t bad = random_int(0, count - 1);
    index[bad] = random_int(0, 1) ? size + random_int(0, 1) * (int64_t{1} << 32) : -size - 1;
    CHECK(resolve_indices(index.data(), count, size, resolved.data()) == bad, "out of range at %ld", (long)bad);
    std::vector<int32_t> narrow(index.begin(), index.end());
    narrow[bad] = (int32_t)size;
    CHECK(resolve_indices(narrow.data(), count, size, resolved.data()) == bad, "out of range at %ld", (long)bad);
  }
}

void masks() {
  for (int i = 0; i < 300; ++i) {
    const int64_t channels = random_int(0, 30), most = random_int(0, 35);
    std::vector<uint8_t> mask(channels);
    for (auto& byte : mask) byte = (uint8_t)random_int(0, 1);
    std::vector<int32_t> list(most), inverse(channels);
    active_channels(mask.data(), channels, most, list.data());
    invert_mask(mask.data(), channels, most, inverse.data());
    int64_t count = 0;
    for (int64_t c = 0; c < channels; ++c) {
      const bool taken = mask[c] && count < most;
      CHECK(inverse[c] == (taken ? count : kNoChannel), "channel %ld", (long)c);
      if (!taken) continue;
      CHECK(list[count] == c, "channel %ld", (long)c);
      ++count;
    }
    for (; count < most; ++count) CHECK(list[count] == kNoChannel, "position %ld", (long)count);
  }
}

// Integers, whose sums are exact: in double as a plain double loop says.
void sums() {
  for (int i = 0; i < 300; ++i) {
    const bool channels_last = random_int(0, 1), per_sample = random_int(0, 1);
    const int64_t in_samples = random_int(1, 5), count = random_int(1, 12), pixels = random_int(1, 1200 / count);
    const int64_t samples = random_int(1, 4), channels = random_int(1, 9), lists = per_sample ? in_samples : 1;
    std::vector<double> from(in_samples * count * pixels), to(samples * channels * pixels, -1), want(to.size(), 0);
    for (auto& x : from) x = (double)random_int(-9, 9);
    std::vector<int32_t> batch(in_samples), index(lists * count);
    for (auto& b : batch) b = (int32_t)random_int(0, samples - 1);
    for (auto& c : index) c = (int32_t)random_int(0, channels - 1);
    std::vector<int32_t> first_b(samples), next_b(in_samples), first_c(lists * channels), next_c(lists * count);
    invert_indices(batch.data(), in_samples, samples, first_b.data(), next_b.data());
    for (int64_t l = 0; l < lists; ++l)
      invert_indices(index.data() + l * count, count, channels, first_c.data() + l * channels,
                     next_c.data() + l * count);
    ChannelSum s{};
    ChannelCopy& c = s.copy;
    c.samples = samples, c.channels = channels, c.pixels = pixels, c.element = 8, c.channels_last = channels_last;
    c.from = (const char*)from.data(), c.to = (char*)to.data(), c.from_channels = count;
    c.from_sample = 8 * count * pixels, c.from_channel = channels_last ? 8 : 8 * pixels;
    c.from_pixel = channels_last ? 8 * count : 8;
    c.sample = first_b.data(), c.channel = first_c.data(), c.rows = per_sample ? channels : 0, c.rows_of_input = true;
    s.number = Number::f64, s.parts = 1, s.next_sample = next_b.data(), s.next_channel = next_c.data();
    s.next_rows = per_sample ? count : 0;
    const int64_t units = copy_units(c), cut = random_int(0, units);
    sum_channels(s, cut, units);
    sum_channels(s, 0, cut);
    for (int64_t j = 0; j < in_samples; ++j)
      for (int64_t k = 0; k < count; ++k)
        for (int64_t p = 0; p < pixels; ++p) {
          const int64_t channel = index[(per_sample ? j : 0) * count + k];
          const int64_t at = channels_last ? (batch[j] * pixels + p) * channels + channel
                                           : (batch[j] * channels + channel) * pixels + p;
          want[at] += from[channels_last ? (j * pixels + p) * count + k : (j * count + k) * pixels + p];
        }
    CHECK(to == want, "%ld x %ld x %ld, channels_last %d", (long)samples, (long)channels, (long)pixels, channels_last);
  }
}

// Every number of a half type goes to float and back, but for the payload of a NaN.
void halves() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Fp16 h{(uint16_t)bits};
    const Bf16 b{(uint16_t)bits};
    Fp16 h_back;
    Bf16 b_back;
    narrow(widen(h), &h_back);
    narrow(widen(b), &b_back);
    CHECK(h_back.bits == bits || std::isnan(widen(h)), "float16 %x", bits);
    CHECK(b_back.bits == bits || std::isnan(widen(b)), "bfloat16 %x", bits);
    CHECK(std::isnan(widen(h)) == std::isnan(widen(h_back)), "float16 %x", bits);
  }
}

}  // namespace

int main() {
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (!isa_available(isa)) continue;
    isa_set(isa_name(isa));
    copies();
  }
  threads();
  indices();
  masks();
  sums();
  halves();
  return report("channel_gather");
}
