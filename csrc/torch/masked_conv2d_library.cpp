#include "masked_conv2d_library.h"

#include <cstring>
#include <vector>

#include "../cpu/masked_conv2d_planner.h"
#include "channel_index.h"
#include "image.h"
#include "torch_conv2d.h"

namespace maskfuse {
namespace {

// Elements that are worth a thread.
constexpr int64_t kGrain = 16384;

MaskedGemm rows_of(const MaskedConv& g) {
  MaskedGemm w{};
  w.pass = g.pass, w.dtype = g.dtype;
  w.b = g.weight, w.b_ld = g.weight_ld;
  w.bits = g.bits, w.bits_ld = g.bits_ld;
  return w;
}

// Calls kernel(problem, part) for the weight's rows.
void for_rows(const MaskedConv& g, const MaskedGemm& w, Task kernel, char* copy) {
  const int64_t rows = g.shape.out, columns = g.shape.columns(), size = dtype_size(g.dtype);
  torch::stable::parallel_for(0, rows, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, columns)),
                              [&](int64_t begin, int64_t end) {
                                char* const to_rows = copy ? copy + begin * columns * size : nullptr;
                                kernel(w, {begin, end, 0, columns, 0, to_rows, nullptr});
                              });
}

// The weight with zeros where it is masked; [out, in / groups, kernel_h, kernel_w], contiguous.
Tensor masked_copy(const MaskedConv& g, const Tensor& weight, Isa isa) {
  const int64_t shape[] = {weight.size(0), weight.size(1), weight.size(2), weight.size(3)};
  Tensor copy = new_tensor(weight, shape, 4);
  for_rows(g, rows_of(g), masked_linear_kernels(isa)->masked_copy[(int)g.dtype][0], (char*)copy.mutable_data_ptr());
  return copy;
}

Tensor empty_weight(const Tensor& like, int64_t out, int64_t in, const ConvShape& s) {
  const int64_t shape[] = {out, in, s.kernel_h, s.kernel_w};
  return new_tensor(like, shape, 4);
}

// Channels with an active weight, and where each channel is among them.
struct Active {
  std::vector<int32_t> list, place;

  template <class IsActive>
  Active(int64_t channels, const IsActive& is_active) {
    for (int64_t c = 0; c < channels; ++c) {
      place.push_back(is_active(c) ? (int32_t)list.size() : kNoChannel);
      if (is_active(c)) list.push_back((int32_t)c);
    }
  }
};

// The convolution of the active channels alone.
class Compact {
 public:
  Compact(const MaskedConv& g, const ActiveChannels& p)
      : g(g),
        p(p),
        in(g.shape.in, [&](int64_t c) { return p.reads(c); }),
        out(g.shape.out, [&](int64_t c) { return p.writes(c); }) {}

  Tensor forward(const Tensor& input, const Tensor& weight) const {
    const std::optional<Tensor> bias = g.bias ? some_bias(weight) : std::nullopt;
    Tensor result = moved(convolution(g.shape, moved(input, in.list), weights(weight), bias), out.place);
    if (g.bias) fill(result);
    return result;
  }

  Tensor input_grad(const Tensor& grad, const Tensor& weight) const {
    const ConvShape& s = g.shape;
    const Tensor input = empty_image(grad, s.batch, p.in, s.in_h, s.in_w);  // its shape is all that is read of it
    return moved(convolution_backward(s, moved(grad, out.list), input, weights(weight), true), in.place);
  }

  Tensor weight_grad(const Tensor& grad, const Tensor& input) const {
    const ConvShape& s = g.shape;
    const Tensor some = as_contiguous(convolution_backward(s, moved(grad, out.list), moved(input, in.list),
                                                           empty_weight(grad, p.out, p.in, s), false));
    Tensor result = empty_weight(grad, s.out, s.in, s);
    torch::stable::zero_(result);
    each_kernel((char*)result.mutable_data_ptr(), (const char*)some.const_data_ptr(), true);
    return result;
  }

 private:
  const MaskedConv& g;
  const ActiveChannels& p;
  const Active in, out;

