#include "masked_linear_planner.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace maskfuse {
namespace {

// Nanoseconds on one core, in the order of `Rate`; a phase's and a call's on the whole call. Measured on an Intel Xeon
// (AMX generation, 2 cores at 3.8 GHz) by bench/calibrate.py, where choosing by them took 1 % longer than the best
// choice; the library's are scaled by library_cost elsewhere.
// clang-format off
//                           phase  weight product lane   value  down  long   entry single shared shifted visit sample tile   result call   library read   moved
constexpr double kAvx512[] = {6250, 0.150, 0.181, 0.504, 2.150, 1.900, 0.432, 3.30, 0.195, 0.626, 0, 0, 0.356, 0.797, 0.295, 20500, 0.710, 0.547, 0.432};
constexpr double kAvx2[]   = {6550, 0.150, 0.324, 0.460, 1.620, 1.720, 0.440, 3.42, 0.341, 1.170, 0, 0, 0.459, 1.550, 0.367, 18100, 0.713, 0.541, 0.521};
// clang-format on
static_assert(sizeof(kAvx512) / sizeof(double) == kRates && sizeof(kAvx2) / sizeof(double) == kRates);

std::atomic<int> preferred{-1};

double units(const MaskedGemm& g, int64_t batch) {
  const int64_t unit = kUnitBytes / (g.dtype == Dtype::f64 ? 8 : 4);
  return (double)((batch + unit - 1) / unit);
}

// Rows of the index with their lists: what a plan's header says, or everything, four rows at a time.
struct Lists {
  double singles, shared;          // active weights of single lists; columns of shared lists
  double single_entries, entries;  // single lists; rows of all entries

  Lists(const MaskedGemm& g, int64_t rows, int64_t columns) {
    if (g.plan) {
      const PlanHeader& h = *g.plan->header;
      shared = (double)(h.values - h.column_bytes) / 3;
      singles = (double)h.column_bytes - shared;
      entries = (double)h.row_bytes;
      single_entries = (double)h.single_entries;
    } else {
      singles = single_entries = 0;
      shared = (double)rows * (double)columns / 4;
      entries = (double)rows * (double)((columns + kDenseChunk - 1) / kDenseChunk);
    }
  }
};

// A library is slow at few rows of A, more so when it must be given a copy, has no kernels for half types on some
// processors, and would round the product of a weight and a factor to them.
bool library_can(const MaskedGemm& g, Isa isa) {
  if (!g.library || isa == Isa::scalar || library_cost(g.dtype) == 0) return false;
  const bool half = dtype_size(g.dtype) < 4;
  if ((half && !g.bits) || (g.plan && g.plan->header->values == 0)) return false;
  if (g.pass == Pass::weight_grad) return g.k >= 2 * kFewRows;
  const LibraryProduct p(g);
  if (half && !p.compact && g.k % kHalfColumns != 0) return false;
  return g.m >= (p.full || p.compact || half ? 2 : 8) * kFewRows;
}

// Bytes of a copy that a library reads: as many as the activations have, between these; but as many rows as it needs to
// be fast, and more in half types.
constexpr int64_t kLeastCopy = int64_t{2} << 20, kMostCopy = int64_t{8} << 20, kCopyRows = 256, kCopyRowsHalf = 1024;

Work library_work(const MaskedGemm& g) {
  Work w;
  const LibraryProduct p(g);
  const bool grad = g.pass == Pass::weight_grad;
  const double m = (double)g.m, n = (double)g.n, k = (double)g.k;
  const double vector = (double)(kUnitBytes / (g.dtype == Dtype::f64 ? 8 : 4));
  w.count[kPhase] = 1;
  w.count[kCall] = (double)(((grad ? g.m : g.n) + p.step - 1) / p.step);
  w.count[kLibrary] = (double)p.m / 4 * (double)p.n / vector * (double)p.k * library_cost(g.dtype);
  // The large matrix is read, or written, whatever the batch.
  if (!p.compact) w.count[grad ? kResult : kRead] = grad ? m * n : n * k;
  if (p.compact) w.count[kMoved] = m * n + (grad ? m * k + n * k : m * k + (double)p.n * (double)p.k);
  return w;
}

Work work_of(Kernel kernel, const MaskedGemm& g) {
  Work w;
  const double m = (double)g.m, n = (double)g.n, k = (double)g.k;
  const double vector = (double)(kUnitBytes / (g.dtype == Dtype::f64 ? 8 : 4));
  w.count[kPhase] = 1;
  switch (kernel) {
    case Kernel::row_dot:
    case Kernel::streamed:
      // More rows than a pass takes read the weights again.
      w.count[kWeight] = n * k * (double)((g.m + kFewRows - 1) / kFewRows);
      w.count[kProduct] = n * k * m / vector;
      break;
    case Kernel::accumulate: {
      const Lists lists(g, g.n, g.k);
      w.count[kPhase] = 2;
      w.count[kLane] = m * (k + n);
      if (!(g.packed && g.packed->ordered)) {
        // Dense enough rows are copied whole vectors at a time: see panel_values.
        const double passed = lists.single_entries * (double)(g.plan ? g.plan->header->chunk : kDenseChunk);
        const bool whole = g.pass == Pass::forward && lists.singles * 4 > passed;
        w.count[g.pass == Pass::forward ? kValue : kValueDown] = whole ? 0 : lists.singles;
        w.count[kLongValue] = 4 * lists.shared + (whole ? passed : 0);
      }
      w.count[kEntry] = lists.entries * units(g, g.m);
      w.count[kSingle] = lists.singles * units(g, g.m);
      w.count[kShared] = lists.shared * units(g, g.m);
      break;
    }
    case Kernel::sampled: {
      const Lists lists(g, g.m, g.n);
      w.count[kPhase] = 2;
      w.count[kLane] = k * (m + n);
      w.count[kValue] = lists.singles + 4 * lists.shared;
      w.count[kEntry] = lists.entries * units(g, g.k);
      w.count[kSample] = (lists.singles + 4 * lists.shared) * units(g, g.k);
      w.count[kResult] = m * n;
      break;
    }
    case Kernel::tiled:
      w.count[kLane] = k * m;
      w.count[kTile] = (g.plan ? (double)g.plan->header->strips * 16 / vector : m / 4 * n / vector) * k;
      w.count[kResult] = m * n;
      break;
    case Kernel::decode:
      // Values and their columns, or bits, come from memory; the rest hides behind them.
      w.count[kWeight] = 1.5 * (double)g.packed->rows[g.n];
      w.count[kProduct] = w.count[kWeight] * m / vector;
      break;
    case Kernel::library:
      return library_work(g);
    case Kernel::naive:
    case Kernel::shifted:
    case Kernel::direct:
      break;
  }
  return w;
}

}  // namespace

