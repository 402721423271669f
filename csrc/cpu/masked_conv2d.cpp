// How a masked convolution is cut into tasks, and what they share.
#include "masked_conv2d.h"

#include <algorithm>
#include <cstring>

#include "layout.h"
#include "masked_conv2d_planner.h"

namespace maskfuse {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Grid grid_of(int64_t m, int64_t n, int64_t m_step, int64_t n_step) {
  return {m, n, m_step, n_step, ceil_div(m, m_step), ceil_div(n, n_step)};
}

// Steps along n for every thread to have `each` tasks, of `m` along the other side.
int64_t panel_step(int64_t m, int64_t panels, int64_t each, int threads) {
  const int64_t parts = std::min(panels, ceil_div(each * threads, std::max<int64_t>(1, m)));
  return ceil_div(panels, std::max<int64_t>(1, parts));
}

// Tasks a thread: enough for threads to end together.
constexpr int64_t kTurns = 8;

// Bytes of sums of all slices.
constexpr int64_t kSliceBytes = int64_t{64} << 20;

// By masked_conv2d_strip.h's LaneMap.
int64_t map_bytes(int64_t patterns, int64_t rows, int64_t unit) {
  return patterns * unit * kLaneMapBytes + rows * 3 * (int64_t)sizeof(int64_t) + 64;
}

// `g` in its forward form.
void schedule_vectors(ConvSchedule& s, const MaskedConv& g, const MaskedConvKernels& table, int threads) {
  const ConvShape& c = g.shape;
  const Plan& plan = *g.plan;
  const int64_t element = g.dtype == Dtype::f64 ? 8 : 4, panels = plan.panels(), panel = plan.header->panel;
  const int d = (int)g.dtype;
  s.strips = strips_of(g);
  const int64_t strips = s.strips.strips();
  const bool packed = g.packed && g.packed->ordered;
  Layout shared, scratch;
  s.first_at = shared.add(c.kernel_h * 8);
  s.lines_at = shared.add(c.columns() * 4);
  s.offsets_at = shared.add(plan.header->column_bytes * 2);
  s.passed_at = shared.add(panels * (int64_t)sizeof(PassedRows));
  s.values_at = shared.add(g.pass == Pass::weight_grad || packed ? 0 : ordered_values(plan) * element);
  const int64_t in = std::min(c.in, ceil_div(plan.header->chunk, c.taps()) + 1);  // channels in lanes at a time
  int64_t out;
  if (g.pass == Pass::weight_grad) {
    s.phase_count = 3;
    const int64_t bytes = ordered_values(plan) * element;
    s.slices = std::max<int64_t>(1, std::min({kMostSlices, strips, kSliceBytes / std::max<int64_t>(1, bytes)}));
    const int64_t step = panel_step(s.slices, panels, 1, threads);
    s.phases[0] = {table.offsets, grid_of(1, panels, 1, 1)};
    s.phases[1] = {table.sampled[d], grid_of(s.slices, panels, 1, step)};
    s.phases[2] = {table.reduced[d], grid_of(1, panels, 1, 1)};
    s.sums_at = shared.add(s.slices * bytes);
    out = std::min(step * panel, c.out);
  } else {
    s.phase_count = 2;
    const int64_t step = std::max<int64_t>(1, ceil_div(strips, kTurns * threads));
    s.phases[0] = {table.values[g.pass == Pass::input_grad][d], grid_of(1, panels, 1, 1)};
    s.phases[1] = {table.accumulate[d], grid_of(strips, panels, step, panel_step(strips, panels, 1, threads))};
    out = std::min(s.phases[1].grid.n_step * panel, c.out);
  }
  s.shared_bytes = shared.bytes;
  // Vectors that are stored may run over an end.
  s.input_at = scratch.add(in * s.strips.plane * kUnitBytes + 256);
  s.output_at = scratch.add(out * s.strips.out_plane * kUnitBytes + 256);
  const int64_t units = s.strips.pointwise ? s.strips.rows : 1;
  s.map_at = scratch.add(map_bytes(s.strips.copies * units, s.strips.staged_rows, s.strips.unit) +
                         map_bytes(units, s.strips.rows, s.strips.unit));
  s.scratch_bytes = scratch.bytes;
}

// `g` in its forward form.
void schedule_shifted(ConvSchedule& s, const MaskedConv& g, const MaskedConvKernels& table, int threads) {
  const ConvShape& c = g.shape;
  const int64_t element = g.dtype == Dtype::f64 ? 8 : 4, values = g.plan->header->active;
  const int d = (int)g.dtype;
  shifted_lanes(g, s.strips, s.shifted);
  const int64_t strips = s.strips.strips();
  Layout shared, scratch;
  s.first_at = shared.add(c.kernel_h * 8);
  s.columns_at = shared.add((g.pass == Pass::forward ? c.in : c.out) * c.taps() * (int64_t)sizeof(ListColumn));
  s.bounds_at = shared.add((s.shifted.lists(c) + 2) * 4);
  s.offsets_at = shared.add(values * 2);
  s.values_at = shared.add(values * element);
  s.shared_bytes = shared.bytes;
  const int64_t step = std::max<int64_t>(1, ceil_div(strips, kTurns * threads));
  const Grid lists = grid_of(1, c.out, 1, panel_step(1, c.out, kTurns, threads));
  s.phase_count = 4;
  s.phases[0] = {table.list_lengths[d], lists};
  s.phases[1] = {table.list_bounds, grid_of(1, 1, 1, 1)};
  s.phases[2] = {table.lists[d], lists};
  s.phases[3] = {table.shifted[d], grid_of(strips, c.out, step, panel_step(strips, c.out, 1, threads))};
  // Vectors that are stored may run over an end.
  s.input_at = scratch.add(std::min(c.in, s.shifted.chunk) * s.shifted.channel * element + 256);
  s.output_at = scratch.add(s.phases[3].grid.n_step * s.strips.out_plane * kUnitBytes + 256);
  s.map_at = scratch.add(map_bytes(kShiftedUnits, s.strips.staged_rows, s.strips.unit) +
                         map_bytes(kShiftedUnits, s.strips.rows, s.strips.unit));
  s.scratch_bytes = scratch.bytes;
}

// Part: one m, a task of gathered_conv2d.
template <int kPhase>
void direct_task(const MaskedConv& g, const ConvPart& part) {
  const ConvSchedule& s = *part.schedule;
  const GatheredTasks tasks = gathered_conv2d_tasks(s.isa, g.dtype, g.pass);
  tasks.phases[kPhase](direct_conv(g, s.direct), s.direct.gathered, part.m0, part.shared, part.scratch);
}

void schedule_direct(ConvSchedule& s, const MaskedConv& g, const ActiveChannels& active, int threads) {
  s.direct = direct_schedule(g, active, s.isa, threads);
  const GatheredSchedule& gathered = s.direct.gathered;
  s.phase_count = 2;
  s.phases[0] = {direct_task<0>, grid_of(gathered.tasks[0], 1, 1, 1)};
  s.phases[1] = {direct_task<1>, grid_of(gathered.tasks[1], 1, 1, 1)};
  s.shared_bytes = gathered.shared_bytes, s.scratch_bytes = gathered.scratch_bytes;
}

}  // namespace

