// What the planners say of problems of every size, up to more products than 32 bits count: candidates in order, and
// tasks that cover the result.
#include <cmath>
#include <string>

#include "images.h"
#include "masked_conv2d_planner.h"
#include "masked_linear_planner.h"

using namespace maskfuse;
using namespace maskfuse::test;

namespace {

constexpr int kThreads[] = {1, 2, 7, 256};

// Returns whether one of them is a library's.
bool check_candidates(const Candidate* list, int count, const char* what) {
  bool library = false;
  CHECK(count >= 1 && count <= kMostCandidates, "%s: %d candidates", what, count);
  for (int i = 0; i < count; ++i) {
    const Candidate& c = list[i];
    library = library || c.kernel == Kernel::library;
    CHECK(std::isfinite(c.nanoseconds) && c.nanoseconds >= 0, "%s: %s is to take %g ns", what, kernel_name(c.kernel),
          c.nanoseconds);
    CHECK(i == 0 || c.nanoseconds >= list[i - 1].nanoseconds, "%s: candidates are out of order", what);
    for (int r = 0; r < kRates; ++r)
      CHECK(c.work.count[r] >= 0, "%s: %g times %s", what, c.work.count[r], rate_name(r));
    for (int j = 0; j < i; ++j) CHECK(list[j].kernel != c.kernel, "%s: %s twice", what, kernel_name(c.kernel));
  }
  return library;
}

// Steps of a grid reach both ends, and its first and last tasks lie within.
void check_grid(const Grid& g, int64_t m, int64_t n, const char* what) {
  CHECK(g.m_step > 0 && g.n_step > 0 && g.tasks() > 0, "%s: no tasks", what);
  CHECK((g.m_tasks - 1) * g.m_step < g.m && g.m_tasks * g.m_step >= g.m, "%s: rows in steps of %ld", what,
        (long)g.m_step);
  CHECK((g.n_tasks - 1) * g.n_step < g.n && g.n_tasks * g.n_step >= g.n, "%s: columns in steps of %ld", what,
        (long)g.n_step);
  CHECK(g.m > 0 && g.n > 0 && g.m <= std::max<int64_t>(m, 1) && g.n <= std::max<int64_t>(n, 1),
        "%s: a grid over %ld x %ld of a result of %ld x %ld", what, (long)g.m, (long)g.n, (long)m, (long)n);
}

void linear(Pass pass, Dtype dtype, bool has_bits, const Plan* plan, int64_t m, int64_t n, int64_t k) {
  static const uint32_t bits = 0;
  MaskedGemm g{};
  g.pass = pass, g.dtype = dtype, g.m = m, g.n = n, g.k = k, g.a_ld = k, g.b_ld = k, g.c_ld = n;
  g.bits = has_bits ? &bits : nullptr, g.plan = plan;
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512})
    for (int threads : kThreads) {
      if (!isa_available(isa)) continue;
      const std::string what = std::string(isa_name(isa)) + " pass " + std::to_string((int)pass) + ", " +
                               std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k) + ", " +
                               std::to_string(threads) + " threads";
      for (bool library : {false, true}) {
        g.library = library;
        Candidate list[kMostCandidates];
        const int count = candidates(g, isa, threads, list);
        const bool has_library = check_candidates(list, count, what.c_str());
        CHECK(library || !has_library, "%s: a library that is not there", what.c_str());
        const Schedule s = schedule(g, isa, threads);
        CHECK(s.kernel == list[0].kernel, "%s: %s runs, not %s", what.c_str(), kernel_name(s.kernel),
              kernel_name(list[0].kernel));
        if (s.kernel != Kernel::library) check_grid(s.grid, m, n, what.c_str());
      }
    }
}

void linears() {
  const int64_t sizes[] = {1, 3, 8, 16, 17, 300, 4096, 50000, int64_t{1} << 33};
  const auto size = [&] { return sizes[random_int(0, std::size(sizes) - 1)]; };
  for (int i = 0; i < 400; ++i) {
    int64_t of[] = {size(), size(), size()};
    for (int at = 0; at < 3; ++at)  // only one of them larger than any matrix has of both
      if (at != i % 3) of[at] = std::min<int64_t>(of[at], 50000);
    linear((Pass)random_int(0, 2), (Dtype)random_int(0, 3), random_int(0, 1), nullptr, of[0], of[1], of[2]);
  }
  for (double density : {0.0, 0.02, 0.4, 1.0}) {
    const std::vector<unsigned char> bytes = plan_of(random_bits(90, 200, density), 90, 200, 48 << 10);
    Plan plan;
    CHECK(plan_open(bytes.data(), (int64_t)bytes.size(), 90, 200, &plan), "the plan does not open");
    for (int dtype = 0; dtype < 4; ++dtype)
      for (int64_t batch : {int64_t{1}, int64_t{12}, int64_t{513}, int64_t{1} << 33}) {
        linear(Pass::forward, (Dtype)dtype, true, &plan, batch, 90, 200);
        linear(Pass::weight_grad, (Dtype)dtype, true, &plan, 90, 200, batch);
      }
  }
}

