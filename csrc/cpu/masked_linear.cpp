// Which kernel a masked product runs on, and how it is cut into tasks.
#include "masked_linear.h"

#include <algorithm>

#include "masked_linear_planner.h"

namespace maskfuse {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Values of a task of accumulate: half of a second-level cache of 2 MiB.
constexpr int64_t kTaskValues = 1 << 18;

// Bytes of values that are copied for all threads before the batch is split among them: they come from the cache of
// another core then, and once for each block of the batch.
constexpr int64_t kSharedValueBytes = 8 << 20;

// Multiplications below which a second thread costs more than it brings.
constexpr int64_t kWorthAThread = 1 << 16;

// The step that splits a dimension into `parts`, a multiple of `unit`.
int64_t step_of(int64_t size, int64_t parts, int64_t unit) {
  return round_up(std::max<int64_t>(1, ceil_div(size, parts)), unit);
}

Grid grid_of(int64_t m, int64_t n, int64_t m_step, int64_t n_step) {
  return {m, n, m_step, n_step, ceil_div(m, m_step), ceil_div(n, n_step)};
}

// Gives every thread a part of the columns, and of the rows where there are not enough columns.
Grid split(const MaskedGemm& g, int64_t m_unit, int64_t n_unit, int threads) {
  const double work = (double)g.m * (double)g.n * (double)std::max<int64_t>(g.k, 1) / (double)kWorthAThread;
  const auto parts = (int64_t)std::min<double>(threads, std::max(1.0, work));
  const int64_t units = ceil_div(g.n, n_unit);
  const int64_t first = std::max<int64_t>(1, std::min(parts, units)), second = std::max<int64_t>(1, parts / first);
  return grid_of(g.m, g.n, step_of(g.m, second, m_unit), step_of(g.n, first, n_unit));
}

// Sizes of what the kernels work in, which masked_linear_lanes.h lays out.
struct Sizes {
  int64_t element, unit, vector;  // bytes of a sum; lanes a unit, lanes a vector

  Sizes(const MaskedGemm& g, const MaskedLinearKernels& table)
      : element(g.dtype == Dtype::f64 ? 8 : 4), unit(kUnitBytes / element), vector(table.vector_bytes / element) {}

  int64_t lanes() const { return unit * kBlockUnits; }
  size_t shared(int64_t batch, int64_t columns) const { return (size_t)(round_up(batch, unit) * columns * element); }
  // A line of `rows` rows each, for a whole block.
  size_t block(int64_t rows) const { return (size_t)(rows * kBlockUnits * kUnitBytes); }
  // Room for values, and for stores of four vectors that run over their end.
  size_t values(int64_t count) const { return (size_t)((count + 4 * vector) * element); }
};

// Half the panels that fill the threads evenly, down to 16 rows; and few enough rows for their values to stay in cache.
int64_t dense_panel(int64_t most, int64_t rows, int64_t columns, int threads) {
  int64_t panel = most;
  while (panel > 16 && (panel * threads * 2 > rows || panel * columns > (1 << 20))) panel /= 2;
  return panel;
}

// Whether threads share values and split the batch: they are few, or packed, and there are blocks for all threads.
bool splits_batch(const MaskedGemm& g, const Sizes& sizes, int threads) {
  if (!g.plan || g.plan->header->values == 0) return false;
  const bool packed = g.packed && g.packed->ordered;
  const int64_t blocks = ceil_div(g.m, sizes.lanes());
  return (packed || ordered_values(*g.plan) * sizes.element <= kSharedValueBytes) && blocks >= 2 &&
         round_up(blocks, threads) * 8 <= blocks * 9;
}

void schedule_accumulate_batch(Schedule& s, const MaskedGemm& g, const MaskedLinearKernels& table, const Sizes& sizes) {
  s.panel = g.plan->header->panel;
  if (!(g.packed && g.packed->ordered)) {
    s.first_task = table.values[g.pass == Pass::input_grad][(int)g.dtype];
    s.first = grid_of(1, g.n, 1, s.panel);
    s.shared_bytes = (size_t)(ordered_values(*g.plan) * sizes.element);
  }
  s.task = table.accumulate_batch[(int)g.dtype];
  s.grid = grid_of(ceil_div(g.m, sizes.lanes()), g.n, 1, round_up(g.n, s.panel));
  s.scratch_bytes = sizes.block(s.panel) + sizes.block(g.k);
}

void schedule_accumulate(Schedule& s, const MaskedGemm& g, const MaskedLinearKernels& table, int threads) {
  const Sizes sizes(g, table);
  if (splits_batch(g, sizes, threads)) return schedule_accumulate_batch(s, g, table, sizes);
  s.task = table.accumulate[g.pass == Pass::input_grad][(int)g.dtype][mask_index(g)];
  s.first_task = table.lanes[(int)g.dtype];
  s.panel = g.plan ? g.plan->header->panel : dense_panel(kDensePanel, g.n, g.k, threads);
  const int64_t panels = ceil_div(g.n, s.panel), blocks = ceil_div(g.m, sizes.lanes());
  // Tasks are as many panels as leave their values in cache and every thread two tasks; where panels are fewer than
  // threads, the batch is split as well.
  const int64_t average =
      std::max<int64_t>(1, (g.plan ? g.plan->header->values : g.n * g.k) / std::max<int64_t>(1, panels));
  const int64_t together = std::max<int64_t>(1, std::min(kTaskValues / average, panels / (2 * threads)));
  const int64_t parts = std::min(blocks, ceil_div(threads, std::max<int64_t>(1, panels)));
  s.grid = grid_of(blocks, g.n, ceil_div(blocks, parts), together * s.panel);
  s.first = grid_of(blocks, g.k, 1, 256);
  s.shared_bytes = sizes.shared(g.m, g.k);
  int64_t most = together * s.panel * g.k;
  if (g.packed && g.packed->ordered) {
    most = 0;
  } else if (g.plan) {
    most = 0;
    const int64_t chunks = g.plan->chunks();
    for (int64_t p = 0; p < panels; p += together) {
      const int64_t end = std::min(p + together, panels);
      most = std::max<int64_t>(most, (int64_t)g.plan->tiles[end * chunks].value - g.plan->tiles[p * chunks].value);
    }
  }
  s.scratch_bytes = sizes.block(s.panel) + sizes.values(most);
}

void schedule_sampled(Schedule& s, const MaskedGemm& g, const MaskedLinearKernels& table) {
  const Sizes sizes(g, table);
  s.task = table.sampled[(int)g.dtype];
  s.first_task = table.lanes[(int)g.dtype];
  s.panel = g.plan->header->panel;
  s.grid = grid_of(g.m, g.n, s.panel, std::max<int64_t>(1, g.n));
  s.first = grid_of(ceil_div(g.k, sizes.lanes()), g.n, 1, 256);
  s.shared_bytes = sizes.shared(g.k, g.n);
  s.scratch_bytes = 2 * sizes.block(s.panel) + sizes.values(g.plan->header->most_panel_values);
}

void schedule_tiled(Schedule& s, const MaskedGemm& g, const MaskedLinearKernels& table, int threads) {
  const Sizes sizes(g, table);
  s.task = table.tiled[(int)g.dtype][mask_index(g)];
  s.panel = dense_panel(kTiledRows, g.m, g.k, 1);
  const int64_t panels = ceil_div(g.m, s.panel);
  const int64_t parts = ceil_div(2 * threads, std::max<int64_t>(1, panels));
  s.grid = grid_of(g.m, g.n, s.panel, round_up(ceil_div(g.n, parts), sizes.lanes()));
  s.scratch_bytes = sizes.block(kTiledChunk + kTiledRows) + sizes.values(round_up(s.panel, sizes.vector) * g.k);
}

void schedule_decode(Schedule& s, const MaskedGemm& g, const MaskedLinearKernels& table, int threads) {
  const Sizes sizes(g, table);
  s.task = table.decode[(int)g.dtype];
  // Parts small enough for a thread that was held up to leave work to the others.
  const int64_t worth = std::max<int64_t>(16, kWorthAThread / std::max<int64_t>(1, g.k));
  s.grid = grid_of(g.m, g.n, std::max<int64_t>(1, g.m), std::max(round_up(ceil_div(g.n, 4 * threads), 16), worth));
  s.scratch_bytes = (size_t)(kDecodeRows * (g.k + sizes.vector) * sizes.element);
}

void schedule_few_rows(Schedule& s, const MaskedGemm& g, const MaskedLinearKernels& table, int threads) {
  s.task = table.few_rows[g.pass != Pass::forward][(int)g.dtype][mask_index(g)];
  s.grid = split(g, g.m, 64, threads);  // 64 columns: threads do not share cache lines of C
  s.scratch_bytes = s.kernel == Kernel::streamed ? kStreamSums * sizeof(double) : 0;
}

}  // namespace

