#include "masked_conv2d_planner.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace maskfuse {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Nanoseconds on one core, in the order of `Rate`; a phase's and a call's on the whole call. Measured on the machine of
// masked_linear_planner.cpp's table by bench/calibrate.py --op masked_conv2d, where choosing by them took 1 % longer
// than the best choice (AVX2: 4 %). A lane is a line of 64 bytes here, and `moved` an element of the library's
// activations.
// clang-format off
//                           phase  weight product lane  value down  long  entry single shared sample tile result call    library read   moved
constexpr double kAvx512[] = {27000, 0,    0,      7.38, 1.93, 3.13, 1.30, 2.26, 0.379, 0.913, 0.497, 0,   0.513, 155000, 0.883, 0.621, 0.696};
constexpr double kAvx2[]   = {10100, 0,    0,      9.54, 5.60, 7.82, 4.03, 2.12, 0.530, 1.590, 0.660, 0,   0.868, 123000, 1.070, 1.220, 0.578};
// clang-format on
static_assert(sizeof(kAvx512) / sizeof(double) == kRates && sizeof(kAvx2) / sizeof(double) == kRates);

std::atomic<int> preferred{-1};

int64_t element_bytes(const MaskedConv& g) { return g.dtype == Dtype::f64 ? 8 : 4; }

// Bytes of a strip's input and output that leave some of the second-level cache to the weight, and units across.
constexpr int64_t kStripBytes = int64_t{1} << 20, kMostWide = 4;

// Images of a group for input_grad: as few as waste next to no lanes.
int64_t images_a_group(const ConvShape& c, int64_t unit, bool pointwise) {
  const int64_t row = pointwise ? c.out_h * c.out_w : c.out_w;
  int64_t best = 1;
  double least = 1e30;
  for (int64_t images = 1; images <= std::min<int64_t>(16, c.batch); ++images) {
    const double waste = (double)round_up(images * row, unit) / (double)(images * row);
    if (waste < least - 0.02) least = waste, best = images;
    if (least < 1.05) break;
  }
  return best;
}

bool can_cut(const MaskedConv& g, const Strips& s) {
  // Places of lines are 16 bits, from their chunk's first.
  const int64_t chunk = g.plan->header->chunk, taps = g.shape.taps();
  const int64_t lines = g.pass == Pass::input_grad ? chunk * s.out_plane : (chunk / taps + 2) * s.plane;
  return lines <= 65535 && g.shape.columns() * s.plane <= INT32_MAX;
}

Work library_work(const MaskedConv& g) {
  const ConvShape& c = g.shape;
  Work w;
  const double vector = (double)(kUnitBytes / element_bytes(g)), weights = (double)c.out * (double)c.columns();
  const double cost = library_cost(g.dtype);
  const LibraryConv p(g);
  if (p.compact) {
    // Activations are gathered, multiplied and scattered, zeros included.
    const double in = (double)(c.batch * c.in_h * c.in_w), out = (double)(c.batch * c.out_h * c.out_w);
    const double least = (double)p.in * in + (double)p.out * out;
    w.count[kCall] = 1;
    w.count[kLibrary] = (double)c.pixels() * (double)(p.in * p.out * c.taps()) / 4 / vector * (cost == 0 ? 4 : cost);
    w.count[g.pass == Pass::weight_grad ? kResult : kRead] =
        g.pass == Pass::weight_grad ? weights : (double)(p.in * p.out * c.taps());
    w.count[kMoved] = 2 * least + (g.pass == Pass::forward      ? (double)c.out * out
                                   : g.pass == Pass::input_grad ? (double)c.in * in
                                                                : 0);
    return w;
  }
  w.count[kCall] = 1;
  // Depthwise convolutions are bound by memory; no fast kernel is better than none.
  w.count[kLibrary] = (double)c.pixels() * weights / 4 / vector * (cost == 0 ? 4 : cost);
  w.count[g.pass == Pass::weight_grad ? kResult : kRead] = weights;
  w.count[kMoved] = (double)c.batch * (double)(c.in * c.in_h * c.in_w + c.out * c.out_h * c.out_w);
  return w;
}

Work vector_work(Kernel kernel, const MaskedConv& g, const Strips& s) {
  const ConvShape& c = g.shape;
  const PlanHeader& h = *g.plan->header;
  Work w;
  const double strips = (double)(s.groups(c) * s.strips());
  // Units of lanes in all strips, those of which nothing is used among them.
  const double row = (double)(s.pointwise ? c.out_h * c.out_w : c.out_w), images = (double)std::min(s.images, c.batch);
  const double units =
      (double)s.groups(c) * std::max(1.0, images * row / (double)s.unit) * (double)(s.pointwise ? 1 : c.out_h);
  const double shared = (double)(h.values - h.column_bytes) / 3, singles = (double)h.column_bytes - shared;
  w.count[kPhase] = kernel == Kernel::sampled ? 3 : 2;
  w.count[kLane] = strips * (double)c.in * (double)(s.copies * s.wide * s.staged_rows) + units * (double)c.out;
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

}  // namespace

