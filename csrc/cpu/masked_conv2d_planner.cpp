#include "masked_conv2d_planner.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "mask.h"

namespace maskfuse {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Nanoseconds on one core, in the order of `Rate`; a phase's and a call's on the whole call. Measured on the machine of
// masked_linear_planner.cpp's table by bench/calibrate.py --op masked_conv2d, where choosing by them took 3 % longer
// than the best choice (AVX2: 2 %). A lane is a line of 64 bytes here, and `moved` an element of the library's
// activations.
// clang-format off
//                           phase  weight product lane  value down  long  entry single shared shifted visit sample tile  result call    library read   moved
constexpr double kAvx512[] = {18000, 24.9,  0.204,  3.56, 2.22, 3.54, 1.77, 1.92, 0.305, 0.799, 0.290, 7.84, 0.455, 3.23,  0.380, 112000, 0.792, 0.964, 0.530};
constexpr double kAvx2[]   = {20800, 17.2,  0.188,  2.93, 2.06, 3.79, 1.98, 3.98, 0.464, 1.550, 0.484, 10.2, 0.611, 1.28,  0.429, 127000, 0.806, 1.030, 0.672};
// clang-format on
static_assert(sizeof(kAvx512) / sizeof(double) == kRates && sizeof(kAvx2) / sizeof(double) == kRates);

// Of channels that a strip of Kernel::shifted has in lanes.
constexpr int64_t kStagedBytes = 32 << 10;

std::atomic<int> preferred{-1};

int64_t element_bytes(const MaskedConv& g) { return g.dtype == Dtype::f64 ? 8 : 4; }

bool can_cut(const MaskedConv& g, const Strips& s) {
  // Places of lines are 16 bits, from their chunk's first.
  const int64_t chunk = g.plan->header->chunk, taps = g.shape.taps();
  return (chunk / taps + 2) * s.plane <= 65535 && g.shape.columns() * s.plane <= INT32_MAX;
}

Work library_work(const MaskedConv& g, const ActiveChannels& p) {
  const ConvShape& c = g.shape;
  Work w;
  const double vector = (double)(kUnitBytes / element_bytes(g)), weights = (double)c.out * (double)c.columns();
  const double cost = library_cost(g.dtype);
  if (p.some) {
    // Activations are gathered, multiplied and scattered, zeros included.
    const double in = (double)(c.batch * c.in_h * c.in_w), out = (double)(c.batch * c.out_h * c.out_w);
    const double least = (double)p.in * in + (double)p.out * out;
    w.count[kCall] = 1;
    w.count[kLibrary] = (double)c.pixels() * (double)(p.in * p.out * c.taps()) / 4 / vector * (cost == 0 ? 4 : cost);
    w.count[g.pass == Pass::weight_grad ? kResult : kRead] =
        g.pass == Pass::weight_grad ? weights : (double)(p.in * p.out * c.taps());
    w.count[kMoved] = (g.channels_last ? 1 : 2) * least + (g.pass == Pass::forward      ? (double)c.out * out
                                                           : g.pass == Pass::input_grad ? (double)c.in * in
                                                                                        : 0);
    return w;
  }
  w.count[kCall] = 1;
  // Depthwise convolutions are bound by memory; no fast kernel is better than none.
  w.count[kLibrary] = (double)c.pixels() * weights / 4 / vector * (cost == 0 ? 4 : cost);
  w.count[g.pass == Pass::weight_grad ? kResult : kRead] = weights;
  // Activations that are not as it works on them, or the weight's gradient where they are.
  if (!g.channels_last)
    w.count[kMoved] = (double)c.batch * (double)(c.in * c.in_h * c.in_w + c.out * c.out_h * c.out_w);
  else if (g.pass == Pass::weight_grad)
    w.count[kMoved] = weights;
  return w;
}

// Lanes are channels of the result, or, for weight_grad, of the gradient.
Work direct_work(const MaskedConv& g, const ActiveChannels& p, const GatheredSchedule& s, Isa isa) {
  const Tiling& t = s.tiling;
  const MaskedConv form = forward_form(g);
  const ConvShape& c = form.shape;
  const double lanes = (double)s.lanes;
  const double in = (double)(g.pass == Pass::input_grad ? p.out : p.in);
  const double tiles = (double)(c.batch * t.tiles()), taps = (double)c.taps();
  Work w;
  w.count[kPhase] = 2;
  if (g.pass == Pass::weight_grad) {
    const double blocks = (double)s.out_blocks;
    w.count[kProduct] = in * taps * blocks * (double)c.pixels();
    w.count[kTile] = tiles * in * (double)t.positions() / lanes * std::ceil(blocks / kGradBlocks) +
                     blocks * ((double)c.pixels() * std::ceil(in / (double)s.chunk) + (double)s.slices * in * taps);
    w.count[kResult] = (double)c.out * (double)c.columns();
    return w;
  }
  const double blocks = (double)s.out_blocks;
  // Sums that few pixels and blocks take turns with wait for each other: a pipeline holds eight.
  const int64_t most = isa == Isa::avx512 ? 14 : 6, groups = ceil_div(t.columns, most);
  const double together = (double)t.columns / (double)groups * std::min(2.0, blocks);
  w.count[kWeight] = blocks * in * taps;
  w.count[kProduct] = blocks * in * taps * (double)c.pixels() * std::max(1.0, 8 / std::max(1.0, together));
  w.count[kTile] = (tiles * in * (double)t.positions() + (double)c.pixels() * (double)c.out) / lanes;
  return w;
}

Work vector_work(Kernel kernel, const MaskedConv& g, const Strips& s) {
  const ConvShape& c = g.shape;
  const PlanHeader& h = *g.plan->header;
  Work w;
  const double strips = (double)s.strips();
  // Units of lanes in all strips, those of which nothing is used among them.
  const double row = (double)(c.batch * (s.pointwise ? c.out_h * c.out_w : c.out_w));
  const double units = std::max(1.0, row / (double)s.unit) * (double)(s.pointwise ? 1 : c.out_h);
  const double shared = (double)(h.values - h.column_bytes) / 3, singles = (double)h.column_bytes - shared;
  w.count[kPhase] = kernel == Kernel::sampled ? 3 : 2;
  w.count[kLane] = strips * (double)c.in * (double)(s.copies * s.staged_rows) + units * (double)c.out;
  w.count[kEntry] = (double)h.row_bytes * units;
  if (kernel == Kernel::sampled) {
    w.count[kSample] = (singles + 4 * shared) * units;
    w.count[kValue] = singles + 4 * shared;
    w.count[kResult] = (double)c.out * (double)c.columns();
  } else {
    if (!(g.packed && g.packed->ordered)) {
      w.count[g.pass == Pass::forward ? kValue : kValueDown] = singles;
      w.count[kLongValue] = 4 * shared;
    }
    w.count[kSingle] = singles * units;
    w.count[kShared] = shared * units;
  }
  return w;
}

Work shifted_work(const MaskedConv& g, const Strips& s, const ShiftedLanes& l) {
  const ConvShape& c = g.shape;
  const double strips = (double)s.strips(), lines = (double)s.out_plane, values = (double)g.plan->header->active;
  Work w;
  w.count[kPhase] = 4;
  w.count[kLane] = strips * ((double)c.in * (double)s.plane + (double)c.out * lines);
  w.count[kVisit] = strips * lines * (double)c.out * (double)l.chunks;
  w.count[g.pass == Pass::forward ? kValue : kValueDown] = values;
  w.count[kShifted] = values * strips * lines;
  return w;
}

}  // namespace

