// The CUDA kernels of masked_linear and masked_conv2d, each by name and in every way it can be cut, run on the host
// (csrc/simt) against sums in double. Operands are eighths, so that all sums but those of gates are exact.
#include <limits>

#include "../cuda/mask_lists.h"
#include "../cuda/masked_conv2d.h"
#include "../cuda/masked_linear.h"
#include "images.h"
#include "results.h"

using namespace maskfuse;
using namespace maskfuse::test;
using cuda::ConvKernel;
using cuda::LinearKernel;

namespace {

enum class Mask { bits, factor, gate };

struct Lists {
  std::vector<int32_t> of_rows, of_channels;
};
Lists lists_of(const std::vector<uint32_t>& by_taps, int64_t rows, int64_t taps, int64_t channels) {
  const cuda::ListShape r = cuda::lists_of_rows(rows, taps, channels);
  const cuda::ListShape c = cuda::lists_of_channels(rows, taps, channels);
  Lists lists{std::vector<int32_t>((size_t)(r.groups * (1 + r.blocks))),
              std::vector<int32_t>((size_t)(c.groups * (1 + c.blocks)))};
  CHECK(cuda::mask_lists(by_taps.data(), rows, taps, channels, lists.of_rows.data(), lists.of_channels.data(),
                         nullptr) == cudaSuccess,
        "mask_lists");
  return lists;
}

double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }

// Bits of which most blocks of 128 x 64 are empty: squares of 128 by turns, and of the others one column in three.
std::vector<uint32_t> blocky_bits(int64_t rows, int64_t columns) {
  std::vector<uint32_t> bits = random_bits(rows, columns, 0.4);
  const int64_t words = mask_words(columns);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t w = 0; w < words; ++w)
      if ((r / 128 + w / 4) % 2 || w / 2 % 3 == 1) bits[r * words + w] = 0;
  return bits;
}

// One pass of a linear layer of `out` x `in` weights by one kernel. `pad`: elements between rows.
void linear(Pass pass, Dtype dtype, Mask mask, int64_t batch, int64_t out, int64_t in, int64_t pad,
            const cuda::LinearChoice& choice, bool with_lists) {
  cuda::MaskedGemm g{};
  g.pass = pass, g.dtype = dtype;
  Matrix x(dtype, batch, in, pad), dy(dtype, batch, out, pad), w(dtype, out, in, pad), soft(dtype, out, in, pad),
      bias(dtype, 1, out);
  const std::vector<uint32_t> bits = with_lists ? blocky_bits(out, in) : random_bits(out, in, 0.4);
  const int64_t words = mask_words(in);
  const auto factor = [&](int64_t o, int64_t i) {
    const double s = soft.values[o * in + i];
    return mask == Mask::bits     ? (double)(bits[o * words + i / 32] >> (i % 32) & 1)
           : mask == Mask::factor ? s
                                  : sigmoid_of(s);
  };
  const std::vector<double> weights = w.values;
  if (mask == Mask::bits) {
    for (int64_t o = 0; o < out; ++o)
      for (int64_t i = 0; i < in; ++i)
        if (factor(o, i) == 0) w.set(dtype, o, i, std::numeric_limits<double>::quiet_NaN());
    g.bits = bits.data(), g.bits_ld = words;
  } else {
    g.factor = soft.bytes.data(), g.factor_ld = soft.ld, g.gate = mask == Mask::gate;
  }
  const Lists lists = lists_of(bits, out, 1, in);
  if (with_lists) g.lists = pass == Pass::input_grad ? lists.of_channels.data() : lists.of_rows.data();

  std::vector<double> want, want_scores;
  switch (pass) {
    case Pass::forward:
      g.m = batch, g.n = out, g.k = in, g.a = x.bytes.data(), g.a_ld = x.ld, g.bias = bias.bytes.data();
      for (int64_t r = 0; r < batch; ++r)
        for (int64_t o = 0; o < out; ++o) {
          double sum = bias.values[o];
          for (int64_t i = 0; i < in; ++i) sum += x.values[r * in + i] * weights[o * in + i] * factor(o, i);
          want.push_back(sum);
        }
      break;
    case Pass::input_grad:
      g.m = batch, g.n = in, g.k = out, g.a = dy.bytes.data(), g.a_ld = dy.ld;
      for (int64_t r = 0; r < batch; ++r)
        for (int64_t i = 0; i < in; ++i) {
          double sum = 0;
          for (int64_t o = 0; o < out; ++o) sum += dy.values[r * out + o] * weights[o * in + i] * factor(o, i);
          want.push_back(sum);
        }
      break;
    default:
      g.m = out, g.n = in, g.k = batch, g.a = dy.bytes.data(), g.a_ld = dy.ld;
      for (int64_t o = 0; o < out; ++o)
        for (int64_t i = 0; i < in; ++i) {
          double sum = 0;
          for (int64_t r = 0; r < batch; ++r) sum += dy.values[r * out + o] * x.values[r * in + i];
          want.push_back(sum * factor(o, i));
          want_scores.push_back(sum * weights[o * in + i] * factor(o, i) * (1 - factor(o, i)));
        }
  }
  g.b = pass == Pass::weight_grad ? x.bytes.data() : w.bytes.data();
  g.b_ld = pass == Pass::weight_grad ? x.ld : w.ld;
  std::vector<unsigned char> result((size_t)(g.m * g.n * dtype_size(dtype)), 0xff), scores = result;
  g.c = result.data(), g.c_ld = g.n;
  if (pass == Pass::weight_grad && mask == Mask::gate)
    g.weight = w.bytes.data(), g.weight_ld = w.ld, g.c_scores = scores.data(), g.c_scores_ld = g.n;
  const auto workspace = buffer((size_t)choice.workspace_bytes);
  CHECK(cuda::masked_linear(g, choice, workspace.get(), nullptr) == cudaSuccess, "launch");
  const char* const what = pass == Pass::forward ? "forward" : pass == Pass::input_grad ? "input_grad" : "weight_grad";
  check_result(dtype, result, want, mask != Mask::gate, what);
  if (g.c_scores) check_result(dtype, scores, want_scores, false, "gradient of scores");
}

