// How a convolution of chosen channels is cut into tasks.
#include "gathered_conv2d.h"

#include <algorithm>

#include "masked_conv2d_planner.h"

namespace maskfuse {
namespace {

// Columns that a chunk has about: their lines fit the first-level cache.
constexpr int64_t kColumns = 256;

// Sums of strips that are worked on together: they leave room in the second-level cache for a chunk of the weight.
constexpr int64_t kSumBytes = 512 << 10;

// Tasks a thread.
constexpr int64_t kTurns = 8;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

GatheredSchedule schedule(const GatheredConv& g, int threads) {
  MaskedConv one = forward_form(g.conv);
  const int64_t batch = std::max<int64_t>(1, one.shape.batch), element = g.conv.dtype == Dtype::f64 ? 8 : 4;
  one.shape.batch = 1;
  const ConvShape& c = one.shape;
  GatheredSchedule s{};
  s.strips = strips_of(one);
  s.parts = std::min(s.strips.strips(), std::max<int64_t>(1, ceil_div(kTurns * threads, batch)));
  // A single tap has lines of its own; others share theirs, two of which serve three taps.
  s.most = std::max(kChannelGroup, c.taps() == 1 ? kColumns / 2 : kColumns / c.taps());
  s.most = std::min(s.most, ceil_div(c.in, kChannelGroup) * kChannelGroup);
  const auto add = [&](int64_t bytes) {
    const size_t at = s.scratch_bytes;
    s.scratch_bytes += ((size_t)bytes + 63) / 64 * 64;
    return at;
  };
  s.first_at = add(c.kernel_h * 8);
  s.lines_at = add(s.most * c.taps() * 4);
  s.places_at = add(s.most * c.taps() * 8);
  s.rows_at = add(c.out * 4);
  // Vectors that are stored may run over an end.
  s.input_at = add(s.most * s.strips.plane * kUnitBytes + 256);
  s.output_bytes = (size_t)(c.out * s.strips.out_plane * kUnitBytes + 256);
  s.together = std::min(
      {kMostTogether, ceil_div(s.strips.strips(), s.parts), std::max<int64_t>(1, kSumBytes / (int64_t)s.output_bytes)});
  s.output_at = add(s.together * (int64_t)s.output_bytes);
  const int64_t patterns = s.strips.pointwise ? s.strips.rows : 1, lanes = kUnitBytes / element;
  s.map_bytes = (size_t)((s.strips.copies + 1) * (patterns * lanes * kLaneMapBytes + 64) +
                         (s.strips.staged_rows + s.strips.rows) * 16 + 63) /
                64 * 64;
  s.map_at = add(s.together * (int64_t)s.map_bytes);
  return s;
}

GatheredTask gathered_conv2d_task(Isa isa, Dtype dtype) {
#ifdef MASKFUSE_X86
  if (isa == Isa::avx512) return gathered_conv2d_task_avx512(dtype);
  if (isa == Isa::avx2) return gathered_conv2d_task_avx2(dtype);
#else
  (void)isa, (void)dtype;
#endif
  return nullptr;
}

}  // namespace maskfuse
