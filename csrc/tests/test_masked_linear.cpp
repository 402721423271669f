// Every instruction set's kernels against the readable one, over generated problems, and the readable one
// against sums in double. Tasks run on several threads, for the thread sanitizer to watch.
#include <limits>
#include <memory>
#include <thread>

#include "masked_linear.h"
#include "masked_linear_packed.h"
#include "operands.h"

using namespace maskfuse;
using namespace maskfuse::test;

namespace {

void run(const MaskedGemm& problem, Isa isa, int threads) {
  if (problem.m == 0 || problem.n == 0) return;
  const Schedule s = schedule(problem, isa, threads);
  const auto shared = buffer(s.shared_bytes);
  for (int phase = 0; phase < 2; ++phase) {
    const int64_t tasks = phase == 0 ? s.first.tasks() : s.grid.tasks();
    const auto work = [&](int64_t begin, int64_t end) {
      const auto scratch = buffer(s.scratch_bytes);
      for (int64_t task = begin; task < end; ++task) run_task(problem, s, phase, task, shared.get(), scratch.get());
    };
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t) pool.emplace_back(work, tasks * t / threads, tasks * (t + 1) / threads);
    for (auto& thread : pool) thread.join();
  }
}

// What masks look like: rows of one density, some of them dead or full, rows of one pattern, blocks of 4 x 8.
enum class Look { random, uneven, channels, blocks, one_a_row };

std::vector<uint32_t> mask_bits(Look look, int64_t rows, int64_t columns, double density) {
  std::vector<uint32_t> bits = random_bits(rows, columns, density);
  const int64_t words = mask_words(columns);
  if (look == Look::random || rows == 0 || columns == 0) return bits;
  const std::vector<uint32_t> full = random_bits(1, columns, 1);
  for (int64_t r = 0; r < rows; ++r) {
    uint32_t* const row = bits.data() + r * words;
    if (look == Look::uneven && r % 3 != 1) std::memset(row, 0, words * 4);
    if (look == Look::uneven && r % 7 == 0) std::memcpy(row, full.data(), words * 4);
    if (look == Look::channels && r > 0) std::memcpy(row, bits.data(), words * 4);
    if (look == Look::channels && r % 2 == 1) std::memset(row, 0, words * 4);
    if (look == Look::blocks) {
      if (r % 4 > 0)
        std::memcpy(row, row - words, words * 4);
      else
        for (int64_t w = 0; w < words; ++w) row[w] = (row[w] & 0x01010101) * 255 & full[w];
    }
    if (look == Look::one_a_row) {
      std::memset(row, 0, words * 4);
      const int64_t c = random_int(0, columns - 1);
      row[c / 32] = 1u << (c % 32);
    }
  }
  return bits;
}

// A packed weight, in exactly its bytes.
struct PackedWeight {
  std::vector<int64_t> rows;
  std::vector<uint16_t> columns;
  std::vector<unsigned char> values, ordered;
  Packed packed;

  // With `ordered_by`, a problem with a plan: in the plan's order too.
  PackedWeight(const std::vector<uint32_t>& bits, const Matrix& w, Dtype dtype, bool listed,
               const MaskedGemm* ordered_by = nullptr, Isa isa = Isa::scalar)
      : rows(w.rows + 1) {
    const int64_t active = packed_rows(bits.data(), w.rows, w.columns, rows.data());
    columns.resize((size_t)(listed ? active : 0));
    values.resize((size_t)((active + kPackedPad) * dtype_size(dtype)));
    listed = listed && active > 0;
    packed_values(bits.data(), w.columns, w.bytes.data(), w.ld, dtype, rows.data(), 0, w.rows, values.data(),
                  listed ? columns.data() : nullptr);
    if (ordered_by) {
      const int64_t panel = ordered_by->plan->header->panel;
      ordered.resize((size_t)ordered_values(*ordered_by->plan) * (dtype == Dtype::f64 ? 8 : 4));
      for (int64_t n = 0; n < w.rows; n += panel)
        masked_linear_kernels(isa)->values[0][(int)dtype](
            *ordered_by, {0, 1, n, std::min(n + panel, w.rows), panel, ordered.data(), nullptr});
    }
    packed = {values.data(), listed ? columns.data() : nullptr, rows.data(), ordered_by ? ordered.data() : nullptr};
  }
};