  // Channels of an image by a map: those of the list, or all with zeros where there is none.
  static Tensor moved(const Tensor& image, const std::vector<int32_t>& map) {
    const Activation from = activation(image, "masked_conv2d", "input");
    ChannelCopy copy;
    Tensor result = result_of(from, from.samples, (int64_t)map.size(), &copy);
    if (filled_with_zero(from, copy)) return result;
    copy.channel = map.data();
    for_units(copy, [&](int64_t begin, int64_t end) { copy_channels(copy, begin, end); });
    return result;
  }

  // Copies kernels between the weight's rows and columns and those of the active channels, taps that are masked as
  // zeros.
  void each_kernel(char* whole, const char* some, bool to_whole) const {
    const int64_t taps = g.shape.taps(), size = dtype_size(g.dtype), columns = g.shape.columns();
    const bool all = p.all_taps;
    torch::stable::parallel_for(
        0, p.out, std::max<int64_t>(1, kGrain / (p.in * taps)), [&](int64_t begin, int64_t end) {
          for (int64_t o = begin; o < end; ++o)
            for (int64_t c = 0; c < p.in; ++c) {
              char* const one = whole + (out.list[o] * columns + in.list[c] * taps) * size;
              char* const other = (char*)some + (o * p.in + c) * taps * size;
              std::memcpy(to_whole ? one : other, to_whole ? other : one, (size_t)(taps * size));
              for (int64_t t = 0; !all && t < taps; ++t)
                if (!tap_is_active(g, in.list[c], out.list[o], t))
                  std::memset((to_whole ? one : other) + t * size, 0, (size_t)size);
            }
        });
  }

  Tensor weights(const Tensor& weight) const {
    Tensor some = empty_weight(weight, p.out, p.in, g.shape);
    each_kernel((char*)g.weight, (const char*)some.mutable_data_ptr(), false);
    return some;
  }

  std::optional<Tensor> some_bias(const Tensor& like) const {
    const auto count = (int64_t)out.list.size(), size = dtype_size(g.dtype);
    Tensor some = new_tensor(like, &count, 1);
    for (int64_t o = 0; o < count; ++o)
      std::memcpy((char*)some.mutable_data_ptr() + o * size, (const char*)g.bias + out.list[o] * size, (size_t)size);
    return some;
  }

  // The bias where no weight is active.
  void fill(Tensor& y) const {
    const Image image = image_of(y);
    const ConvShape& s = g.shape;
    const int64_t size = dtype_size(g.dtype);
    torch::stable::parallel_for(0, s.batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n)
        for (int64_t o = 0; o < s.out; ++o) {
          if (out.place[o] != kNoChannel) continue;
          for (int64_t h = 0; h < s.out_h; ++h)
            for (int64_t w = 0; w < s.out_w; ++w)
              std::memcpy((char*)image.data + (n * image.n + o * image.c + h * image.y + w * image.x) * size,
                          (const char*)g.bias + o * size, (size_t)size);
        }
    });
  }
};

}  // namespace

Tensor library_forward(const MaskedConv& g, const Tensor& input, const Tensor& weight,
                       const std::optional<Tensor>& bias, Isa isa) {
  const ActiveChannels p(g);
  if (p.some) return Compact(g, p).forward(input, weight);
  return convolution(g.shape, input, masked_copy(g, weight, isa), bias);
}

Tensor library_input_grad(const MaskedConv& g, const Tensor& grad, const Tensor& weight, Isa isa) {
  const ConvShape& s = g.shape;
  const ActiveChannels p(g);
  if (p.some) return Compact(g, p).input_grad(grad, weight);
  // Its shape is all that is read of it.
  const Tensor input = empty_image(grad, s.batch, s.in, s.in_h, s.in_w);
  return convolution_backward(s, grad, input, masked_copy(g, weight, isa), true);
}

Tensor library_weight_grad(const MaskedConv& g, const Tensor& grad, const Tensor& input, Isa isa) {
  const ConvShape& s = g.shape;
  const ActiveChannels p(g);
  if (p.some) return Compact(g, p).weight_grad(grad, input);
  Tensor result =
      as_contiguous(convolution_backward(s, grad, input, empty_weight(grad, s.out, s.in / s.groups, s), false));
  MaskedGemm w = rows_of(g);
  w.c = result.mutable_data_ptr(), w.c_ld = s.columns();
  for_rows(g, w, masked_linear_kernels(isa)->masked_result[(int)g.dtype][0], nullptr);
  return result;
}

}  // namespace maskfuse
