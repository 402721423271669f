// Every instruction set's convolutions against the readable one, over generated problems, and the readable one against
// sums in double. Tasks run on several threads, for the thread sanitizer to watch.
#include <limits>
#include <thread>

#include "images.h"
#include "masked_conv2d.h"
#include "masked_conv2d_planner.h"

using namespace maskfuse;
using namespace maskfuse::test;

namespace {

void run(const MaskedConv& problem, Isa isa, int threads) {
  const ConvSchedule s = schedule(problem, isa, threads);
  const auto shared = buffer(s.shared_bytes);
  prepare(problem, s, shared.get());
  for (int phase = 0; phase < s.phase_count; ++phase) {
    const int64_t tasks = s.phases[phase].grid.tasks();
    const auto work = [&](int64_t begin, int64_t end) {
      const auto scratch = buffer(s.scratch_bytes);
      for (int64_t task = begin; task < end; ++task) run_task(problem, s, phase, task, shared.get(), scratch.get());
    };
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t) pool.emplace_back(work, tasks * t / threads, tasks * (t + 1) / threads);
    for (auto& thread : pool) thread.join();
  }
}

void one_problem(Pass pass, Dtype dtype, const Case& c, double density, bool channels_last, bool whole_channels) {
  const ConvShape s = c.shape();
  const int64_t columns = s.columns(), taps = s.taps(), words = mask_words(columns);
  std::vector<uint32_t> bits = random_bits(c.out, columns, density);
  if (whole_channels) {
    const std::vector<uint32_t> in = random_bits(1, c.in / c.groups, density), out = random_bits(1, c.out, density);
    for (int64_t r = 0; r < c.out; ++r)
      for (int64_t k = 0; k < columns; ++k) {
        const bool active = (in[k / taps / 32] >> (k / taps % 32) & 1) && (out[r / 32] >> (r % 32) & 1);
        uint32_t& word = bits[r * words + k / 32];
        word = active ? word | 1u << (k % 32) : word & ~(1u << (k % 32));
      }
  }
  const auto active = [&](int64_t r, int64_t k) { return bits[r * words + k / 32] >> (k % 32) & 1; };
  Pixels x(dtype, channels_last, c.batch, c.in, c.h, c.w), y(dtype, channels_last, c.batch, c.out, s.out_h, s.out_w);
  Matrix weight(dtype, c.out, columns), bias(dtype, 1, c.out);
  const std::vector<double> values = weight.values;
  for (int64_t r = 0; r < c.out && pass != Pass::weight_grad; ++r)
    for (int64_t k = 0; k < columns; ++k)
      if (!active(r, k)) weight.set(dtype, r, k, std::numeric_limits<double>::quiet_NaN());

  // Every product that the convolution is made of, added where the pass wants it.
  const int64_t results = pass == Pass::forward      ? (int64_t)y.matrix.values.size()
                          : pass == Pass::input_grad ? (int64_t)x.matrix.values.size()
                                                     : c.out * columns;
  std::vector<double> expected((size_t)results, 0), magnitude((size_t)results, 1);
  const int64_t group_in = c.in / c.groups, group_out = c.out / c.groups;
  for (int64_t n = 0; n < c.batch; ++n)
    for (int64_t o = 0; o < c.out; ++o)
      for (int64_t oy = 0; oy < s.out_h; ++oy)
        for (int64_t ox = 0; ox < s.out_w; ++ox) {
          if (pass == Pass::forward) expected[y.at(n, o, oy, ox)] += bias.values[o];
          for (int64_t k = 0; k < columns; ++k) {
            const int64_t iy = oy * c.stride_h + k / c.kernel_w % c.kernel_h * c.dilation_h - c.pad_h;
            const int64_t ix = ox * c.stride_w + k % c.kernel_w * c.dilation_w - c.pad_w;
            if (!active(o, k) || iy < 0 || iy >= c.h || ix < 0 || ix >= c.w) continue;
            const int64_t channel = o / group_out * group_in + k / taps;
            const double w = values[o * columns + k], in = x.value(n, channel, iy, ix), out = y.value(n, o, oy, ox);
            const int64_t to = pass == Pass::forward      ? y.at(n, o, oy, ox)
                               : pass == Pass::input_grad ? x.at(n, channel, iy, ix)
                                                          : o * columns + k;
            const double term = pass == Pass::forward ? w * in : pass == Pass::input_grad ? w * out : in * out;
            expected[to] += term;
            magnitude[to] += std::abs(term);
          }
        }

  std::vector<uint32_t> indexed = bits;
  int64_t rows = c.out, wide = columns;
  if (pass == Pass::input_grad) {
    rows = group_in, wide = c.out * taps;
    indexed.assign((size_t)(rows * mask_words(wide)), 0);
    mask_transpose(bits.data(), c.out, columns, taps, indexed.data(), 0, rows);
  }
  const std::vector<unsigned char> bytes = plan_of(indexed, rows, wide, 48 << 10, taps);
  Plan plan;
  CHECK(plan_open(bytes.data(), (int64_t)bytes.size(), rows, wide, &plan), "the plan does not open");
  const double epsilon = dtype == Dtype::f64 ? 1e-13 : dtype == Dtype::f32 ? 1e-6 : dtype == Dtype::f16 ? 1e-3 : 8e-3;
  const char* const planned = pass == Pass::weight_grad ? "sampled" : "accumulate";
  const struct {
    const char* kernel;
    const Plan* plan;
  } ways[] = {{"direct", nullptr}, {"direct", &plan}, {planned, &plan}, {"shifted", &plan}};
  for (const auto& [kernel, with] : ways)
    for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
      if (!isa_available(isa)) continue;
      std::vector<unsigned char> first;
      for (int threads : {1, 3}) {
        Matrix gradient(dtype, c.out, columns);
        Pixels result(dtype, channels_last, c.batch, pass == Pass::forward ? c.out : c.in,
                      pass == Pass::forward ? s.out_h : c.h, pass == Pass::forward ? s.out_w : c.w);
        MaskedConv g{};
        g.pass = pass, g.dtype = dtype, g.shape = s;
        g.input = pass == Pass::input_grad ? result.image() : x.image();
        g.output = pass == Pass::forward ? result.image() : y.image();
        g.weight = weight.bytes.data(), g.weight_ld = columns;
        g.weight_grad = gradient.bytes.data(), g.weight_grad_ld = columns;
        g.bits = bits.data(), g.bits_ld = words, g.plan = with;
        if (pass == Pass::forward) g.bias = bias.bytes.data();
        CHECK(prefer_conv_kernel(kernel), "there is no kernel %s", kernel);
        run(g, isa, threads);
        const std::vector<unsigned char>& got = pass == Pass::weight_grad ? gradient.bytes : result.matrix.bytes;
        for (int64_t i = 0; i < results; ++i) {
          const double value = read(dtype, got.data() + i * dtype_size(dtype)), want = expected[i];
          CHECK(
              std::abs(value - want) <= epsilon * (std::abs(want) + std::sqrt(magnitude[i]) * 4 + 1),
              "%s %s pass %d dtype %d, %ld x %ld x %ld x %ld to %ld, kernel %ld x %ld, channels_last %d: [%ld] is %g, "
              "not %g",
              kernel, isa_name(isa), (int)pass, (int)dtype, (long)c.batch, (long)c.in, (long)c.h, (long)c.w,
              (long)c.out, (long)c.kernel_h, (long)c.kernel_w, channels_last, (long)i, value, want);
          if (pass == Pass::weight_grad && !active(i / columns, i % columns))
            CHECK(value == 0 && !std::signbit(value), "masked gradient is %g", value);
        }
        if (threads == 1)
          first = got;
        else
          CHECK(first == got, "%s: the result depends on the number of threads", isa_name(isa));
      }
    }
}

}  // namespace

