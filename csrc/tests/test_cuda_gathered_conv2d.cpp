// The CUDA kernels of gathered_conv2d, each by name and in every way it can be cut, and the lists of blocks that they
// visit, run on the host (csrc/simt). Operands are eighths, so that all sums are exact.
#include <limits>

#include "../cuda/gathered_conv2d.h"
#include "../cuda/gathered_conv2d_blocks.h"
#include "../cuda/gathered_conv2d_operands.h"
#include "images.h"
#include "results.h"

using namespace maskfuse;
using namespace maskfuse::test;
using cuda::ConvKernel;

namespace {

// Bits of `rows` images: channels by themselves, a share of them, or whole blocks of 64.
std::vector<uint32_t> some_channels(int64_t rows, int64_t channels, bool blocks, double share) {
  if (!blocks) return random_bits(rows, channels, share);
  const int64_t words = mask_words(channels), count = (channels + 63) / 64;
  const std::vector<uint32_t> chosen = random_bits(rows, count, 0.4);
  std::vector<uint32_t> bits((size_t)(rows * words), 0);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < channels; ++c)
      if (chosen[r * mask_words(count) + c / 64 / 32] >> (c / 64 % 32) & 1) bits[r * words + c / 32] |= 1u << (c % 32);
  return bits;
}

void images_of_pixels() {
  for (int64_t ld : {0, 1})
    for (int64_t plane = 1; plane <= 7; ++plane)
      for (int64_t batch = 1; batch <= 4; ++batch)
        for (int64_t first = 0; first < batch * plane; ++first)
          for (int64_t count = 1; count <= 9; ++count) {
            const cuda::ImageRange range = cuda::ChannelBits{nullptr, ld}.images(first, count, batch * plane, plane);
            const int64_t last = std::min(first + count, batch * plane) - 1;
            CHECK(range.first == (ld ? first / plane : 0), "pixel %ld of %ld", (long)first, (long)plane);
            CHECK(range.last == (ld ? last / plane : 0), "pixel %ld and %ld more", (long)first, (long)count);
          }
}

cuda::GatheredConv problem_of(Pass pass, Dtype dtype, const ConvShape& shape, const std::vector<uint32_t>& bits,
                              int64_t ld) {
  cuda::GatheredConv g{};
  g.conv.pass = pass, g.conv.dtype = dtype, g.conv.shape = shape;
  g.channels = bits.data(), g.ld = ld;
  return g;
}

// A list holds a block exactly where a pixel and a channel of it meet a tile's: found here one by one.
void lists(Pass pass, const Case& c, bool shared, bool blocks) {
  const ConvShape s = c.shape();
  const int64_t words = mask_words(c.in), ld = shared ? 0 : words, plane = s.out_h * s.out_w;
  const std::vector<uint32_t> bits = some_channels(shared ? 1 : c.batch, c.in, blocks, 0.02);
  const cuda::GatheredConv g = problem_of(pass, Dtype::bf16, s, bits, ld);
  const cuda::ListShape shape = cuda::lists_of(g);
  const cuda::ConvProduct p = cuda::conv_product(g.conv);
  if (pass == Pass::input_grad || c.in <= (pass == Pass::forward ? 64 : 128) || (shared && pass != Pass::forward)) {
    CHECK(shape.groups == 0, "lists for nothing");
    return;
  }
  const int64_t outer = pass == Pass::forward ? s.pixels() : p.n;
  CHECK(shape.groups == (outer + 127) / 128 && shape.blocks == p.depth_blocks, "shape of lists");
  std::vector<int32_t> got((size_t)(shape.groups * (1 + shape.blocks)), -1);
  CHECK(cuda::gathered_conv2d_lists(g, got.data(), nullptr) == cudaSuccess, "launch");

  const int64_t tap_blocks = (c.in + 63) / 64;
  for (int64_t group = 0; group < shape.groups; ++group) {
    std::vector<bool> wanted((size_t)shape.blocks, false);
    const auto meet = [&](int64_t pixel, int64_t channel, int64_t block) {
      if (bits[pixel / plane * ld + channel / 32] >> (channel % 32) & 1) wanted[block] = true;
    };
    for (int64_t at = 128 * group; at < std::min(outer, 128 * (group + 1)); ++at) {
      if (pass == Pass::forward) {
        for (int64_t tap = 0; tap < s.taps(); ++tap)
          for (int64_t channel = 0; channel < c.in; ++channel) meet(at, channel, tap * tap_blocks + channel / 64);
      } else if (at % p.padded < c.in) {
        for (int64_t pixel = 0; pixel < s.pixels(); ++pixel) meet(pixel, at % p.padded, pixel / 64);
      }
    }
    const int32_t* list = got.data() + group * (1 + shape.blocks);
    int32_t count = 0;
    for (int64_t block = 0; block < shape.blocks; ++block)
      if (wanted[block]) {
        ++count;
        CHECK(list[count] == block, "list %ld, place %d: %d, expected %ld", (long)group, count, list[count],
              (long)block);
      }
    CHECK(list[0] == count, "list %ld: %d blocks, expected %d", (long)group, list[0], count);
    for (int64_t i = count; i < shape.blocks; ++i) CHECK(list[1 + i] == 0, "behind list %ld", (long)group);
  }
}

