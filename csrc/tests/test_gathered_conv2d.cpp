// Every instruction set's convolutions of chosen channels against sums in double; what is not chosen is NaN. Tasks run
// on several threads, for the thread sanitizer to watch.
#include <limits>
#include <thread>

#include "gathered_conv2d.h"
#include "images.h"

using namespace maskfuse;
using namespace maskfuse::test;

namespace {

void run(const GatheredConv& problem, Isa isa, int threads) {
  const GatheredSchedule s = schedule(problem, isa, threads);
  const GatheredTasks tasks = gathered_conv2d_tasks(isa, problem.conv.dtype, problem.conv.pass);
  CHECK(fits(s), "the problem does not fit");
  const auto shared = buffer(s.shared_bytes);
  for (int phase = 0; phase < 2; ++phase) {
    const auto work = [&](int64_t begin, int64_t end) {
      const auto scratch = buffer(s.scratch_bytes);
      for (int64_t i = begin; i < end; ++i) tasks.phases[phase](problem, s, i, shared.get(), scratch.get());
    };
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t)
      pool.emplace_back(work, s.tasks[phase] * t / threads, s.tasks[phase] * (t + 1) / threads);
    for (auto& thread : pool) thread.join();
  }
}

// Channels chosen for each image, [batch][words], or the same for all.
struct Choice {
  std::vector<uint32_t> bits;
  int64_t ld;

  Choice(int64_t batch, int64_t channels, double density, bool own)
      : bits(random_bits(own ? batch : 1, channels, density)), ld(own ? mask_words(channels) : 0) {}
  bool operator()(int64_t image, int64_t channel) const {
    return bits[image * ld + channel / 32] >> (channel % 32) & 1;
  }
};

