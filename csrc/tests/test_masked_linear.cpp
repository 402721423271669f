// Every instruction set's kernels against the readable one, over generated problems, and the readable one
// against sums in double. Tasks run on several threads, for the thread sanitizer to watch.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "harness.h"
#include "mask.h"
#include "masked_linear.h"

using namespace maskfuse;
using namespace maskfuse::test;

namespace {

// A matrix of any dtype in exactly its bytes, with its values in double beside it.
struct Matrix {
  int64_t rows, columns, ld;
  std::vector<unsigned char> bytes;
  std::vector<double> values;

  Matrix(Dtype dtype, int64_t rows, int64_t columns, int64_t pad = 0)
      : rows(rows),
        columns(columns),
        ld(columns + pad),
        bytes(rows > 0 ? (size_t)((rows - 1) * ld + columns) * dtype_size(dtype) : 0),
        values((size_t)(rows * columns)) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        // Eighths up to 1 are exact in every dtype.
        const double value = std::round(random_float() * 8) / 8;
        set(dtype, r, c, value);
        values[r * columns + c] = value;
      }
    }
  }

  void set(Dtype dtype, int64_t r, int64_t c, double value) {
    unsigned char* to = bytes.data() + (r * ld + c) * dtype_size(dtype);
    const float f = (float)value;
    uint32_t wide;
    std::memcpy(&wide, &f, 4);
    if (dtype == Dtype::f64) std::memcpy(to, &value, 8);
    if (dtype == Dtype::f32) std::memcpy(to, &f, 4);
    if (dtype == Dtype::bf16) {
      const uint16_t half = (uint16_t)(wide >> 16);
      std::memcpy(to, &half, 2);
    }
    if (dtype == Dtype::f16) {
      const uint16_t half = f == 0   ? 0
                            : f != f ? 0x7e00
                                     : (uint16_t)((wide >> 16 & 0x8000) | ((wide & 0x7fffffff) - 0x38000000) >> 13);
      std::memcpy(to, &half, 2);
    }
  }
};

double read(Dtype dtype, const unsigned char* from) {
  if (dtype == Dtype::f64) {
    double x;
    std::memcpy(&x, from, 8);
    return x;
  }
  uint32_t wide = 0;
  std::memcpy(&wide, from, dtype_size(dtype));
  if (dtype == Dtype::bf16) wide <<= 16;
  if (dtype == Dtype::f16) {
    const double magnitude = (wide >> 10 & 31) == 0 ? (wide & 1023) * 0x1p-24
                                                    : std::ldexp(1024 + (wide & 1023), (int)(wide >> 10 & 31) - 25);
    return wide & 0x8000 ? -magnitude : magnitude;
  }
  float x;
  std::memcpy(&x, &wide, 4);
  return x;
}

void run(const MaskedGemm& problem, Isa isa, int threads) {
  const Schedule s = schedule(problem, isa, threads);
  const auto work = [&](int64_t begin, int64_t end) {
    void* scratch = std::aligned_alloc(64, (s.scratch_bytes + 127) / 64 * 64);
    for (int64_t task = begin; task < end; ++task) run_task(problem, s, task, scratch);
    std::free(scratch);
  };
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) pool.emplace_back(work, s.tasks() * t / threads, s.tasks() * (t + 1) / threads);
  for (auto& thread : pool) thread.join();
}

void one_problem(Pass pass, Dtype dtype, bool has_bits, int64_t m, int64_t n, int64_t k, double density) {
  const bool forward = pass == Pass::forward, grad = pass == Pass::weight_grad;
  Matrix a(dtype, grad ? k : m, grad ? m : k, random_int(0, 3));
  Matrix b(dtype, forward ? n : k, forward ? k : n, random_int(0, 3));
  const int64_t mask_rows = grad ? m : b.rows, mask_columns = b.columns;
  Matrix factor(dtype, mask_rows, mask_columns, random_int(0, 3));
  Matrix bias(dtype, 1, n);
  std::vector<uint32_t> bits = random_bits(mask_rows, mask_columns, density);
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
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (!isa_available(isa)) continue;
    std::vector<unsigned char> first;
    for (int threads : {1, 3}) {
      Matrix c(dtype, m, n);
      g.c = c.bytes.data(), g.c_ld = c.ld;
      run(g, isa, threads);
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          const double got = read(dtype, c.bytes.data() + (i * n + j) * dtype_size(dtype)), want = expected[i * n + j];
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

}  // namespace

int main() {
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
        run_one(17, 600, 20, 0.5);    // half types: several column blocks
      }
    }
  }
  return report("masked_linear");
}
