// Which kernel a masked product runs on, and how it is cut into tasks.
#include "masked_linear.h"

#include <algorithm>

namespace maskfuse {
namespace {

const MaskedLinearKernels* kernels(Isa isa) {
#ifdef MASKFUSE_X86
  if (isa == Isa::avx512) return masked_linear_kernels_avx512();
  if (isa == Isa::avx2) return masked_linear_kernels_avx2();
#else
  (void)isa;
#endif
  return nullptr;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Rows of A below which packing B costs more than it saves. Columns of a task of a half type, whose
// float sums are kept in scratch until k is done.
constexpr int64_t kHalfColumns = 256;

// Multiplications below which a second thread costs more than it brings.
constexpr int64_t kWorthAThread = 1 << 16;

// Splits rows and columns so that there are about `parts` tasks, columns first: a column of C needs its
// own panel of B, while rows share it.
void split(Schedule& s, const MaskedGemm& g, int64_t m_unit, int64_t n_unit, int64_t parts) {
  parts = std::min<int64_t>(parts, std::max<int64_t>(1, g.m * g.n * std::max<int64_t>(g.k, 1) / kWorthAThread));
  s.n_step = round_up(std::max<int64_t>(1, ceil_div(g.n, parts)), n_unit);
  s.n_tasks = ceil_div(g.n, s.n_step);
  s.m_step = round_up(
      std::max<int64_t>(1, ceil_div(g.m, std::max<int64_t>(1, parts / std::max<int64_t>(1, s.n_tasks)))), m_unit);
  s.m_tasks = ceil_div(g.m, s.m_step);
}

}  // namespace

const char* kernel_name(Kernel kernel) {
  switch (kernel) {
    case Kernel::naive:
      return "naive";
    case Kernel::row_dot:
      return "row_dot";
    case Kernel::streamed:
      return "streamed";
    case Kernel::packed:
      return "packed";
  }
  return "unknown";
}

Schedule schedule(const MaskedGemm& g, Isa isa, int threads) {
  Schedule s{};
  s.isa = isa;
  const bool has_bits = g.bits != nullptr;
  const MaskedLinearKernels* table = kernels(isa);
  if (table == nullptr) {
    s.kernel = Kernel::naive;
    s.task = masked_linear_naive(g.dtype, has_bits);
    split(s, g, 1, 1, threads);
    return s;
  }
  const bool half = g.dtype == Dtype::bf16 || g.dtype == Dtype::f16;
  const int64_t n_tile = table->n_tile[g.dtype == Dtype::f64];
  if (g.m <= kFewRows && g.pass != Pass::weight_grad) {
    s.kernel = g.pass == Pass::forward ? Kernel::row_dot : Kernel::streamed;
    s.task = table->few_rows[g.pass != Pass::forward][(int)g.dtype][!has_bits];
    split(s, g, kFewRows, 64, threads);  // 64 columns: threads do not share cache lines of C
    s.scratch_bytes = s.kernel == Kernel::streamed ? kStreamSums * sizeof(double) : 0;
    return s;
  }
  s.kernel = Kernel::packed;
  s.task = table->packed[(int)g.pass][(int)g.dtype][!has_bits];
  const int64_t element = dtype_size(g.dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32);
  const int64_t pad = 64 / element;  // at least one vector
  int64_t scratch = table->m_block * (table->k_block + pad) + table->panels * (table->k_block + pad) * n_tile;
  if (g.pass == Pass::weight_grad) {
    // Rows first: here the operand that rows own is the one that is packed with a transposition.
    const int64_t parts = std::min<int64_t>(threads, std::max<int64_t>(1, g.m * g.n * g.k / kWorthAThread));
    s.m_step = round_up(std::max<int64_t>(1, ceil_div(g.m, parts)), table->m_tile);
    s.m_tasks = ceil_div(g.m, s.m_step);
    s.n_step = round_up(
        std::max<int64_t>(1, ceil_div(g.n, std::max<int64_t>(1, parts / std::max<int64_t>(1, s.m_tasks)))), n_tile);
    s.n_tasks = ceil_div(g.n, s.n_step);
  } else {
    split(s, g, table->m_tile, n_tile, threads);
  }
  if (half) {
    s.n_step = std::min(s.n_step, kHalfColumns);
    s.n_tasks = ceil_div(g.n, s.n_step);
    scratch += table->m_block * kHalfColumns;
  }
  s.scratch_bytes = (size_t)(scratch * element);
  return s;
}

void run_task(const MaskedGemm& g, const Schedule& s, int64_t index, void* scratch) {
  const int64_t m0 = index % s.m_tasks * s.m_step, n0 = index / s.m_tasks * s.n_step;
  s.task(g, {m0, std::min(m0 + s.m_step, g.m), n0, std::min(n0 + s.n_step, g.n)}, scratch);
}

}  // namespace maskfuse