void one_problem(Pass pass, Dtype dtype, bool has_bits, int64_t m, int64_t n, int64_t k, double density,
                 Look look = Look::random) {
  const bool forward = pass == Pass::forward, grad = pass == Pass::weight_grad;
  Matrix a(dtype, grad ? k : m, grad ? m : k, random_int(0, 3));
  Matrix b(dtype, forward ? n : k, forward ? k : n, random_int(0, 3));
  const int64_t mask_rows = grad ? m : b.rows, mask_columns = b.columns;
  Matrix factor(dtype, mask_rows, mask_columns, random_int(0, 3));
  Matrix bias(dtype, 1, n);
  std::vector<uint32_t> bits = mask_bits(look, mask_rows, mask_columns, density);
  // Bits past the last column must be zero; kernels stay inside the matrix even when they are not.
  if (has_bits && mask_columns % 32 != 0 && random_int(0, 3) == 0)
    for (int64_t r = 0; r < mask_rows; ++r) bits[(r + 1) * mask_words(mask_columns) - 1] |= ~0u << (mask_columns % 32);
  const bool with_bias = forward && random_int(0, 1);
  const auto active = [&](int64_t r, int64_t c) { return bits[r * mask_words(mask_columns) + c / 32] >> (c % 32) & 1; };
  const auto scale = [&](int64_t r, int64_t c) {
    return has_bits ? (double)active(r, c) : factor.values[r * mask_columns + c];
  };

  if (has_bits && !grad)  // a masked weight takes no part even when it is NaN
    for (int64_t r = 0; r < b.rows; ++r)
      for (int64_t c = 0; c < b.columns; ++c)
        if (!active(r, c)) b.set(dtype, r, c, std::numeric_limits<double>::quiet_NaN());

  static const uint32_t none = 0;
  MaskedGemm g{};
  g.pass = pass, g.dtype = dtype, g.m = m, g.n = n, g.k = k;
  g.a = a.bytes.data(), g.a_ld = a.ld, g.b = b.bytes.data(), g.b_ld = b.ld;
  if (has_bits)
    g.bits = bits.empty() ? &none : bits.data(), g.bits_ld = mask_words(mask_columns);
  else
    g.factor = factor.bytes.data(), g.factor_ld = factor.ld;
  if (with_bias) g.bias = bias.bytes.data();

  std::vector<double> expected(m * n);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < k; ++l) {
        const double x = grad ? a.values[l * m + i] : a.values[i * k + l];
        const double w = b.values[forward ? j * k + l : l * n + j];
        sum += x * (grad ? w : forward ? w * scale(j, l) : w * scale(l, j));
      }
      if (with_bias) sum += bias.values[j];
      expected[i * n + j] = grad ? sum * scale(i, j) : sum;
    }
  }

  const double epsilon = dtype == Dtype::f64 ? 1e-13 : dtype == Dtype::f32 ? 1e-5 : dtype == Dtype::f16 ? 1e-3 : 8e-3;
  // Without a plan, with plans for caches of several sizes, and with a packed weight, its columns listed or not.
  struct Given {
    const Plan* plan;
    const Packed* packed;
  };
  std::vector<Given> given = {{nullptr, nullptr}};
  std::vector<std::vector<unsigned char>> plans;
  Plan opened[2];
  std::vector<std::unique_ptr<PackedWeight>> packed;
  if (has_bits) {
    std::vector<uint32_t> indexed = bits;
    int64_t rows = mask_rows, columns = mask_columns;
    if (pass == Pass::input_grad) {
      indexed.assign((size_t)(columns * mask_words(rows)), 0);
      mask_transpose(bits.data(), rows, columns, 1, indexed.data(), 0, columns);
      std::swap(rows, columns);
    }
    for (int i = 0; i < 2; ++i) {
      plans.push_back(plan_of(indexed, rows, columns, i == 0 ? 8 << 10 : 48 << 10));
      CHECK(plan_open(plans[i].data(), (int64_t)plans[i].size(), rows, columns, &opened[i]), "the plan does not open");
      given.push_back({&opened[i], nullptr});
    }
    if (forward && m <= kDecodeRows) {
      for (bool listed : {false, true}) {
        packed.push_back(std::make_unique<PackedWeight>(bits, b, dtype, listed));
        given.push_back({nullptr, &packed.back()->packed});
      }
    }
  }
  for (Isa isa : {Isa::avx2, Isa::avx512}) {
    if (!has_bits || !forward || m == 0 || n == 0 || !isa_available(isa)) continue;
    g.plan = &opened[1];
    packed.push_back(std::make_unique<PackedWeight>(bits, b, dtype, false, &g, isa));
    given.push_back({&opened[1], &packed.back()->packed});
  }
  for (const Given& with : given)
    for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
      if (!isa_available(isa)) continue;
      g.plan = with.plan, g.packed = with.packed;
      std::vector<unsigned char> first;
      for (int threads : {1, 3}) {
        Matrix c(dtype, m, n);
        g.c = c.bytes.data(), g.c_ld = c.ld;
        run(g, isa, threads);
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t j = 0; j < n; ++j) {
            const double got = read(dtype, c.bytes.data() + (i * n + j) * dtype_size(dtype)),
                         want = expected[i * n + j];
            CHECK(std::abs(got - want) <= epsilon * (std::abs(want) + 1 + std::sqrt((double)k)),
                  "%s pass %d dtype %d bits %d, %ld x %ld x %ld, density %g, threads %d: [%ld, %ld] is %g, not %g",
                  isa_name(isa), (int)pass, (int)dtype, has_bits, (long)m, (long)n, (long)k, density, threads, (long)i,
                  (long)j, got, want);
            if (grad && has_bits && !active(i, j)) CHECK(got == 0 && !std::signbit(got), "masked gradient is %g", got);
          }
        }
        if (threads == 1)
          first = c.bytes;
        else
          CHECK(first == c.bytes, "%s: the result depends on the number of threads", isa_name(isa));
      }
    }
}

