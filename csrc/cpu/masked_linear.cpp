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

// Columns of a packed task: its part of C, read and written again for every k block, stays in cache. Half types
// keep theirs in scratch as floats until k is done.
constexpr int64_t kColumns = 512, kHalfColumns = 256, kUnlimited = int64_t{1} << 40;

// Multiplications below which a second thread costs more than it brings.
constexpr int64_t kWorthAThread = 1 << 16;

// Splits a dimension into `parts` steps, and each of those into steps of at most `most`; multiples of `unit`.
int64_t step_of(int64_t size, int64_t parts, int64_t most, int64_t unit) {
  const int64_t part = std::max<int64_t>(1, ceil_div(size, parts));
  return round_up(ceil_div(part, ceil_div(part, most)), unit);
}

// Gives every thread a part of the columns, and of the rows where there are not enough columns; with
// `rows_first` the other way round.
void split(Schedule& s, const MaskedGemm& g, int64_t m_unit, int64_t n_unit, int64_t most_columns, int threads,
           bool rows_first = false) {
  const int64_t work = g.m * g.n * std::max<int64_t>(g.k, 1) / kWorthAThread;
  const int64_t parts = std::min<int64_t>(threads, std::max<int64_t>(1, work));
  const int64_t units = rows_first ? ceil_div(g.m, m_unit) : ceil_div(g.n, n_unit);
  const int64_t first = std::max<int64_t>(1, std::min(parts, units)), second = std::max<int64_t>(1, parts / first);
  s.m_step = step_of(g.m, rows_first ? first : second, kUnlimited, m_unit);
  s.n_step = step_of(g.n, rows_first ? second : first, most_columns, n_unit);
  s.m_tasks = ceil_div(g.m, s.m_step);
  s.n_tasks = ceil_div(g.n, s.n_step);
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
    split(s, g, 1, 1, kUnlimited, threads);
    return s;
  }
  const bool half = g.dtype == Dtype::bf16 || g.dtype == Dtype::f16;
  const int64_t n_tile = table->n_tile[g.dtype == Dtype::f64];
  if (g.m <= kFewRows && g.pass != Pass::weight_grad) {
    s.kernel = g.pass == Pass::forward ? Kernel::row_dot : Kernel::streamed;
    s.task = table->few_rows[g.pass != Pass::forward][(int)g.dtype][!has_bits];
    split(s, g, kFewRows, 64, kUnlimited, threads);  // 64 columns: threads do not share cache lines of C
    s.scratch_bytes = s.kernel == Kernel::streamed ? kStreamSums * sizeof(double) : 0;
    return s;
  }
  s.kernel = Kernel::packed;
  s.task = table->packed[(int)g.pass][(int)g.dtype][!has_bits];
  const int64_t element = dtype_size(g.dtype == Dtype::f64 ? Dtype::f64 : Dtype::f32);
  const int64_t pad = 64 / element;  // at least one vector
  int64_t scratch = (table->m_block + n_tile) * (table->k_block + pad);
  if (half) scratch += table->m_block * kHalfColumns;
  // weight_grad splits rows first: there the operand that rows own is the one packed with a transposition.
  split(s, g, table->m_tile, n_tile, half ? kHalfColumns : kColumns, threads, g.pass == Pass::weight_grad);
  s.scratch_bytes = (size_t)(scratch * element);
  return s;
}

void run_task(const MaskedGemm& g, const Schedule& s, int64_t index, void* scratch) {
  const int64_t m0 = index % s.m_tasks * s.m_step, n0 = index / s.m_tasks * s.n_step;
  s.task(g, {m0, std::min(m0 + s.m_step, g.m), n0, std::min(n0 + s.n_step, g.n)}, scratch);
}

}  // namespace maskfuse
