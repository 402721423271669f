// The passes that go with a product by torch's library (csrc/cuda/masked_copy.h), run on the host (csrc/simt), against
// loops in double. Operands are eighths, so that all but gates are exact; what they lie in is exactly their bytes.
#include <cstring>
#include <limits>

#include "../cuda/masked_copy.h"
#include "results.h"

using namespace maskfuse;
using namespace maskfuse::test;

namespace {

enum class Mask { bits, factor, gate };

double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }

// A weight or gradient of rows x columns under each kind of mask. `pad`: elements between rows.
void weights(Dtype dtype, Mask mask, int64_t rows, int64_t columns, int64_t pad) {
  Matrix w(dtype, rows, columns, pad), soft(dtype, rows, columns, pad), product(dtype, rows, columns, pad);
  const std::vector<uint32_t> bits = random_bits(rows, columns, 0.4);
  const auto factor = [&](int64_t i) {
    const int64_t r = i / columns, c = i % columns;
    return mask == Mask::bits     ? (double)(bits[r * mask_words(columns) + c / 32] >> (c % 32) & 1)
           : mask == Mask::factor ? soft.values[i]
                                  : sigmoid_of(soft.values[i]);
  };
  const std::vector<double> values = w.values;
  if (mask == Mask::bits)
    for (int64_t i = 0; i < rows * columns; ++i)
      if (factor(i) == 0) w.set(dtype, i / columns, i % columns, std::numeric_limits<double>::quiet_NaN());
  cuda::MaskedGemm g{};
  g.pass = Pass::forward, g.dtype = dtype, g.n = rows, g.k = columns, g.b = w.bytes.data(), g.b_ld = w.ld;
  g.bits = mask == Mask::bits ? bits.data() : nullptr, g.bits_ld = mask_words(columns);
  g.factor = soft.bytes.data(), g.factor_ld = soft.ld, g.gate = mask == Mask::gate;
  const int64_t begin = rows / 3, end = rows, size = dtype_size(dtype);
  std::vector<unsigned char> copy((size_t)((end - begin) * columns * size));
  std::vector<double> want;
  for (int64_t i = begin * columns; i < end * columns; ++i) want.push_back(factor(i) == 0 ? 0 : values[i] * factor(i));
  CHECK(cuda::masked_copy(g, begin, end, copy.data(), nullptr) == cudaSuccess, "masked_copy");
  check_result(dtype, copy, want, mask != Mask::gate, "copy");

  // Of input_grad the same rows, whose columns are the result's.
  g.pass = Pass::input_grad, g.k = rows, g.n = columns;
  std::fill(copy.begin(), copy.end(), 0xff);
  CHECK(cuda::masked_copy(g, begin, end, copy.data(), nullptr) == cudaSuccess, "masked_copy");
  check_result(dtype, copy, want, mask != Mask::gate, "copy of input_grad");

  // The result of weight_grad, in place, without anything between its rows; of a gate the scores' beside it.
  Matrix c(dtype, rows, columns), weight(dtype, rows, columns, pad);
  std::vector<unsigned char> scores((size_t)(rows * columns * size));
  std::vector<double> want_scores;
  want.clear();
  for (int64_t i = 0; i < rows * columns; ++i) {
    want.push_back(c.values[i] * factor(i));
    want_scores.push_back(c.values[i] * weight.values[i] * factor(i) * sigmoid_of(-soft.values[i]));
  }
  g.pass = Pass::weight_grad, g.m = rows, g.n = columns, g.c = c.bytes.data(), g.c_ld = columns;
  g.weight = weight.bytes.data(), g.weight_ld = weight.ld, g.c_scores = scores.data(), g.c_scores_ld = columns;
  CHECK(cuda::masked_result(g, nullptr) == cudaSuccess, "masked_result");
  check_result(dtype, c.bytes, want, mask != Mask::gate, "result");
  if (mask == Mask::gate) check_result(dtype, scores, want_scores, false, "gradient of scores");
}

// Channels that each image chooses, or all alike.
void images(Dtype dtype, int64_t batch, int64_t pixels, int64_t channels, bool alike) {
  Matrix image(dtype, batch * pixels, channels);
  const std::vector<uint32_t> bits = random_bits(alike ? 1 : batch, channels, 0.4);
  std::vector<double> want;
  for (int64_t i = 0; i < batch * pixels * channels; ++i) {
    const int64_t sample = i / channels / pixels, c = i % channels;
    const bool chosen = bits[(alike ? 0 : sample * mask_words(channels)) + c / 32] >> (c % 32) & 1;
    if (!chosen) image.set(dtype, i / channels, c, std::numeric_limits<double>::quiet_NaN());
    want.push_back(chosen ? image.values[i] : 0);
  }
  std::vector<unsigned char> to(image.bytes.size());
  cuda::MaskedImage problem{
      dtype, batch, pixels, channels, bits.data(), alike ? 0 : mask_words(channels), image.bytes.data(), to.data()};
  CHECK(cuda::masked_image(problem, nullptr) == cudaSuccess, "masked_image");
  check_result(dtype, to, want, true, "image");
  problem.to = image.bytes.data();
  CHECK(cuda::masked_image(problem, nullptr) == cudaSuccess, "masked_image in place");
  check_result(dtype, image.bytes, want, true, "image in place");
}

}  // namespace

int main() {
  for (Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::f16}) {
    for (Mask mask : {Mask::bits, Mask::factor, Mask::gate}) {
      weights(dtype, mask, 1, 1, 0);
      weights(dtype, mask, 7, 72, 0);    // whole pieces of 16 bytes
      weights(dtype, mask, 9, 64, 8);    // and between rows
      weights(dtype, mask, 6, 64, 3);    // not
      weights(dtype, mask, 5, 1100, 0);  // more columns than a block has, the last ones a part of a thread's
    }
    for (bool alike : {false, true}) {
      images(dtype, 3, 7, 40, alike);
      images(dtype, 2, 5, 37, alike);
    }
  }
  return report("cuda_masked_copy");
}