// What surrounds a library's product: columns moved together and apart again, the masked copy, the masked result.
void around_the_library(Dtype dtype, Isa isa, int64_t rows, int64_t columns) {
  const MaskedLinearKernels& table = *masked_linear_kernels(isa);
  const std::vector<uint32_t> active = random_bits(1, columns, 0.4), bits = random_bits(rows, columns, 0.4);
  const auto is_active = [&](int64_t c) { return active[c / 32] >> (c % 32) & 1; };
  int64_t count = 0;
  for (int64_t c = 0; c < columns; ++c) count += is_active(c);
  Matrix wide(dtype, 2 * rows, columns, 3), bias(dtype, 1, columns), narrow(dtype, rows, count),
      back(dtype, rows, columns);
  std::vector<int32_t> odd;
  for (int64_t r = 0; r < rows; ++r) odd.push_back((int32_t)(2 * r + 1));
  table.gather[(int)dtype](
      {wide.bytes.data(), wide.ld, narrow.bytes.data(), count, columns, active.data(), odd.data(), nullptr}, 0, rows);
  table.scatter[(int)dtype](
      {narrow.bytes.data(), count, back.bytes.data(), columns, columns, active.data(), nullptr, bias.bytes.data()}, 0,
      rows);
  Matrix copy(dtype, rows, columns), result(dtype, rows, columns);
  const std::vector<double> before = result.values;
  MaskedGemm g{};
  g.dtype = dtype, g.b = wide.bytes.data(), g.b_ld = wide.ld, g.bits = bits.data(), g.bits_ld = mask_words(columns);
  g.c = result.bytes.data(), g.c_ld = columns, g.m = rows, g.n = columns;
  table.masked_copy[(int)dtype][0](g, {0, rows, 0, columns, 0, copy.bytes.data(), nullptr});
  table.masked_result[(int)dtype][0](g, {0, rows, 0, columns, 0, nullptr, nullptr});
  const auto at = [&](const Matrix& m, int64_t i) { return read(dtype, m.bytes.data() + i * dtype_size(dtype)); };
  for (int64_t i = 0; i < rows * columns; ++i) {
    const int64_t r = i / columns, c = i % columns;
    const double moved = is_active(c) ? wide.values[(2 * r + 1) * columns + c] : bias.values[c];
    const bool kept = bits[r * mask_words(columns) + c / 32] >> (c % 32) & 1;
    CHECK(at(back, i) == moved, "%s dtype %d: [%ld, %ld] came back as %g", isa_name(isa), (int)dtype, (long)r, (long)c,
          at(back, i));
    CHECK(at(copy, i) == (kept ? wide.values[i] : 0), "%s dtype %d: masked copy", isa_name(isa), (int)dtype);
    CHECK(at(result, i) == (kept ? before[i] : 0), "%s dtype %d: masked result", isa_name(isa), (int)dtype);
  }
}

}  // namespace

int main() {
  for (Isa isa : {Isa::avx2, Isa::avx512})
    for (int dtype = 0; dtype < 4; ++dtype)
      for (int64_t columns : {1, 7, 32, 75, 130})
        if (isa_available(isa)) around_the_library((Dtype)dtype, isa, 5, columns);
  const int64_t sizes[] = {0, 1, 2, 7, 8, 9, 14, 15, 16, 31, 32, 33, 65, 100};
  const auto size = [&] { return sizes[random_int(0, std::size(sizes) - 1)]; };
  for (int pass = 0; pass < 3; ++pass) {
    for (int dtype = 0; dtype < 4; ++dtype) {
      for (int has_bits = 0; has_bits < 2; ++has_bits) {
        const auto run_one = [&](int64_t m, int64_t n, int64_t k, double density) {
          one_problem((Pass)pass, (Dtype)dtype, has_bits, m, n, k, density);
        };
        for (int i = 0; i < 25; ++i) run_one(size(), size(), size(), (double[]){0, 0.03, 0.5, 0.9, 1}[i % 5]);
        run_one(20, 40, 600, 0.5);    // several k blocks
        run_one(20, 40, 600, 0.002);  // several k blocks, most of them empty
        run_one(3, 300, 290, 0.5);    // few rows, columns beyond one tile
        run_one(560, 33, 40, 0.5);    // several row blocks
        run_one(17, 600, 20, 0.5);    // several panels
        run_one(150, 70, 300, 0.2);   // several blocks of the batch, the last one short
        run_one(300, 70, 260, 0.1);   // the same for weight_grad: blocks in pairs
        if (has_bits == 0) continue;
        for (Look look : {Look::uneven, Look::channels, Look::blocks, Look::one_a_row}) {
          one_problem((Pass)pass, (Dtype)dtype, true, 70, 90, 140, 0.3, look);
          one_problem((Pass)pass, (Dtype)dtype, true, 140, 300, 70, 0.05, look);
        }
      }
    }
  }
  return report("masked_linear");
}
