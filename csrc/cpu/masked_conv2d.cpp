// How a masked convolution is cut into tasks, and what they share.
#include "masked_conv2d.h"

#include <algorithm>
#include <vector>

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

// Bytes of sums of all slices.
constexpr int64_t kSliceBytes = int64_t{64} << 20;

// Parts of a memory, one after another, aligned.
struct Layout {
  size_t bytes = 0;
  size_t add(int64_t size) {
    const size_t at = bytes;
    bytes += ((size_t)size + 63) / 64 * 64;
    return at;
  }
};

// Where lanes of `rows` rows come from, by masked_conv2d_strip.h's RowMap.
int64_t map_bytes(int64_t rows, int64_t unit) { return rows * unit * 24 + rows * 2 * 44 + 64; }

void schedule_vectors(ConvSchedule& s, const MaskedConv& g, const MaskedConvKernels& table, int threads) {
  const ConvShape& c = g.shape;
  const Plan& plan = *g.plan;
  const int64_t element = g.dtype == Dtype::f64 ? 8 : 4, panels = plan.panels(), panel = plan.header->panel;
  const int d = (int)g.dtype;
  s.strips = strips_of(g, threads);
  const int64_t groups = s.strips.groups(c), strips = groups * s.strips.strips();
  const bool packed = g.packed && g.packed->ordered;
  Layout shared, scratch;
  s.lines_at = shared.add(c.columns() * 4);
  s.offsets_at = shared.add(plan.header->column_bytes * 2);
  s.values_at = shared.add(g.pass == Pass::weight_grad || packed ? 0 : ordered_values(plan) * element);
  int64_t in = c.in, out = 0, sums = 0;  // channels in lanes; elements of sums
  s.phase_count = 2;
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
  } else if (g.pass == Pass::forward) {
    s.phases[0] = {table.values[0][d], grid_of(1, panels, 1, 1)};
    s.phases[1] = {table.forward[d], grid_of(strips, panels, 1, panel_step(strips, panels, 1, threads))};
    out = std::min(s.phases[1].grid.n_step * panel, c.out);
  } else {
    // Tasks have whole channels.
    const int64_t step = panel % c.taps() == 0 ? panel_step(groups, panels, 2, threads) : panels;
    s.phases[0] = {table.values[1][d], grid_of(1, panels, 1, 1)};
    s.phases[1] = {table.input_grad[d], grid_of(groups, panels, 1, step)};
    in = std::min(ceil_div(step * panel, c.taps()), c.in), out = c.out;
    sums = std::min(s.strips.images, c.batch) * in * c.in_h * c.in_w;
  }
  s.shared_bytes = shared.bytes;
  // Vectors that are stored may run over an end.
  s.input_at = scratch.add(in * s.strips.plane * kUnitBytes + 256);
  s.output_at = scratch.add(out * s.strips.out_plane * kUnitBytes + 256);
  s.panel_at = scratch.add(sums * element + 256);
  s.map_at = scratch.add(map_bytes(s.strips.copies * s.strips.wide * s.strips.staged_rows, s.strips.unit) +
                         map_bytes(s.strips.wide * s.strips.rows, s.strips.unit));
  s.scratch_bytes = scratch.bytes;
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

int64_t staged_rows(const ConvShape& c, int64_t rows, int64_t* first) {
  int64_t before = 0;
  for (int64_t phase = 0; phase < c.stride_h; ++phase) {
    int64_t most = -1;
    for (int64_t dy = 0; dy < c.kernel_h; ++dy) {
      if (dy * c.dilation_h % c.stride_h != phase) continue;
      most = std::max(most, dy * c.dilation_h / c.stride_h);
      if (first) first[dy] = before + dy * c.dilation_h / c.stride_h;
    }
    if (most >= 0) before += rows + most;
  }
  return before;
}

ConvSchedule schedule(const MaskedConv& g, Isa isa, int threads) {
  Candidate list[kMostCandidates];
  candidates(g, isa, threads, list);
  ConvSchedule s{};
  s.isa = isa;
  s.kernel = list[0].kernel;
  if (s.kernel == Kernel::library) return s;
  if (s.kernel != Kernel::naive) {
    schedule_vectors(s, g, *masked_conv2d_kernels(isa), threads);
    return s;
  }
  const bool grad = g.pass == Pass::weight_grad;
  s.phase_count = 1;
  s.phases[0] = {masked_conv2d_naive(g),
                 grid_of(grad ? 1 : g.shape.batch, g.pass == Pass::input_grad ? g.shape.in : g.shape.out, 1, 1)};
  return s;
}

void prepare(const MaskedConv& g, const ConvSchedule& s, void* shared) {
  if (s.kernel == Kernel::naive) return;
  const ConvShape& c = g.shape;
  const Strips& strips = s.strips;
  auto* line = (int32_t*)((char*)shared + s.lines_at);
  std::vector<int64_t> first(c.kernel_h);
  staged_rows(c, strips.rows, first.data());
  for (int64_t channel = 0; channel < c.in; ++channel)
    for (int64_t dy = 0; dy < c.kernel_h; ++dy)
      for (int64_t dx = 0; dx < c.kernel_w; ++dx)
        *line++ = (int32_t)(channel * strips.plane + dx * strips.wide * strips.staged_rows + first[dy]);
}

void run_task(const MaskedConv& g, const ConvSchedule& s, int phase, int64_t index, void* shared, void* scratch) {
  const Grid& grid = s.phases[phase].grid;
  const int64_t m0 = index % grid.m_tasks * grid.m_step, n0 = index / grid.m_tasks * grid.n_step;
  s.phases[phase].task(
      g, {&s, m0, std::min(m0 + grid.m_step, grid.m), n0, std::min(n0 + grid.n_step, grid.n), shared, scratch});
}

}  // namespace maskfuse