const MaskedConvKernels* masked_conv2d_kernels(Isa isa) {
#ifdef MASKFUSE_X86
  if (isa == Isa::avx512) return masked_conv2d_kernels_avx512();
  if (isa == Isa::avx2) return masked_conv2d_kernels_avx2();
#else
  (void)isa;
#endif
  return nullptr;
}

MaskedConv forward_form(const MaskedConv& g) {
  MaskedConv f = g;
  if (g.pass != Pass::input_grad) return f;
  const ConvShape& c = g.shape;
  ConvShape& s = f.shape;
  f.input = g.output, f.output = g.input;
  s.in = c.out, s.in_h = c.out_h, s.in_w = c.out_w;
  s.out = c.in, s.out_h = c.in_h, s.out_w = c.in_w;
  s.pad_h = (c.kernel_h - 1) * c.dilation_h - c.pad_h, s.pad_w = (c.kernel_w - 1) * c.dilation_w - c.pad_w;
  s.stride_h = s.stride_w = 1;
  s.spread_h = c.stride_h, s.spread_w = c.stride_w;
  return f;
}

int64_t staged(const Axis& a, int64_t n, int64_t* first, int64_t* at) {
  int64_t before = 0;
  const auto phase = [&](int64_t tap) { return tap * a.dilation % a.stride; };
  for (int64_t begin = 0; begin < a.kernel; ++begin) {
    bool seen = false;
    for (int64_t tap = 0; tap < begin; ++tap) seen |= phase(tap) == phase(begin);
    if (seen) continue;
    // Of one phase the later ones read further on, from where the first of them does.
    const int64_t start = begin * a.dilation / a.stride;
    int64_t most = 0;
    for (int64_t tap = begin; tap < a.kernel; ++tap) {
      if (phase(tap) != phase(begin)) continue;
      most = tap * a.dilation / a.stride - start;
      if (first) first[tap] = before + most;
    }
    for (int64_t i = 0; at && i < n + most; ++i) at[before + i] = i * a.stride + begin * a.dilation;
    before += n + most;
  }
  return before;
}