void lists_hold_what_is_met() {
  const Case cases[] = {{3, 200, 16, 9, 7, 3, 3, 1, 1, 1, 1, 1, 1},   {5, 130, 24, 8, 8, 1, 1, 1, 1, 0, 0, 1, 1},
                        {9, 70, 8, 13, 11, 3, 2, 2, 1, 1, 0, 1, 2},   {300, 192, 8, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1},
                        {2, 1000, 3, 17, 16, 2, 2, 1, 1, 0, 0, 1, 1}, {2, 128, 3, 40, 5, 3, 3, 1, 1, 1, 1, 1, 1},
                        {150, 136, 4, 8, 8, 1, 1, 1, 1, 0, 0, 1, 1}};
  for (const Case& c : cases)
    for (Pass pass : {Pass::forward, Pass::input_grad, Pass::weight_grad})
      for (bool shared : {false, true})
        for (bool blocks : {false, true}) lists(pass, c, shared, blocks);
}

// One pass by one kernel. What is not chosen is NaN, and so is the result before it is written.
void conv(Pass pass, Dtype dtype, const Case& c, const cuda::ConvChoice& product, bool shared, bool blocks) {
  const ConvShape s = c.shape();
  const int64_t taps = s.taps(), words = mask_words(c.in), ld = shared ? 0 : words;
  Pixels x(dtype, true, c.batch, c.in, c.h, c.w), y(dtype, true, c.batch, c.out, s.out_h, s.out_w);
  Matrix weight(dtype, c.out, taps * c.in), bias(dtype, 1, c.out);
  const std::vector<uint32_t> bits = some_channels(shared ? 1 : c.batch, c.in, blocks, 0.5);
  const auto chosen = [&](int64_t n, int64_t i) { return bits[n * ld + i / 32] >> (i % 32) & 1; };

  const int64_t results = pass == Pass::forward      ? (int64_t)y.matrix.values.size()
                          : pass == Pass::input_grad ? (int64_t)x.matrix.values.size()
                                                     : c.out * c.in * taps;
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
            for (int64_t i = 0; i < c.in; ++i) {
              if (!chosen(n, i)) continue;
              const double w = weight.values[(o * taps + tap) * c.in + i], px = x.value(n, i, iy, ix),
                           py = y.value(n, o, oy, ox);
              if (pass == Pass::forward) want[y.at(n, o, oy, ox)] += w * px;
              if (pass == Pass::input_grad) want[x.at(n, i, iy, ix)] += w * py;
              if (pass == Pass::weight_grad) want[(o * c.in + i) * taps + tap] += px * py;
            }
          }
        }
  if (pass != Pass::input_grad)
    for (int64_t n = 0; n < c.batch; ++n)
      for (int64_t i = 0; i < c.in; ++i)
        for (int64_t p = 0; p < c.h * c.w; ++p)
          if (!chosen(n, i))
            x.matrix.set(dtype, 0, x.at(n, i, p / c.w, p % c.w), std::numeric_limits<double>::quiet_NaN());

  cuda::GatheredConv g = problem_of(pass, dtype, s, bits, ld);
  g.conv.input = x.matrix.bytes.data(), g.conv.output = y.matrix.bytes.data(), g.conv.weight = weight.bytes.data();
  g.conv.bias = pass == Pass::forward ? bias.bytes.data() : nullptr;
  cuda::GatheredChoice choice{product, cuda::lists_of(g), 0};
  choice.workspace_bytes = product.workspace_bytes + choice.lists.groups * (1 + choice.lists.blocks) * 4;
  std::vector<unsigned char> result((size_t)(results * dtype_size(dtype)), 0xff);
  g.conv.result = result.data();
  const auto workspace = buffer((size_t)choice.workspace_bytes);
  CHECK(cuda::gathered_conv2d(g, choice, workspace.get(), nullptr) == cudaSuccess, "launch");
  check_result(dtype, result, want, true, "convolution");
}

