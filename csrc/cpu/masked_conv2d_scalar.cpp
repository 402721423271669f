// masked_conv2d as plain loops: no intrinsics, no blocking, no packing, any number of groups. It runs on every machine,
// and it is what the fast versions are to be read against.
#include "masked_conv2d.h"
#include "scalar_dtype.h"

namespace maskfuse {
namespace {

bool active(const MaskedConv& g, int64_t row, int64_t column) {
  return g.bits[row * g.bits_ld + column / 32] >> (column % 32) & 1;
}

template <class T>
T* pixel(const Image& i, int64_t n, int64_t c, int64_t y, int64_t x) {
  return (T*)i.data + n * i.n + c * i.c + y * i.y + x * i.x;
}

template <class T>
void forward_task(const MaskedConv& g, const ConvPart& part) {
  using S = typename Accumulator<T>::type;
  const ConvShape& s = g.shape;
  for (int64_t n = part.m0; n < part.m1; ++n)
    for (int64_t o = part.n0; o < part.n1; ++o) {
      const int64_t channel0 = o / (s.out / s.groups) * (s.in / s.groups);
      for (int64_t y = 0; y < s.out_h; ++y)
        for (int64_t x = 0; x < s.out_w; ++x) {
          S sum = g.bias ? S(load((const T*)g.bias + o)) : S(0);
          for (int64_t k = 0; k < s.columns(); ++k) {
            const int64_t iy = y * s.stride_h + k / s.kernel_w % s.kernel_h * s.dilation_h - s.pad_h;
            const int64_t ix = x * s.stride_w + k % s.kernel_w * s.dilation_w - s.pad_w;
            if (iy < 0 || iy >= s.in_h || ix < 0 || ix >= s.in_w || !active(g, o, k)) continue;
            sum += S(load((const T*)g.weight + o * g.weight_ld + k)) *
                   S(load(pixel<T>(g.input, n, channel0 + k / s.taps(), iy, ix)));
          }
          store(pixel<T>(g.output, n, o, y, x), sum);
        }
    }
}

template <class T>
void input_grad_task(const MaskedConv& g, const ConvPart& part) {
  using S = typename Accumulator<T>::type;
  const ConvShape& s = g.shape;
  const int64_t group_in = s.in / s.groups, group_out = s.out / s.groups;
  for (int64_t n = part.m0; n < part.m1; ++n)
    for (int64_t c = part.n0; c < part.n1; ++c)
      for (int64_t iy = 0; iy < s.in_h; ++iy)
        for (int64_t ix = 0; ix < s.in_w; ++ix) {
          S sum = 0;
          for (int64_t tap = 0; tap < s.taps(); ++tap) {
            const int64_t y = iy + s.pad_h - tap / s.kernel_w * s.dilation_h;
            const int64_t x = ix + s.pad_w - tap % s.kernel_w * s.dilation_w;
            if (y < 0 || y % s.stride_h != 0 || y / s.stride_h >= s.out_h || x < 0 || x % s.stride_w != 0 ||
                x / s.stride_w >= s.out_w)
              continue;
            const int64_t k = c % group_in * s.taps() + tap, first = c / group_in * group_out;
            for (int64_t o = first; o < first + group_out; ++o)
              if (active(g, o, k))
                sum += S(load((const T*)g.weight + o * g.weight_ld + k)) *
                       S(load(pixel<T>(g.output, n, o, y / s.stride_h, x / s.stride_w)));
          }
          store(pixel<T>(g.input, n, c, iy, ix), sum);
        }
}

template <class T>
void weight_grad_task(const MaskedConv& g, const ConvPart& part) {
  using S = typename Accumulator<T>::type;
  const ConvShape& s = g.shape;
  for (int64_t o = part.n0; o < part.n1; ++o) {
    const int64_t channel0 = o / (s.out / s.groups) * (s.in / s.groups);
    for (int64_t k = 0; k < s.columns(); ++k) {
      S sum = 0;
      for (int64_t n = 0; active(g, o, k) && n < s.batch; ++n)
        for (int64_t y = 0; y < s.out_h; ++y)
          for (int64_t x = 0; x < s.out_w; ++x) {
            const int64_t iy = y * s.stride_h + k / s.kernel_w % s.kernel_h * s.dilation_h - s.pad_h;
            const int64_t ix = x * s.stride_w + k % s.kernel_w * s.dilation_w - s.pad_w;
            if (iy < 0 || iy >= s.in_h || ix < 0 || ix >= s.in_w) continue;
            sum += S(load(pixel<T>(g.output, n, o, y, x))) *
                   S(load(pixel<T>(g.input, n, channel0 + k / s.taps(), iy, ix)));
          }
      store((T*)g.weight_grad + o * g.weight_grad_ld + k, sum);
    }
  }
}

template <class T>
ConvTask task_of(Pass pass) {
  return pass == Pass::forward ? forward_task<T> : pass == Pass::input_grad ? input_grad_task<T> : weight_grad_task<T>;
}

}  // namespace

ConvTask masked_conv2d_naive(const MaskedConv& g) {
  switch (g.dtype) {
    case Dtype::f64:
      return task_of<double>(g.pass);
    case Dtype::bf16:
      return task_of<Bf16>(g.pass);
    case Dtype::f16:
      return task_of<Fp16>(g.pass);
    default:
      return task_of<float>(g.pass);
  }
}

}  // namespace maskfuse