// `some_out`: outputs are chosen too.
void one_problem(Pass pass, Dtype dtype, const Case& c, double density, bool channels_last, bool own, bool some_out) {
  const ConvShape s = c.shape();
  const int64_t columns = s.columns(), taps = s.taps();
  const Choice in(c.batch, c.in, density, own);
  const Choice out(c.batch, c.out, some_out ? 0.5 : 1.0, own && pass != Pass::weight_grad);
  Pixels x(dtype, channels_last, c.batch, c.in, c.h, c.w), y(dtype, channels_last, c.batch, c.out, s.out_h, s.out_w);
  Matrix weight(dtype, c.out, columns), bias(dtype, 1, c.out);
  Pixels& image = pass == Pass::input_grad ? x : y;
  const int64_t results = pass == Pass::weight_grad ? c.out * columns : (int64_t)image.matrix.values.size();
  std::vector<double> expected((size_t)results, 0), magnitude((size_t)results, 1);
  for (int64_t n = 0; n < c.batch; ++n)
    for (int64_t o = 0; o < c.out; ++o)
      for (int64_t oy = 0; oy < s.out_h; ++oy)
        for (int64_t ox = 0; ox < s.out_w; ++ox) {
          if (pass == Pass::forward) expected[y.at(n, o, oy, ox)] += bias.values[o];
          for (int64_t k = 0; k < columns; ++k) {
            const int64_t channel = k / taps,
                          iy = oy * c.stride_h + k / c.kernel_w % c.kernel_h * c.dilation_h - c.pad_h;
            const int64_t ix = ox * c.stride_w + k % c.kernel_w * c.dilation_w - c.pad_w;
            if (!in(n, channel) || !out(n, o) || iy < 0 || iy >= c.h || ix < 0 || ix >= c.w) continue;
            const double w = weight.values[o * columns + k], at = x.value(n, channel, iy, ix);
            const double grad = y.value(n, o, oy, ox);
            const int64_t to = pass == Pass::forward      ? y.at(n, o, oy, ox)
                               : pass == Pass::input_grad ? x.at(n, channel, iy, ix)
                                                          : o * columns + k;
            const double term = pass == Pass::forward ? w * at : pass == Pass::input_grad ? w * grad : at * grad;
            expected[to] += term;
            magnitude[to] += std::abs(term);
          }
        }
  const auto spoil = [&](Pixels& p, const Choice& chosen) {
    for (int64_t n = 0; n < p.n; ++n)
      for (int64_t channel = 0; channel < p.c; ++channel)
        for (int64_t pixel = 0; pixel < p.h * p.w && !chosen(n, channel); ++pixel)
          p.matrix.set(dtype, 0, p.at(n, channel, pixel / p.w, pixel % p.w), std::numeric_limits<double>::quiet_NaN());
  };
  if (pass != Pass::input_grad) spoil(x, in);
  if (pass != Pass::forward) spoil(y, out);
  const double epsilon = dtype == Dtype::f64 ? 1e-13 : dtype == Dtype::f32 ? 1e-6 : dtype == Dtype::f16 ? 1e-3 : 8e-3;
  for (Isa isa : {Isa::avx2, Isa::avx512}) {
    if (!isa_available(isa)) continue;
    std::vector<unsigned char> first;
    for (int threads : {1, 3}) {
      Pixels result(dtype, channels_last, c.batch, image.c, image.h, image.w);
      Matrix gradient(dtype, c.out, columns);
      GatheredConv g{};
      g.conv.pass = pass, g.conv.dtype = dtype, g.conv.shape = s;
      g.conv.input = pass == Pass::input_grad ? result.image() : x.image();
      g.conv.output = pass == Pass::forward ? result.image() : y.image();
      g.conv.weight = weight.bytes.data(), g.conv.weight_ld = columns;
      g.conv.weight_grad = gradient.bytes.data(), g.conv.weight_grad_ld = columns;
      if (pass == Pass::forward) g.conv.bias = bias.bytes.data();
      g.in_channels = in.bits.data(), g.in_ld = in.ld;
      if (some_out) g.out_channels = out.bits.data(), g.out_ld = out.ld;
      run(g, isa, threads);
      const std::vector<unsigned char>& got = pass == Pass::weight_grad ? gradient.bytes : result.matrix.bytes;
      for (int64_t i = 0; i < results; ++i) {
        const double value = read(dtype, got.data() + i * dtype_size(dtype)), want = expected[i];
        CHECK(std::abs(value - want) <= epsilon * (std::abs(want) + std::sqrt(magnitude[i]) * 4 + 1),
              "%s pass %d dtype %d, %ld x %ld x %ld x %ld to %ld, kernel %ld x %ld, channels_last %d, own %d: [%ld] is "
              "%g, not %g",
              isa_name(isa), (int)pass, (int)dtype, (long)c.batch, (long)c.in, (long)c.h, (long)c.w, (long)c.out,
              (long)c.kernel_h, (long)c.kernel_w, channels_last, own, (long)i, value, want);
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
      {2, 9, 20, 9, 14, 3, 3, 1, 1, 1, 1, 1, 1},    // one group of pixels a row
      {1, 40, 20, 20, 37, 3, 3, 1, 1, 1, 1, 1, 1},  // several groups, tiles and chunks of channels
      {3, 150, 33, 5, 7, 1, 1, 1, 1, 0, 0, 1, 1},   // pixels in one row, several chunks
      {1, 20, 17, 24, 24, 1, 1, 1, 1, 0, 0, 1, 1},  // a row in several tiles
      {2, 40, 33, 9, 8, 1, 1, 2, 2, 0, 0, 1, 1},    // and at a stride
      {2, 18, 17, 11, 10, 3, 2, 2, 1, 1, 0, 1, 2},  // phases of rows, a dilation
      {1, 18, 35, 11, 10, 2, 3, 2, 3, 0, 1, 1, 1},  // phases of columns, more than one block of outputs by a lane
      {5, 12, 3, 2, 1, 3, 3, 1, 1, 1, 1, 1, 1},     // images of a few pixels
      {2, 33, 6, 9, 9, 7, 7, 1, 1, 3, 3, 1, 1},     // more taps than lanes
      {2, 6, 8, 4, 3, 1, 1, 1, 1, 1, 1, 1, 1},      // single pixels with a border
  };
  for (int pass = 0; pass < 3; ++pass)
    for (int dtype = 0; dtype < 4; ++dtype)
      for (const Case& c : cases)
        for (bool channels_last : {false, true})
          for (double density : {0.0, 0.4, 1.0})
            for (bool own : {false, true})
              one_problem((Pass)pass, (Dtype)dtype, c, density, channels_last, own, random_int(0, 1));
  return report("gathered_conv2d");
}