// The choices a product of m x n over k can be run with.
std::vector<cuda::LinearChoice> linear_choices(Dtype dtype, int64_t m, int64_t n, int64_t k) {
  std::vector<cuda::LinearChoice> choices = {{LinearKernel::naive, false, 1, 0, {}}};
  const int64_t element = dtype_size(dtype), padded = (n + 7) / 8 * 8;
  for (int splits : {1, 2}) {
    if (splits * 64 > k && splits > 1) continue;
    if (element > 2)
      choices.push_back({LinearKernel::element, false, splits, splits > 1 ? splits * m * n * element : 0, {}});
    else
      for (bool large : {false, true})
        choices.push_back({LinearKernel::product, large, splits, splits > 1 ? splits * m * padded * 4 : 0, {}});
  }
  return choices;
}

void linear_layers() {
  const struct {
    int64_t batch, out, in, pad;
  } shapes[] = {{5, 9, 7, 0}, {33, 70, 200, 0}, {130, 24, 72, 3}, {2, 140, 136, 8}};
  for (const auto& s : shapes)
    for (Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::f16})
      for (Pass pass : {Pass::forward, Pass::input_grad, Pass::weight_grad})
        for (Mask mask : {Mask::bits, Mask::factor, Mask::gate}) {
          const int64_t m = pass == Pass::weight_grad ? s.out : s.batch, n = pass == Pass::input_grad ? s.in
                                                                             : pass == Pass::forward  ? s.out
                                                                                                      : s.in;
          const int64_t k = pass == Pass::forward ? s.in : pass == Pass::input_grad ? s.out : s.batch;
          bool with_lists = false;
          for (const cuda::LinearChoice& choice : linear_choices(dtype, m, n, k)) {
            // Lists say where bits are: a real-valued mask has none.
            linear(pass, dtype, mask, s.batch, s.out, s.in, s.pad, choice, with_lists && mask == Mask::bits);
            with_lists = !with_lists;
          }
        }
}

// Hopper's kernel, with tiles that a block takes one after another or has to itself, stages that come round again, and
// operands that end within tiles, boxes and words.
void hopper() {
  const struct {
    int64_t batch, out, in, pad;
  } shapes[] = {{8, 8, 8, 0}, {140, 136, 200, 8}, {300, 264, 72, 0}, {40, 520, 600, 0}};
  for (const auto& s : shapes)
    for (Dtype dtype : {Dtype::bf16, Dtype::f16})
      for (Pass pass : {Pass::forward, Pass::input_grad, Pass::weight_grad})
        for (const auto& [large, blocks] : {std::pair{true, 1}, {true, 200}, {false, 3}})
          linear(pass, dtype, Mask::bits, s.batch, s.out, s.in, s.pad,
                 {LinearKernel::product_sm90, large, 1, 0, {}, blocks}, blocks != 1);
}