const MaskedLinearKernels* masked_linear_kernels(Isa isa) {
#ifdef MASKFUSE_X86
  if (isa == Isa::avx512) return masked_linear_kernels_avx512();
  if (isa == Isa::avx2) return masked_linear_kernels_avx2();
#else
  (void)isa;
#endif
  return nullptr;
}

const char* kernel_name(Kernel kernel) {
  switch (kernel) {
    case Kernel::naive:
      return "naive";
    case Kernel::row_dot:
      return "row_dot";
    case Kernel::decode:
      return "decode";
    case Kernel::streamed:
      return "streamed";
    case Kernel::accumulate:
      return "accumulate";
    case Kernel::sampled:
      return "sampled";
    case Kernel::tiled:
      return "tiled";
    case Kernel::shifted:
      return "shifted";
    case Kernel::direct:
      return "direct";
    case Kernel::library:
      return "library";
  }
  return "unknown";
}

Schedule schedule(const MaskedGemm& g, Isa isa, int threads) {
  Candidate list[kMostCandidates];
  candidates(g, isa, threads, list);
  Schedule s{};
  s.isa = isa;
  s.kernel = list[0].kernel;
  const MaskedLinearKernels* const table = masked_linear_kernels(isa);
  switch (s.kernel) {
    case Kernel::naive:
      s.task = masked_linear_naive(g);
      s.grid = split(g, 1, 1, threads);
      break;
    case Kernel::row_dot:
    case Kernel::streamed:
      schedule_few_rows(s, g, *table, threads);
      break;
    case Kernel::decode:
      schedule_decode(s, g, *table, threads);
      break;
    case Kernel::accumulate:
      schedule_accumulate(s, g, *table, threads);
      break;
    case Kernel::sampled:
      schedule_sampled(s, g, *table);
      break;
    case Kernel::tiled:
      schedule_tiled(s, g, *table, threads);
      break;
    case Kernel::shifted:
    case Kernel::direct:
    case Kernel::library:
      break;
  }
  return s;
}

void run_task(const MaskedGemm& g, const Schedule& s, int phase, int64_t index, void* shared, void* scratch) {
  const Grid& grid = phase == 0 ? s.first : s.grid;
  const int64_t m0 = index % grid.m_tasks * grid.m_step, n0 = index / grid.m_tasks * grid.n_step;
  const Part part{m0,     std::min(m0 + grid.m_step, grid.m), n0, std::min(n0 + grid.n_step, grid.n), s.panel, shared,
                  scratch};
  (phase == 0 ? s.first_task : s.task)(g, part);
}

}  // namespace maskfuse