const char* rate_name(int rate) {
  static const char* const names[] = {"phase",  "weight", "product", "lane",    "value", "value_down", "long",
                                      "entry",  "single", "shared",  "shifted", "visit", "sample",     "tile",
                                      "result", "call",   "library", "read",    "moved"};
  static_assert(sizeof(names) / sizeof(names[0]) == kRates);
  return names[rate];
}

LibraryProduct::LibraryProduct(const MaskedGemm& g) : full(false), compact(false), m(g.m), n(g.n), k(g.k) {
  const bool grad = g.pass == Pass::weight_grad;
  if (g.plan && g.plan->row_pattern) {
    // The index's rows are B's transposed ones in input_grad.
    const int64_t rows = g.plan->header->active_rows, columns = g.plan->header->active_columns;
    full = rows == g.plan->header->rows && columns == g.plan->header->columns;
    compact = !full;
    if (grad)
      m = rows, n = columns;
    else
      n = rows, k = columns;
  }
  const int64_t activations = (grad ? g.k * (g.m + g.n) : g.m * (g.n + g.k)) * dtype_size(g.dtype);
  const int64_t copy = std::min(kMostCopy, std::max(kLeastCopy, activations));
  const int64_t row_bytes = (grad ? n : k) * dtype_size(g.dtype), whole = grad ? g.m : g.n;
  step = std::max(dtype_size(g.dtype) == 2 ? kCopyRowsHalf : kCopyRows, copy / std::max<int64_t>(1, row_bytes));
  step = full || step >= whole ? whole : (whole / ((whole + step - 1) / step) + 31) / 32 * 32;
}

int candidates(const MaskedGemm& g, Isa isa, int threads, Candidate* list) {
  int count = 0;
  const auto add = [&](Kernel kernel) { list[count++].kernel = kernel; };
  if (isa == Isa::scalar) {
    add(Kernel::naive);
  } else if (g.pass == Pass::weight_grad) {
    add(Kernel::tiled);
    if (g.plan) add(Kernel::sampled);
  } else {
    if (g.packed && g.m <= (g.packed->columns ? kDecodeRows : kFewRows)) add(Kernel::decode);
    if (g.m <= 2 * kFewRows) add(g.pass == Pass::forward ? Kernel::row_dot : Kernel::streamed);
    // Copying values out of B for a few rows of A reads all of B as well, in a worse order than in place, unless next
    // to nothing is active: the table, of steps that come in sequence, does not see that.
    const bool hardly_any = g.plan && g.plan->header->values * 64 < g.n * g.k;
    if (g.m > kFewRows || (g.m == kFewRows && g.pass == Pass::forward) || hardly_any) add(Kernel::accumulate);
  }
  if (library_can(g, isa)) add(Kernel::library);
  const double* const rates = isa == Isa::avx512 ? kAvx512 : kAvx2;
  for (int i = 0; i < count; ++i) {
    Candidate& c = list[i];
    c.work = work_of(c.kernel, g);
    c.nanoseconds = 0;
    for (int r = 0; r < kRates; ++r)
      c.nanoseconds += c.work.count[r] * rates[r] / (r == kPhase || r == kCall ? 1 : threads);
  }
  // A packed weight was asked for: it reads least, which the estimate need not say.
  const int wanted = preferred.load(std::memory_order_relaxed);
  std::stable_sort(list, list + count, [wanted](const Candidate& a, const Candidate& b) {
    const auto rank = [wanted](const Candidate& c) {
      return (int)c.kernel == wanted ? 0 : c.kernel == Kernel::decode ? 1 : 2;
    };
    return rank(a) != rank(b) ? rank(a) < rank(b) : a.nanoseconds < b.nanoseconds;
  });
  return count;
}

bool prefer_kernel(const char* name) {
  if (*name == '\0') {
    preferred = -1;
    return true;
  }
  for (int kernel = 0; kernel <= (int)Kernel::library; ++kernel) {
    const bool conv = (Kernel)kernel == Kernel::shifted || (Kernel)kernel == Kernel::direct;
    if (conv || std::strcmp(name, kernel_name((Kernel)kernel)) != 0) continue;
    preferred = kernel;
    return true;
  }
  return false;
}

}  // namespace maskfuse