int main() {
  const Case cases[] = {
      {2, 9, 20, 9, 14, 3, 3, 1, 1, 1, 1, 1, 1},    // images side by side in a unit
      {1, 40, 20, 20, 37, 3, 3, 1, 1, 1, 1, 1, 1},  // several units and strips
      {3, 40, 33, 5, 7, 1, 1, 1, 1, 0, 0, 1, 1},    // pixels one after another
      {2, 40, 33, 9, 8, 1, 1, 2, 2, 0, 0, 1, 1},    // and at a stride
      {2, 8, 17, 11, 10, 3, 2, 2, 1, 1, 0, 1, 2},   // phases of rows, a dilation
      {1, 8, 17, 13, 12, 2, 2, 3, 3, 0, 0, 1, 1},   // a stride beyond the kernel
      {5, 12, 17, 2, 1, 3, 3, 1, 1, 1, 1, 1, 1},    // images of a few pixels
      {1, 70, 300, 3, 3, 3, 3, 1, 1, 0, 0, 1, 1},   // several panels and chunks, one pixel
      {2, 8, 12, 6, 5, 3, 3, 1, 1, 1, 1, 1, 1, 4},  // groups
      {2, 70, 20, 5, 33, 3, 3, 1, 1, 1, 1, 1, 1},   // of one copy of the input, several strips and chunks
      {3, 5, 40, 4, 16, 3, 3, 2, 1, 1, 1, 1, 2},    // images that end with strips; shifts by -1, 1 and 3
      {2, 9, 33, 3, 21, 2, 3, 1, 1, 0, 3, 1, 1},    // shifts to one side, more columns than the input has
      {2, 9, 33, 3, 21, 1, 3, 1, 1, 0, 0, 1, 2},    // to the other, fewer columns
      {1, 200, 3, 2, 5, 3, 3, 1, 1, 1, 1, 1, 1},    // a thread for every channel
  };
  for (int pass = 0; pass < 3; ++pass)
    for (int dtype = 0; dtype < 4; ++dtype)
      for (const Case& c : cases)
        for (bool channels_last : {false, true}) {
          one_problem((Pass)pass, (Dtype)dtype, c, (double[]){0.1, 0.5, 0.9}[random_int(0, 2)], channels_last, false);
          one_problem((Pass)pass, (Dtype)dtype, c, 0.5, channels_last, true);
        }
  return report("masked_conv2d");
}