LibraryConv::LibraryConv(const MaskedConv& g)
    : compact(false), in(g.shape.in), out(g.shape.out), out_pattern(nullptr), column_pattern(nullptr) {
  if (!g.plan || !g.plan->row_pattern || g.shape.groups != 1) return;
  const bool grad = g.pass == Pass::input_grad;  // whose index is the transposed one
  out_pattern = grad ? g.plan->column_pattern : g.plan->row_pattern;
  column_pattern = grad ? g.plan->row_pattern : g.plan->column_pattern;
  out = grad ? g.plan->header->active_columns : g.plan->header->active_rows;
  in = 0;
  for (int64_t c = 0; c < g.shape.in; ++c) in += reads(c, g.shape.taps());
  compact = in > 0 && out > 0 && (in < g.shape.in || out < g.shape.out);
}

bool LibraryConv::reads(int64_t channel, int64_t taps) const {
  for (int64_t i = channel * taps; i < (channel + 1) * taps; ++i)
    if (column_pattern[i / 32] >> (i % 32) & 1) return true;
  return false;
}

Strips strips_of(const MaskedConv& g, int threads) {
  const ConvShape& c = g.shape;
  Strips s{};
  s.unit = kUnitBytes / element_bytes(g);
  s.pointwise = c.taps() == 1;
  s.images = g.pass == Pass::input_grad ? images_a_group(c, s.unit, s.pointwise) : std::max<int64_t>(1, c.batch);
  s.copies = c.kernel_w;
  const int64_t row = s.pointwise ? c.out_h * c.out_w : c.out_w, images = std::min(s.images, c.batch);
  const int64_t units = ceil_div(images * row, s.unit);
  const auto cut = [&](int64_t rows) {
    s.rows = rows;
    s.parts = s.pointwise ? 1 : ceil_div(std::max<int64_t>(1, c.out_h), rows);
    s.across = ceil_div(units, s.pointwise ? rows : s.wide);
    // Odd numbers of lines from channel to channel spread over all of the cache; a block is contiguous by itself.
    s.staged_rows = staged_rows(c, rows, nullptr);
    if (!s.pointwise) s.staged_rows |= 1;
    const int64_t odd = rows > kBlockUnits || s.wide > 1 || s.copies > 1 || s.staged_rows > kBlockUnits;
    s.plane = s.copies * s.wide * s.staged_rows | odd;
    s.out_plane = s.wide * rows | odd;
  };
  const auto bytes = [&] { return (c.in * s.plane + c.out * s.out_plane) * kUnitBytes; };
  // What a strip sums up must not depend on the number of threads: in weight_grad, everything.
  const int64_t wanted = g.pass == Pass::forward ? 2 * threads : g.pass == Pass::weight_grad ? kMostSlices : 1;
  const auto good = [&] { return bytes() <= kStripBytes && s.groups(c) * s.strips() >= wanted; };
  if (s.pointwise) {
    // As many rows as leave threads least to wait for, of those the tallest.
    s.wide = 1;
    int64_t best = kBlockUnits;
    double most = 0;
    for (int64_t rows = 4 * kBlockUnits; rows >= kBlockUnits; --rows) {
      cut(rows);
      if (rows > kBlockUnits && !good()) continue;
      const int64_t turns = ceil_div(s.groups(c) * s.strips(), threads);
      const double used = (double)(s.groups(c) * units) / (double)(turns * threads * rows);
      if (used > most + 0.02) most = used, best = rows;
      if (g.pass != Pass::forward) break;  // what is summed up must not depend on the number of threads
    }
    cut(best);
    return s;
  }
  // Wide enough for rows of an image to be read from end to end, as tall as fits.
  for (s.wide = std::min(kMostWide, ceil_div(c.out_w, s.unit));; s.wide /= 2) {
    for (int64_t parts = 1;; ++parts) {
      const int64_t rows = ceil_div(std::max<int64_t>(1, c.out_h), parts);
      cut(parts == 1 ? rows : round_up(rows, kBlockUnits));
      if (good() || (s.wide == 1 && rows <= kBlockUnits)) return s;
      if (s.wide > 1 && rows <= 2 * kBlockUnits) break;
    }
  }
}

int candidates(const MaskedConv& g, Isa isa, int threads, Candidate* list) {
  int count = 0;
  if (isa == Isa::scalar && !g.library) {
    list[count++].kernel = Kernel::naive;
    return count;
  }
  if (isa == Isa::scalar) list[count++].kernel = Kernel::naive;
  Strips s{};
  if (isa != Isa::scalar && g.plan && g.shape.groups == 1 && g.shape.pixels() > 0) {
    s = strips_of(g, threads);
    if (can_cut(g, s)) list[count++].kernel = g.pass == Pass::weight_grad ? Kernel::sampled : Kernel::accumulate;
  }
  if (g.library && isa != Isa::scalar) list[count++].kernel = Kernel::library;
  if (count == 0) list[count++].kernel = Kernel::naive;
  const double* const rates = isa == Isa::avx512 ? kAvx512 : kAvx2;
  for (int i = 0; i < count; ++i) {
    Candidate& c = list[i];
    c.work = c.kernel == Kernel::library ? library_work(g)
             : c.kernel == Kernel::naive ? Work{}
                                         : vector_work(c.kernel, g, s);
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
  for (Kernel kernel : {Kernel::naive, Kernel::accumulate, Kernel::sampled, Kernel::library}) {
    if (std::strcmp(name, kernel_name(kernel)) != 0) continue;
    preferred = (int)kernel;
    return true;
  }
  return false;
}

}  // namespace maskfuse