// Channels of each image or shared, by themselves or in blocks: two of the four ways.
void convolutions(bool turned) {
  const Case cases[] = {{3, 5, 7, 6, 5, 3, 3, 1, 1, 1, 1, 1, 1},    {2, 72, 40, 7, 8, 3, 3, 1, 1, 1, 1, 1, 1},
                        {2, 24, 16, 9, 8, 3, 2, 2, 3, 2, 1, 1, 1},  {1, 8, 16, 12, 11, 2, 3, 1, 1, 0, 4, 3, 2},
                        {4, 200, 24, 9, 7, 1, 1, 1, 1, 0, 0, 1, 1}, {3, 129, 9, 6, 8, 3, 3, 1, 1, 1, 1, 1, 1},
                        {70, 136, 5, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1}};
  for (const Case& c : cases)
    for (Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::f16})
      for (Pass pass : {Pass::forward, Pass::input_grad, Pass::weight_grad}) {
        if (c.in > 100 && dtype != Dtype::f32 && dtype != Dtype::bf16) continue;  // the same kernels, and slow to check
        const bool half = dtype_size(dtype) == 2;
        const ConvShape s = c.shape();
        const int64_t most = 2 * 8 * (s.pixels() + c.batch * c.h * c.w + c.out) * (c.in + c.out + 8) * s.taps();
        for (bool shared : {false, true}) {
          const bool blocks = shared != turned;
          conv(pass, dtype, c, {ConvKernel::naive, false, 1, 0}, shared, blocks);
          for (int splits : {1, 2}) {
            const int64_t workspace = splits > 1 ? most : 0;
            if (!half) conv(pass, dtype, c, {ConvKernel::element, false, splits, workspace}, shared, blocks);
            if (half) conv(pass, dtype, c, {ConvKernel::product, false, splits, workspace}, shared, blocks);
            if (half) conv(pass, dtype, c, {ConvKernel::product, true, splits, workspace}, shared, blocks);
          }
        }
      }
}

// The cut is that of a dense product of this size, and the workspace has room for the lists.
void choices() {
  const std::vector<uint32_t> none;
  const Case c{32, 256, 256, 56, 56, 3, 3, 1, 1, 1, 1, 1, 1};
  for (int64_t ld : {0, 8}) {
    const cuda::GatheredChoice choice = choose(problem_of(Pass::forward, Dtype::bf16, c.shape(), none, ld), 132);
    CHECK(choice.product.kernel == ConvKernel::product && choice.product.large && choice.product.splits == 1, "large");
    CHECK(choice.lists.groups == 784 && choice.lists.blocks == 36 && choice.workspace_bytes == 784 * 37 * 4, "lists");
  }
}

}  // namespace

int main() {
  images_of_pixels();
  choices();
  for (uint64_t seed : {1, 2}) {
    simt::seed(seed);
    convolutions(seed == 2);
  }
  lists_hold_what_is_met();
  return report("cuda_gathered_conv2d");
}
