// gathered_conv2d as it is defined: a thread an element of the result, loops over what it sums, of which channels that
// an image does not choose are no part. Every type and pass; what the other kernels are tested against.
#include "channel_bits.h"
#include "gathered_conv2d.h"
#include "number.h"

namespace maskfuse::cuda {
namespace {

constexpr int kThreads = 256;

// Pointers of one type; images [batch][height][width][channels], the weight [out][taps][in].
template <class T>
struct Operands {
  const T *input, *output, *weight, *bias;
  T* result;
  ChannelBits channels;

  __device__ auto weight_at(const ConvShape& s, int64_t o, int64_t tap, int64_t c) const {
    return widened(weight[(o * s.taps() + tap) * s.in + c]);
  }
  __device__ auto input_at(const ConvShape& s, int64_t n, int64_t y, int64_t x, int64_t c) const {
    return widened(input[((n * s.in_h + y) * s.in_w + x) * s.in + c]);
  }
  __device__ auto output_at(const ConvShape& s, int64_t n, int64_t y, int64_t x, int64_t o) const {
    return widened(output[((n * s.out_h + y) * s.out_w + x) * s.out + o]);
  }
};

// The input's place for a tap of an output's, on one axis; or -1.
__device__ int64_t met(int64_t out, int64_t tap, int64_t stride, int64_t pad, int64_t dilation, int64_t size) {
  const int64_t at = out * stride + tap * dilation - pad;
  return at >= 0 && at < size ? at : -1;
}

// Element i of the result.
template <class T>
__device__ T forward(const ConvShape& s, const Operands<T>& p, int64_t i) {
  const int64_t o = i % s.out, x = i / s.out % s.out_w, y = i / s.out / s.out_w % s.out_h,
                n = i / s.out / s.out_w / s.out_h;
  typename Accumulator<T>::type sum = 0;
  for (int64_t tap = 0; tap < s.taps(); ++tap) {
    const int64_t iy = met(y, tap / s.kernel_w, s.stride_h, s.pad_h, s.dilation_h, s.in_h);
    const int64_t ix = met(x, tap % s.kernel_w, s.stride_w, s.pad_w, s.dilation_w, s.in_w);
    if (iy < 0 || ix < 0) continue;
    for (int64_t c = 0; c < s.in; ++c)
      if (p.channels.one(n, c)) sum = multiply_add(p.input_at(s, n, iy, ix, c), p.weight_at(s, o, tap, c), sum);
  }
  if (p.bias) sum += widened(p.bias[o]);
  return Rounded<T>::of(sum);
}

template <class T>
__device__ T input_grad(const ConvShape& s, const Operands<T>& p, int64_t i) {
  const int64_t c = i % s.in, x = i / s.in % s.in_w, y = i / s.in / s.in_w % s.in_h, n = i / s.in / s.in_w / s.in_h;
  typename Accumulator<T>::type sum = 0;
  if (!p.channels.one(n, c)) return T{};
  for (int64_t tap = 0; tap < s.taps(); ++tap) {
    const int64_t ty = y + s.pad_h - tap / s.kernel_w * s.dilation_h,
                  tx = x + s.pad_w - tap % s.kernel_w * s.dilation_w;
    const int64_t oy = ty / s.stride_h, ox = tx / s.stride_w;
    if (ty < 0 || tx < 0 || ty % s.stride_h || tx % s.stride_w || oy >= s.out_h || ox >= s.out_w) continue;
    for (int64_t o = 0; o < s.out; ++o)
      sum = multiply_add(p.output_at(s, n, oy, ox, o), p.weight_at(s, o, tap, c), sum);
  }
  return Rounded<T>::of(sum);
}

template <class T>
__device__ T weight_grad(const ConvShape& s, const Operands<T>& p, int64_t i) {
  const int64_t tap = i % s.taps(), c = i / s.taps() % s.in, o = i / s.taps() / s.in;
  typename Accumulator<T>::type sum = 0;
  for (int64_t n = 0; n < s.batch; ++n) {
    if (!p.channels.one(n, c)) continue;
    for (int64_t y = 0; y < s.out_h; ++y)
      for (int64_t x = 0; x < s.out_w; ++x) {
        const int64_t iy = met(y, tap / s.kernel_w, s.stride_h, s.pad_h, s.dilation_h, s.in_h);
        const int64_t ix = met(x, tap % s.kernel_w, s.stride_w, s.pad_w, s.dilation_w, s.in_w);
        if (iy < 0 || ix < 0) continue;
        sum = multiply_add(p.output_at(s, n, y, x, o), p.input_at(s, n, iy, ix, c), sum);
      }
  }
  return Rounded<T>::of(sum);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    gathered_naive_kernel(Pass pass, const ConvShape shape, const Operands<T> operands, int64_t count) {
  for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < count; i += (int64_t)gridDim.x * kThreads)
    operands.result[i] = pass == Pass::forward      ? forward(shape, operands, i)
                         : pass == Pass::input_grad ? input_grad(shape, operands, i)
                                                    : weight_grad(shape, operands, i);
}

template <class T>
cudaError_t run(const GatheredConv& g, cudaStream_t stream) {
  const MaskedConv& c = g.conv;
  const ConvShape& s = c.shape;
  const int64_t count = c.pass == Pass::forward      ? s.pixels() * s.out
                        : c.pass == Pass::input_grad ? s.batch * s.in_h * s.in_w * s.in
                                                     : s.out * s.columns();
  const Operands<T> operands{(const T*)c.input, (const T*)c.output, (const T*)c.weight,
                             (const T*)c.bias,  (T*)c.result,       {g.channels, g.ld}};
  return launch(gathered_naive_kernel<T>, grid_blocks(count, kThreads), kThreads, 0, stream, c.pass, s, operands,
                count);
}

}  // namespace

cudaError_t gathered_conv2d_naive(const GatheredConv& g, cudaStream_t stream) {
  switch (g.conv.dtype) {
    case Dtype::f32:
      return run<float>(g, stream);
    case Dtype::f64:
      return run<double>(g, stream);
    case Dtype::bf16:
      return run<Bf16>(g, stream);
    default:
      return run<Fp16>(g, stream);
  }
}

}  // namespace maskfuse::cuda