// Rows of a plan's index are one side's channels, columns the other's, with their taps: the output's are rows but for
// input_grad.
ActiveChannels::ActiveChannels(const MaskedConv& g)
    : some(false), all_taps(true), in(g.shape.in), out(g.shape.out), words(ceil_div(g.shape.in, 32)) {
  if (!g.plan || !g.plan->row_pattern || g.shape.groups != 1) return;
  const bool turned = g.pass == Pass::input_grad;
  bits.resize((size_t)(words + ceil_div(out, 32)));
  uint32_t* const rows = bits.data() + (turned ? 0 : words);
  uint32_t* const columns = bits.data() + (turned ? words : 0);
  const int64_t row_count = turned ? in : out, taps = g.shape.taps();
  std::copy_n(g.plan->row_pattern, ceil_div(row_count, 32), rows);
  int64_t active_rows = 0, active_columns = 0;
  for (int64_t i = 0; i < ceil_div(row_count, 32); ++i) active_rows += count_bits(rows[i]);
  // The word that a column is in is looked at once.
  const int64_t channels = turned ? out : in;
  for (int64_t k = 0; k < channels * taps; k += 32)
    for (uint32_t word = g.plan->column_pattern[k / 32]; word != 0; word &= word - 1) {
      const int64_t channel = (k + __builtin_ctz(word)) / taps;
      if (channel >= channels) break;
      uint32_t& to = columns[channel / 32];
      active_columns += !(to >> (channel % 32) & 1);
      to |= 1u << (channel % 32);
    }
  in = turned ? active_rows : active_columns, out = turned ? active_columns : active_rows;
  all_taps = g.plan->header->active_columns == active_columns * taps;
  some = in > 0 && out > 0 && (in < g.shape.in || out < g.shape.out);
  if (!some) in = g.shape.in, out = g.shape.out;
}