ConvSchedule schedule(const MaskedConv& g, Isa isa, int threads) {
  Candidate list[kMostCandidates];
  const ActiveChannels active(g);
  candidates(g, active, isa, threads, list);
  ConvSchedule s{};
  s.isa = isa;
  s.kernel = list[0].kernel;
  if (s.kernel == Kernel::library) return s;
  if (s.kernel == Kernel::direct) {
    schedule_direct(s, g, active, threads);
    return s;
  }
  if (s.kernel == Kernel::shifted) {
    schedule_shifted(s, forward_form(g), *masked_conv2d_kernels(isa), threads);
    return s;
  }
  if (s.kernel != Kernel::naive) {
    schedule_vectors(s, forward_form(g), *masked_conv2d_kernels(isa), threads);
    return s;
  }
  const bool grad = g.pass == Pass::weight_grad;
  s.phase_count = 1;
  s.phases[0] = {masked_conv2d_naive(g),
                 grid_of(grad ? 1 : g.shape.batch, g.pass == Pass::input_grad ? g.shape.in : g.shape.out, 1, 1)};
  return s;
}

namespace {

// What the columns of a weight are in lists, and no lengths yet. `c` is of the forward form; where `turned`, channels
// are exchanged and kernels turned round.
void prepare_lists(bool turned, const ConvShape& c, const ConvSchedule& s, void* shared) {
  const ShiftedLanes& lanes = s.shifted;
  auto* const first = (int64_t*)((char*)shared + s.first_at);
  staged(rows_of(c), s.strips.rows, first);
  auto* column = (ListColumn*)((char*)shared + s.columns_at);
  for (int64_t channel = 0; channel < (turned ? c.out : c.in); ++channel) {
    const int64_t list = turned ? channel * kShifts : channel / lanes.chunk * c.out * kShifts;
    const int64_t offset = turned ? 0 : channel % lanes.chunk * lanes.channel;
    for (int64_t dy = 0; dy < c.kernel_h; ++dy)
      for (int64_t dx = 0; dx < c.kernel_w; ++dx)
        *column++ = {(uint32_t)(list + (turned ? kShifts - 1 - dx : dx)),
                     (uint32_t)(offset + first[turned ? c.kernel_h - 1 - dy : dy] * kShiftedUnits * s.strips.unit)};
  }
  std::memset((char*)shared + s.bounds_at, 0, (size_t)(lanes.lists(c) + 2) * 4);
}

}  // namespace

void prepare(const MaskedConv& g, const ConvSchedule& s, void* shared) {
  if (s.kernel == Kernel::naive || s.kernel == Kernel::direct) return;
  const ConvShape c = forward_form(g).shape;
  const Strips& strips = s.strips;
  if (s.kernel == Kernel::shifted) return prepare_lists(g.pass == Pass::input_grad, c, s, shared);
  auto* line = (int32_t*)((char*)shared + s.lines_at);
  const bool turned = g.pass == Pass::input_grad;
  auto* const first = (int64_t*)((char*)shared + s.first_at);
  staged(rows_of(c), strips.rows, first);
  for (int64_t channel = 0; channel < c.in; ++channel)
    for (int64_t dy = 0; dy < c.kernel_h; ++dy)
      for (int64_t dx = 0; dx < c.kernel_w; ++dx)
        *line++ = (int32_t)(channel * strips.plane + (turned ? c.kernel_w - 1 - dx : dx) * strips.staged_rows +
                            first[turned ? c.kernel_h - 1 - dy : dy]);
}

bool plan_fits(const MaskedConv& g, const ConvSchedule& s, const void* shared) {
  if (s.kernel != Kernel::shifted) return true;
  const auto* const bounds = (const uint32_t*)((const char*)shared + s.bounds_at);
  return bounds[s.shifted.lists(forward_form(g).shape) + 1] == 0;
}

void run_task(const MaskedConv& g, const ConvSchedule& s, int phase, int64_t index, void* shared, void* scratch) {
  const Grid& grid = s.phases[phase].grid;
  const int64_t m0 = index % grid.m_tasks * grid.m_step, n0 = index / grid.m_tasks * grid.n_step;
  s.phases[phase].task(
      s.kernel == Kernel::naive || s.kernel == Kernel::direct ? g : forward_form(g),
      {&s, m0, std::min(m0 + grid.m_step, grid.m), n0, std::min(n0 + grid.n_step, grid.n), shared, scratch});
}

}  // namespace maskfuse