void convolution(Pass pass, Dtype dtype, const Case& c, const std::vector<uint32_t>& bits, const Plan* plan,
                 bool channels_last) {
  MaskedConv g{};
  g.pass = pass, g.dtype = dtype, g.shape = c.shape(), g.bits = bits.data();
  g.bits_ld = mask_words(g.shape.columns()), g.plan = plan, g.channels_last = channels_last;
  Pixels x(dtype, channels_last, 1, 1, 1, 1);
  x.n = c.batch, x.c = c.in, x.h = c.h, x.w = c.w;
  g.input = x.image();
  x.c = c.out, x.h = g.shape.out_h, x.w = g.shape.out_w;
  g.output = x.image();
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512})
    for (int threads : kThreads) {
      if (!isa_available(isa)) continue;
      const std::string what = std::string(isa_name(isa)) + " convolution, pass " + std::to_string((int)pass) + ", " +
                               std::to_string(threads) + " threads";
      g.library = true;
      Candidate list[kMostCandidates];
      check_candidates(list, candidates(g, ActiveChannels(g), isa, threads, list), what.c_str());
      const ConvSchedule s = schedule(g, isa, threads);
      CHECK(s.kernel == list[0].kernel, "%s: %s runs, not %s", what.c_str(), kernel_name(s.kernel),
            kernel_name(list[0].kernel));
      for (int phase = 0; phase < s.phase_count; ++phase) {
        const Grid& grid = s.phases[phase].grid;
        if (s.kernel != Kernel::library && grid.tasks() > 0) check_grid(grid, grid.m, grid.n, what.c_str());
      }
    }
}

void convolutions() {
  const Case cases[] = {
      {1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1},
      {2, 30, 40, 14, 14, 3, 3, 1, 1, 1, 1, 1, 1},
      {3, 30, 40, 9, 300, 1, 1, 2, 1, 0, 0, 1, 1},
      {1 << 20, 12, 20, 200, 300, 3, 3, 1, 1, 1, 1, 1, 1},  // more pixels than 32 bits count
      {2, 12, 20, 17, 15, 2, 5, 3, 1, 2, 0, 1, 2},
      {2, 12, 20, 9, 9, 3, 3, 1, 1, 1, 1, 1, 1, 4},
  };
  for (const Case& c : cases)
    for (double density : {0.05, 0.5, 1.0}) {
      const int64_t columns = c.shape().columns();
      const std::vector<uint32_t> bits = random_bits(c.out, columns, density);
      const std::vector<unsigned char> bytes = plan_of(bits, c.out, columns, 48 << 10, c.shape().taps());
      Plan plan;
      CHECK(plan_open(bytes.data(), (int64_t)bytes.size(), c.out, columns, &plan), "the plan does not open");
      for (int dtype = 0; dtype < 4; ++dtype)
        for (bool channels_last : {false, true})
          for (Pass pass : {Pass::forward, Pass::weight_grad})
            convolution(pass, (Dtype)dtype, c, bits, c.groups == 1 ? &plan : nullptr, channels_last);
    }
}

// Whatever is preferred runs where it is a candidate.
void preferred() {
  static const uint32_t bits = 0;
  MaskedGemm g{};
  g.pass = Pass::forward, g.m = 40, g.n = 70, g.k = 90, g.a_ld = g.b_ld = 90, g.c_ld = 70, g.bits = &bits;
  g.library = true;
  const Isa isa = isa_best();
  Candidate list[kMostCandidates];
  const int count = candidates(g, isa, 2, list);
  for (int i = 0; i < count; ++i) {
    CHECK(prefer_kernel(kernel_name(list[i].kernel)), "there is no kernel %s", kernel_name(list[i].kernel));
    CHECK(schedule(g, isa, 2).kernel == list[i].kernel, "%s does not run", kernel_name(list[i].kernel));
  }
  CHECK(!prefer_kernel("fastest") && !prefer_conv_kernel("fastest"), "a kernel that is none");
  CHECK(prefer_kernel("") && schedule(g, isa, 2).kernel == list[0].kernel, "no preference");
}

}  // namespace

int main() {
  linears();
  convolutions();
  preferred();
  return report("planners");
}