// One pass of a convolution by one kernel, with channels innermost in images and weight.
void conv(Pass pass, Dtype dtype, const Case& c, const cuda::ConvChoice& choice, bool with_lists) {
  const ConvShape s = c.shape();
  const int64_t taps = s.taps(), in = c.in / c.groups, out = c.out / c.groups, words = mask_words(in);
  Pixels x(dtype, true, c.batch, c.in, c.h, c.w), y(dtype, true, c.batch, c.out, s.out_h, s.out_w);
  Matrix weight(dtype, c.out, taps * in), bias(dtype, 1, c.out);
  const std::vector<uint32_t> bits = random_bits(c.out * taps, in, 0.4);
  const auto active = [&](int64_t o, int64_t tap, int64_t i) {
    return bits[(o * taps + tap) * words + i / 32] >> (i % 32) & 1;
  };
  const std::vector<double> weights = weight.values;
  for (int64_t o = 0; o < c.out; ++o)
    for (int64_t k = 0; k < taps * in; ++k)
      if (!active(o, k / in, k % in)) weight.set(dtype, o, k, std::numeric_limits<double>::quiet_NaN());

  const int64_t results = pass == Pass::forward      ? (int64_t)y.matrix.values.size()
                          : pass == Pass::input_grad ? (int64_t)x.matrix.values.size()
                                                     : c.out * in * taps;
  std::vector<double> want((size_t)results, 0);
  for (int64_t n = 0; n < c.batch; ++n)
    for (int64_t o = 0; o < c.out; ++o)
      for (int64_t oy = 0; oy < s.out_h; ++oy)
        for (int64_t ox = 0; ox < s.out_w; ++ox) {
          if (pass == Pass::forward) want[y.at(n, o, oy, ox)] += bias.values[o];
          for (int64_t tap = 0; tap < taps; ++tap) {
            const int64_t iy = oy * c.stride_h + tap / c.kernel_w * c.dilation_h - c.pad_h;
            const int64_t ix = ox * c.stride_w + tap % c.kernel_w * c.dilation_w - c.pad_w;
            if (iy < 0 || iy >= c.h || ix < 0 || ix >= c.w) continue;
            for (int64_t i = 0; i < in; ++i) {
              if (!active(o, tap, i)) continue;
              const int64_t channel = o / out * in + i;
              const double w = weights[(o * taps + tap) * in + i], px = x.value(n, channel, iy, ix),
                           py = y.value(n, o, oy, ox);
              if (pass == Pass::forward) want[y.at(n, o, oy, ox)] += w * px;
              if (pass == Pass::input_grad) want[x.at(n, channel, iy, ix)] += w * py;
              if (pass == Pass::weight_grad) want[(o * in + i) * taps + tap] += px * py;
            }
          }
        }

  const Lists lists = lists_of(bits, c.out, taps, in);
  cuda::MaskedConv g{};
  g.pass = pass, g.dtype = dtype, g.shape = s;
  g.input = x.matrix.bytes.data(), g.output = y.matrix.bytes.data(), g.weight = weight.bytes.data();
  g.bits = bits.data(), g.bias = pass == Pass::forward ? bias.bytes.data() : nullptr;
  if (with_lists && c.groups == 1 && pass != Pass::weight_grad)
    g.lists = pass == Pass::forward ? lists.of_rows.data() : lists.of_channels.data();
  std::vector<unsigned char> result((size_t)(results * dtype_size(dtype)), 0xff);
  g.result = result.data();
  const auto workspace = buffer((size_t)choice.workspace_bytes);
  CHECK(cuda::masked_conv2d(g, choice, workspace.get(), nullptr) == cudaSuccess, "launch");
  check_result(dtype, result, want, true, "convolution");
}

void convolutions() {
  const Case cases[] = {{2, 5, 7, 6, 5, 3, 3, 1, 1, 1, 1, 1, 1},      {1, 72, 40, 7, 8, 3, 3, 1, 1, 1, 1, 1, 1},
                        {2, 24, 16, 9, 8, 3, 2, 2, 3, 2, 1, 1, 1},    {1, 8, 16, 12, 11, 2, 3, 1, 1, 0, 4, 3, 2},
                        {2, 12, 18, 6, 6, 3, 3, 1, 1, 1, 1, 1, 1, 3}, {3, 16, 24, 9, 7, 1, 1, 1, 1, 0, 0, 1, 1}};
  for (const Case& c : cases)
    for (Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::f16})
      for (Pass pass : {Pass::forward, Pass::input_grad, Pass::weight_grad}) {
        const ConvShape s = c.shape();
        const int64_t largest = c.groups * (s.pixels() + c.batch * c.h * c.w + c.out) * (c.in + c.out) * s.taps() * 2;
        bool with_lists = false;
        for (int splits : {1, 2})
          for (int kernel = 0; kernel < 3; ++kernel) {
            const bool half = dtype_size(dtype) == 2;
            if (kernel == 2 ? splits > 1 : (kernel == 1 && !half)) continue;
            const ConvKernel name = kernel == 2 ? ConvKernel::naive : half ? ConvKernel::product : ConvKernel::element;
            conv(pass, dtype, c, {name, kernel == 1, splits, splits > 1 ? 2 * largest * 8 : 0}, with_lists);
            with_lists = !with_lists;
          }
        // By the product of matrices that a convolution by single pixels is.
        if (s.taps() == 1)
          for (const cuda::LinearChoice& linear : linear_choices(dtype, c.out, c.in, c.batch * c.h * c.w))
            conv(pass, dtype, c, {ConvKernel::linear, false, 1, linear.splits > 1 ? 2 * largest * 8 : 0, linear}, true);
      }
}

}  // namespace

int main() {
  for (uint64_t seed : {1, 2}) {
    simt::seed(seed);
    linear_layers();
    hopper();
    convolutions();
  }
  return report("cuda_products");
}
