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
  const GatheredSchedule s = schedule(problem, threads);
  const GatheredTask task = gathered_conv2d_task(isa, problem.conv.dtype);
  const int64_t tasks = problem.conv.shape.batch * s.parts;
  const auto work = [&](int64_t begin, int64_t end) {
    const auto scratch = buffer(s.scratch_bytes);
    for (int64_t i = begin; i < end; ++i) task(problem, s, i, scratch.get());
  };
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) pool.emplace_back(work, tasks * t / threads, tasks * (t + 1) / threads);
  for (auto& thread : pool) thread.join();
}

void one_problem(bool grad, Dtype dtype, const Case& c, double density, bool channels_last) {
  const ConvShape s = c.shape();
  const int64_t columns = s.columns(), taps = s.taps(), words = mask_words(c.in);
  const std::vector<uint32_t> bits = random_bits(c.batch, c.in, density);
  const auto chosen = [&](int64_t n, int64_t channel) { return bits[n * words + channel / 32] >> (channel % 32) & 1; };
  Pixels x(dtype, channels_last, c.batch, c.in, c.h, c.w), y(dtype, channels_last, c.batch, c.out, s.out_h, s.out_w);
  Matrix weight(dtype, c.out, columns), bias(dtype, 1, c.out);
  Pixels& result = grad ? x : y;
  const int64_t results = (int64_t)result.matrix.values.size();
  std::vector<double> expected((size_t)results, 0), magnitude((size_t)results, 1);
  for (int64_t n = 0; n < c.batch; ++n)
    for (int64_t o = 0; o < c.out; ++o)
      for (int64_t oy = 0; oy < s.out_h; ++oy)
        for (int64_t ox = 0; ox < s.out_w; ++ox) {
          if (!grad) expected[y.at(n, o, oy, ox)] += bias.values[o];
          for (int64_t k = 0; k < columns; ++k) {
            const int64_t channel = k / taps,
                          iy = oy * c.stride_h + k / c.kernel_w % c.kernel_h * c.dilation_h - c.pad_h;
            const int64_t ix = ox * c.stride_w + k % c.kernel_w * c.dilation_w - c.pad_w;
            if (!chosen(n, channel) || iy < 0 || iy >= c.h || ix < 0 || ix >= c.w) continue;
            const double other = grad ? y.value(n, o, oy, ox) : x.value(n, channel, iy, ix);
            const int64_t to = grad ? x.at(n, channel, iy, ix) : y.at(n, o, oy, ox);
            expected[to] += weight.values[o * columns + k] * other;
            magnitude[to] += std::abs(weight.values[o * columns + k] * other);
          }
        }
  if (!grad)
    for (int64_t n = 0; n < c.batch; ++n)
      for (int64_t channel = 0; channel < c.in; ++channel)
        for (int64_t pixel = 0; pixel < c.h * c.w && !chosen(n, channel); ++pixel)
          x.matrix.set(dtype, 0, x.at(n, channel, pixel / c.w, pixel % c.w), std::numeric_limits<double>::quiet_NaN());
  const double epsilon = dtype == Dtype::f64 ? 1e-13 : dtype == Dtype::f32 ? 1e-6 : dtype == Dtype::f16 ? 1e-3 : 8e-3;
  for (Isa isa : {Isa::avx2, Isa::avx512}) {
    if (!isa_available(isa)) continue;
    std::vector<unsigned char> first;
    for (int threads : {1, 3}) {
      Pixels out(dtype, channels_last, c.batch, grad ? c.in : c.out, grad ? c.h : s.out_h, grad ? c.w : s.out_w);
      GatheredConv g{};
      g.conv.pass = grad ? Pass::input_grad : Pass::forward, g.conv.dtype = dtype, g.conv.shape = s;
      g.conv.input = grad ? out.image() : x.image(), g.conv.output = grad ? y.image() : out.image();
      g.conv.weight = weight.bytes.data(), g.conv.weight_ld = columns;
      g.conv.bias = grad ? nullptr : bias.bytes.data();
      g.channels = bits.data(), g.channels_ld = words;
      run(g, isa, threads);
      const std::vector<unsigned char>& got = out.matrix.bytes;
      for (int64_t i = 0; i < results; ++i) {
        const double value = read(dtype, got.data() + i * dtype_size(dtype)), want = expected[i];
        CHECK(std::abs(value - want) <= epsilon * (std::abs(want) + std::sqrt(magnitude[i]) * 4 + 1),
              "%s grad %d dtype %d, %ld x %ld x %ld x %ld to %ld, kernel %ld x %ld, channels_last %d: [%ld] is %g, not "
              "%g",
              isa_name(isa), grad, (int)dtype, (long)c.batch, (long)c.in, (long)c.h, (long)c.w, (long)c.out,
              (long)c.kernel_h, (long)c.kernel_w, channels_last, (long)i, value, want);
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
      {2, 9, 20, 9, 14, 3, 3, 1, 1, 1, 1, 1, 1},    // a unit wide
      {1, 40, 20, 20, 37, 3, 3, 1, 1, 1, 1, 1, 1},  // several units, strips and chunks of channels
      {3, 150, 33, 5, 7, 1, 1, 1, 1, 0, 0, 1, 1},   // pixels one after another, several chunks
      {2, 40, 33, 9, 8, 1, 1, 2, 2, 0, 0, 1, 1},    // and at a stride
      {2, 18, 17, 11, 10, 3, 2, 2, 1, 1, 0, 1, 2},  // phases of rows, a dilation
      {5, 12, 3, 2, 1, 3, 3, 1, 1, 1, 1, 1, 1},     // images of a few pixels, fewer than four rows
      {2, 33, 6, 9, 9, 7, 7, 1, 1, 3, 3, 1, 1},     // more taps than lines fit
  };
  for (bool grad : {false, true})
    for (int dtype = 0; dtype < 4; ++dtype)
      for (const Case& c : cases)
        for (bool channels_last : {false, true})
          for (double density : {0.0, 0.4, 1.0}) one_problem(grad, (Dtype)dtype, c, density, channels_last);
  return report("gathered_conv2d");
}