bool tap_is_active(const MaskedConv& g, int64_t in_channel, int64_t out_channel, int64_t tap) {
  const int64_t i = (g.pass == Pass::input_grad ? out_channel : in_channel) * g.shape.taps() + tap;
  return g.plan->column_pattern[i / 32] >> (i % 32) & 1;
}

Strips strips_of(const MaskedConv& g) {
  const ConvShape& c = g.shape;
  Strips s{};
  s.unit = kUnitBytes / element_bytes(g);
  s.pointwise = c.taps() == 1;
  s.copies = c.kernel_w;
  const int64_t most = g.pass == Pass::weight_grad ? 2 * kBlockUnits : kBlockUnits, h = std::max<int64_t>(1, c.out_h);
  s.parts = s.pointwise ? 1 : ceil_div(h, most);
  s.rows = s.pointwise ? most : std::min(most, round_up(ceil_div(h, s.parts), most > kBlockUnits ? 2 : 1));
  s.across = s.pointwise ? ceil_div(c.pixels(), s.unit * s.rows) : ceil_div(c.batch * c.out_w, s.unit);
  // Odd numbers of lines from channel to channel spread over all of the cache; a block is contiguous by itself.
  s.staged_rows = staged(rows_of(c), s.rows, nullptr);
  if (!s.pointwise) s.staged_rows |= 1;
  const int64_t odd = s.rows > kBlockUnits || s.copies > 1 || s.staged_rows > kBlockUnits;
  s.plane = s.copies * s.staged_rows | odd;
  s.out_plane = s.rows | odd;
  return s;
}

bool shifted_lanes(const MaskedConv& g, Strips& s, ShiftedLanes& l) {
  const ConvShape& c = g.shape;
  if (c.kernel_w != kShifts || c.stride_w != 1 || c.spread_w != 1 || c.pixels() == 0) return false;
  s = Strips{}, l = ShiftedLanes{};
  s.unit = kUnitBytes / element_bytes(g);
  const int64_t lanes = kShiftedUnits * s.unit;
  const int64_t before = std::max<int64_t>(0, c.pad_w), after = std::max<int64_t>(0, 2 * c.dilation_w - c.pad_w);
  // A sum is shifted by a vector at most, of four doubles in AVX2.
  if (before > 4 || after > 4) return false;
  l.pitch = std::max(c.in_w, c.out_w);
  // No lane lacks its neighbour where images end with strips.
  const bool even = lanes % l.pitch == 0;
  l.before = even ? 0 : before, l.useful = even ? lanes : lanes - before - after;
  s.rows = std::min<int64_t>(kShiftedRows, c.out_h);
  s.parts = ceil_div(c.out_h, s.rows);
  s.across = ceil_div(c.batch * l.pitch, l.useful);
  s.staged_rows = staged(rows_of(c), s.rows, nullptr);
  s.plane = kShiftedUnits * s.staged_rows, s.out_plane = kShiftedUnits * s.rows;
  l.channel = s.plane * s.unit;
  // Half of the first-level cache, most of the rest being lists.
  l.chunk = std::min<int64_t>(c.in, std::max<int64_t>(32, kStagedBytes / (s.plane * kUnitBytes) / 32 * 32));
  l.chunks = ceil_div(c.in, l.chunk);
  return l.chunk * l.channel <= 65536 && l.lists(c) <= INT32_MAX;
}

