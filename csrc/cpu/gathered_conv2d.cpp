// How a convolution of chosen channels is cut into tiles and tasks.
#include "gathered_conv2d.h"

#include <algorithm>
#include <limits>

#include "layout.h"
#include "mask.h"

namespace maskfuse {
namespace {

// Bytes of a tile's sums: they stay in the second-level cache with a chunk of weights.
constexpr int64_t kSumBytes = 512 << 10;
// Pixels of a tile at most, and at least where a tile is made smaller for threads to have something to do.
constexpr int64_t kMostPixels = 448, kLeastPixels = 56;
// Pixels of a tile of weight_grad: three blocks of them fit the first-level cache.
constexpr int64_t kGradPixels = 196;
// Tasks of weight_grad, whatever the number of threads, for sums to be the same; and partial sums at most.
constexpr int64_t kGradTasks = 12, kGradSlices = 8;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t chosen(const uint32_t* bits, int64_t ld, int64_t channels) {
  if (!bits || ld != 0) return channels;
  int64_t count = 0;
  for (int64_t c = 0; c < channels; c += 32)
    count += count_bits(channels - c >= 32 ? bits[c / 32] : bits[c / 32] & ((1u << (channels - c)) - 1));
  return count;
}

// Tiles of about `pixels`: of whole rows where one fits.
Tiling tiling_of(const ConvShape& c, int64_t pixels) {
  Tiling t{};
  t.across = std::max<int64_t>(1, ceil_div(c.out_w, pixels));
  t.columns = ceil_div(c.out_w, t.across);
  t.down = std::max<int64_t>(1, ceil_div(c.out_h, std::max<int64_t>(1, pixels / std::max<int64_t>(1, t.columns))));
  t.rows = ceil_div(c.out_h, t.down);
  t.down = ceil_div(c.out_h, std::max<int64_t>(1, t.rows)),
  t.across = ceil_div(c.out_w, std::max<int64_t>(1, t.columns));
  t.staged_rows = staged(rows_of(c), t.rows, nullptr);
  t.staged_columns = staged(columns_of(c), t.columns, nullptr);
  return t;
}

}  // namespace

MaskedConv gathered_form(const GatheredConv& problem) {
  MaskedConv g = forward_form(problem.conv);
  ConvShape& c = g.shape;
  if (c.taps() != 1 || c.stride_h * c.stride_w != 1 || c.spread_h * c.spread_w != 1 || (c.pad_h | c.pad_w) != 0)
    return g;
  const auto step = [&](const Image& image) { return c.in_w == 1 ? image.y : image.x; };
  const auto one_row = [&](const Image& image) { return c.in_w == 1 || c.in_h == 1 || image.y == c.in_w * image.x; };
  if (!one_row(g.input) || !one_row(g.output)) return g;
  g.input.x = step(g.input), g.output.x = step(g.output);
  c.in_w = c.out_w = c.in_h * c.in_w;
  c.in_h = c.out_h = 1;
  return g;
}

GatheredSchedule schedule(const GatheredConv& problem, Isa isa, int threads) {
  const MaskedConv form = gathered_form(problem);
  const ConvShape& c = form.shape;
  const int64_t element = form.dtype == Dtype::f64 ? 8 : 4, vector = isa == Isa::avx512 ? 64 : 32,
                lanes = vector / element, taps = c.taps();
  const bool turned = form.pass == Pass::input_grad;
  const int64_t in =
      chosen(turned ? problem.out_channels : problem.in_channels, turned ? problem.out_ld : problem.in_ld, c.in);
  const int64_t out =
      chosen(turned ? problem.in_channels : problem.out_channels, turned ? problem.in_ld : problem.out_ld, c.out);
  GatheredSchedule s{};
  s.lanes = lanes;
  Layout shared, scratch;
  s.out_blocks = ceil_div(out, lanes);
  const bool grad = form.pass == Pass::weight_grad;
  if (grad) {
    s.tiling = tiling_of(c, kGradPixels);
  } else {
    int64_t pixels = std::clamp(kSumBytes / std::max<int64_t>(1, s.out_blocks * vector), kLeastPixels, kMostPixels);
    do s.tiling = tiling_of(c, pixels);
    while (c.batch * s.tiling.tiles() < 2 * threads && (pixels /= 2) >= kLeastPixels);
  }
  const Tiling& t = s.tiling;
  if (std::max(t.staged_rows, t.staged_columns) > (1 << 20)) {
    s.scratch_bytes = std::numeric_limits<size_t>::max();  // dilations of more pixels than are worth staging
    return s;
  }
  s.lists_at = scratch.add((3 * c.in + 2 * c.out + 8) * 4);
  // Odd numbers of lines from channel to channel spread over all of the cache.
  s.plane = (ceil_div(t.positions() + lanes, lanes) | 1) * lanes;
  if (grad) {
    s.slots = in;
    s.chunk = std::max<int64_t>(1, std::min(in, ceil_div(kGradColumns, taps)));
    const int64_t groups = ceil_div(s.out_blocks, kGradBlocks) * ceil_div(in, s.chunk);
    s.slices = std::min({kGradSlices, c.batch * t.tiles(), ceil_div(kGradTasks, std::max<int64_t>(1, groups))});
    s.tasks[0] = groups * s.slices, s.tasks[1] = std::max<int64_t>(1, s.out_blocks);
    s.sums_at = shared.add(s.slices * s.out_blocks * in * taps * vector);
    s.own_sums_at = scratch.add(kGradBlocks * t.pixels() * vector);
  } else {
    // Each image has weights of its own where the channels of its result are its own.
    s.shared_lanes = (turned ? problem.in_ld : problem.out_ld) == 0;
    const int64_t chunks = std::max<int64_t>(1, ceil_div(in * taps, kColumns));
    s.chunk = std::max<int64_t>(1, ceil_div(in, chunks));
    s.tasks[0] = s.shared_lanes ? s.out_blocks : 0, s.tasks[1] = c.batch * t.tiles();
    const int64_t weights = s.out_blocks * in * taps * vector;
    s.lanes_at = shared.add(s.shared_lanes ? weights : 0);
    s.own_lanes_at = scratch.add(s.shared_lanes ? 0 : weights);
    s.own_sums_at = scratch.add(s.out_blocks * t.pixels() * vector);
    s.fill_at = scratch.add((3 * c.out + 3 * lanes) * element);
  }
  const int64_t places = (2 * (t.staged_rows + t.staged_columns) + c.kernel_h + c.kernel_w + taps) * 8;
  s.places_at = scratch.add(places), s.next_places_at = scratch.add(grad ? 0 : places);
  s.input_at = scratch.add(s.chunk * s.plane * element + 2 * vector);
  s.shared_bytes = shared.bytes, s.scratch_bytes = scratch.bytes;
  return s;
}

GatheredTasks gathered_conv2d_tasks(Isa isa, Dtype dtype, Pass pass) {
#ifdef MASKFUSE_X86
  if (isa == Isa::avx512) return gathered_conv2d_tasks_avx512(dtype, pass);
  if (isa == Isa::avx2) return gathered_conv2d_tasks_avx2(dtype, pass);
#else
  (void)isa, (void)dtype, (void)pass;
#endif
  return {};
}

}  // namespace maskfuse