DirectSchedule direct_schedule(const MaskedConv& g, const ActiveChannels& active, Isa isa, int threads) {
  DirectSchedule s{};
  s.masked = g.bits && !(active.some && active.all_taps);
  if (active.some) {
    s.in_channels.assign(active.in_bits(), active.out_bits());
    s.out_channels.assign(active.out_bits(), active.bits.data() + active.bits.size());
  }
  s.gathered = schedule(direct_conv(g, s), isa, threads);
  return s;
}

GatheredConv direct_conv(const MaskedConv& g, const DirectSchedule& s) {
  GatheredConv problem{};
  problem.conv = g;
  if (!s.masked) problem.conv.bits = nullptr;
  if (!s.in_channels.empty()) problem.in_channels = s.in_channels.data(), problem.out_channels = s.out_channels.data();
  return problem;
}

int candidates(const MaskedConv& g, const ActiveChannels& active, Isa isa, int threads, Candidate* list) {
  int count = 0;
  if (isa == Isa::scalar && !g.library) {
    list[count++].kernel = Kernel::naive;
    return count;
  }
  if (isa == Isa::scalar) list[count++].kernel = Kernel::naive;
  Strips s{}, shifted_strips{};
  ShiftedLanes shifted{};
  const MaskedConv form = forward_form(g);
  if (isa != Isa::scalar && g.plan && g.shape.groups == 1 && g.shape.pixels() > 0) {
    s = strips_of(form);
    if (can_cut(form, s)) list[count++].kernel = g.pass == Pass::weight_grad ? Kernel::sampled : Kernel::accumulate;
    if (g.pass != Pass::weight_grad && g.bits && shifted_lanes(form, shifted_strips, shifted))
      list[count++].kernel = Kernel::shifted;
  }
  DirectSchedule direct;
  if (isa != Isa::scalar && g.shape.groups == 1 && g.shape.pixels() > 0 && g.shape.columns() > 0) {
    direct = direct_schedule(g, active, isa, threads);
    if (fits(direct.gathered)) list[count++].kernel = Kernel::direct;
  }
  if (g.library && isa != Isa::scalar) list[count++].kernel = Kernel::library;
  if (count == 0) list[count++].kernel = Kernel::naive;
  const double* const rates = isa == Isa::avx512 ? kAvx512 : kAvx2;
  for (int i = 0; i < count; ++i) {
    Candidate& c = list[i];
    c.work = c.kernel == Kernel::library   ? library_work(g, active)
             : c.kernel == Kernel::shifted ? shifted_work(form, shifted_strips, shifted)
             : c.kernel == Kernel::direct  ? direct_work(g, active, direct.gathered, isa)
             : c.kernel == Kernel::naive   ? Work{}
                                           : vector_work(c.kernel, form, s);
    c.nanoseconds = 0;
    for (int r = 0; r < kRates; ++r)
      c.nanoseconds += c.work.count[r] * rates[r] / (r == kPhase || r == kCall ? 1 : threads);
  }
  const int wanted = preferred.load(std::memory_order_relaxed);
  std::stable_sort(list, list + count, [wanted](const Candidate& a, const Candidate& b) {
    const bool first = (int)a.kernel == wanted, second = (int)b.kernel == wanted;
    return first != second ? first : a.nanoseconds < b.nanoseconds;
  });
  return count;
}

bool prefer_conv_kernel(const char* name) {
  if (*name == '\0') {
    preferred = -1;
    return true;
  }
  for (Kernel kernel :
       {Kernel::naive, Kernel::accumulate, Kernel::sampled, Kernel::shifted, Kernel::direct, Kernel::library}) {
    if (std::strcmp(name, kernel_name(kernel)) != 0) continue;
    preferred = (int)kernel;
    return true;
  }
  return false;
}

}  // namespace maskfuse
