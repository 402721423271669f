// The passes of a masked convolution, and those of one whose channels are chosen. One group.
#include <array>
#include <optional>

#include "mask.h"
#include "masked_conv2d.h"
#include "raw_kernels.h"

namespace maskfuse::raw {
namespace {

using Pair = std::array<int64_t, 2>;

// Images of any strides, which are multiples of an element.
template <class T>
Image image_of(const py::array_t<T>& a, void* data) {
  constexpr auto kSize = (int64_t)sizeof(T);
  return {data, a.strides(0) / kSize, a.strides(1) / kSize, a.strides(2) / kSize, a.strides(3) / kSize};
}

// An image of other sizes in the memory format of `like`.
template <class T>
py::array_t<T> new_image(const py::array_t<T>& like, int64_t n, int64_t c, int64_t h, int64_t w) {
  constexpr auto kSize = (int64_t)sizeof(T);
  const std::vector<int64_t> shape{n, c, h, w};
  if (like.strides(1) == kSize && like.shape(1) > 1)
    return py::array_t<T>(shape, std::vector<int64_t>{h * w * c * kSize, kSize, w * c * kSize, c * kSize});
  return py::array_t<T>(shape);
}

// A pass's operands: forward has an input and a weight, input_grad a gradient, a weight and the input's `size`,
// weight_grad a gradient, an input and the kernel's `size`. Results are images in the format of `a`, or a weight.
template <class T>
struct Problem {
  MaskedConv conv{};
  py::array_t<T> result;

  Problem(const std::string& which, const py::array_t<T>& a, const py::array_t<T>& b, const std::optional<Pair>& size,
          const Pair& stride, const Pair& padding) {
    if (a.ndim() != 4 || b.ndim() != 4) throw py::value_error("a and b must have four dimensions");
    if (stride[0] < 1 || stride[1] < 1 || padding[0] < 0 || padding[1] < 0)
      throw py::value_error("stride must be positive and padding not negative");
    conv.pass = parse_pass(which);
    conv.dtype = kDtype<T>;
    if (size.has_value() == (conv.pass == Pass::forward))
      throw py::value_error("size is the input's for input_grad, the kernel's for weight_grad, and none for forward");
    const bool weight_grad = conv.pass == Pass::weight_grad;
    const py::array_t<T>& image = conv.pass == Pass::input_grad ? a : weight_grad ? b : a;
    const Pair input = conv.pass == Pass::input_grad ? size.value_or(Pair{}) : Pair{image.shape(2), image.shape(3)};
    const Pair kernel = weight_grad ? size.value_or(Pair{}) : Pair{b.shape(2), b.shape(3)};
    if (input[0] < 1 || input[1] < 1 || kernel[0] < 1 || kernel[1] < 1) throw py::value_error("sizes must be positive");
    ConvShape& s = conv.shape;
    s.batch = a.shape(0), s.in = b.shape(1), s.out = weight_grad ? a.shape(1) : b.shape(0), s.groups = 1;
    s.in_h = input[0], s.in_w = input[1], s.kernel_h = kernel[0], s.kernel_w = kernel[1];
    s.stride_h = stride[0], s.stride_w = stride[1], s.pad_h = padding[0], s.pad_w = padding[1];
    s.dilation_h = s.dilation_w = 1;
    if (s.in_h + 2 * s.pad_h < s.kernel_h || s.in_w + 2 * s.pad_w < s.kernel_w)
      throw py::value_error("the kernel is larger than the padded input");
    s.out_h = (s.in_h + 2 * s.pad_h - s.kernel_h) / s.stride_h + 1;
    s.out_w = (s.in_w + 2 * s.pad_w - s.kernel_w) / s.stride_w + 1;
    const bool fits = conv.pass == Pass::forward
                          ? a.shape(1) == s.in
                          : a.shape(1) == s.out && a.shape(2) == s.out_h && a.shape(3) == s.out_w;
    if (!fits || (weight_grad && b.shape(0) != s.batch)) throw py::value_error("a and b do not fit together");
    if (s.batch < 1 || s.in < 1 || s.out < 1) throw py::value_error("a and b must not be empty");
    if (!weight_grad) {
      if (!(b.flags() & py::array::c_style)) throw py::value_error("the weight must be contiguous");
      conv.weight = b.data(), conv.weight_ld = s.columns();
    }
    if (conv.pass == Pass::forward) {
      result = new_image(a, s.batch, s.out, s.out_h, s.out_w);
      conv.input = image_of(a, (void*)a.data()), conv.output = image_of(result, result.mutable_data());
    } else if (conv.pass == Pass::input_grad) {
      result = new_image(a, s.batch, s.in, s.in_h, s.in_w);
      conv.output = image_of(a, (void*)a.data()), conv.input = image_of(result, result.mutable_data());
    } else {
      result = py::array_t<T>(std::vector<int64_t>{s.out, s.in, s.kernel_h, s.kernel_w});
      conv.output = image_of(a, (void*)a.data()), conv.input = image_of(b, (void*)b.data());
      conv.weight_grad = result.mutable_data(), conv.weight_grad_ld = s.columns();
    }
  }
};

template <class T>
py::array_t<T> masked_conv2d(const std::string& which, const py::array_t<T>& a, const py::array_t<T>& b,
                             const Array<uint32_t>& bits, std::optional<Array<uint8_t>> plan, std::optional<Pair> size,
                             Pair stride, Pair padding, const std::string& isa, int threads) {
  check_threads(threads);
  const Isa level = parse_isa(isa);
  Problem<T> problem(which, a, b, size, stride, padding);
  MaskedConv& g = problem.conv;
  const int64_t out = g.shape.out, columns = g.shape.columns();
  if (bits.ndim() != 2 || bits.shape(0) != out || bits.shape(1) != mask_words(columns))
    throw py::value_error("bits must have shape [out, ceil(in * kernel / 32)]");
  g.bits = bits.data(), g.bits_ld = mask_words(columns);
  Plan opened;
  if (plan) {
    const bool exchanged = g.pass == Pass::input_grad;
    if (!plan_open(plan->data(), plan->size(), exchanged ? g.shape.in : out, exchanged ? out * g.shape.taps() : columns,
                   &opened))
      throw py::value_error("plan is not the plan of bits (for input_grad: with channels exchanged)");
    g.plan = &opened;
  }
  bool complete;
  {
    py::gil_scoped_release release;
    const ConvSchedule s = schedule(g, level, threads);
    const Bytes shared = buffer(s.shared_bytes);
    prepare(g, s, shared.get());
    for (int phase = 0; phase < s.phase_count; ++phase)
      run_tasks(s.phases[phase].grid.tasks(), s.scratch_bytes, threads,
                [&](int64_t i, void* scratch) { run_task(g, s, phase, i, shared.get(), scratch); });
    complete = plan_fits(g, s, shared.get());
  }
  if (!complete) throw py::value_error("plan is of a mask that has fewer weights than bits");
  return problem.result;
}

template <class T>
py::array_t<T> gathered_conv2d(const std::string& which, const py::array_t<T>& a, const py::array_t<T>& b,
                               const Array<uint32_t>& channels, std::optional<Pair> size, Pair stride, Pair padding,
                               const std::string& isa, int threads) {
  check_threads(threads);
  const Isa level = parse_isa(isa);
  Problem<T> problem(which, a, b, size, stride, padding);
  GatheredConv g{};
  g.conv = problem.conv;
  const int64_t words = mask_words(g.conv.shape.in);
  if (channels.ndim() != 2 || channels.shape(1) != words ||
      (channels.shape(0) != 1 && channels.shape(0) != g.conv.shape.batch))
    throw py::value_error("channels must have shape [1 or batch, ceil(in / 32)]");
  g.in_channels = channels.data(), g.in_ld = channels.shape(0) == 1 ? 0 : words;
  const GatheredTasks tasks = gathered_conv2d_tasks(level, g.conv.dtype, g.conv.pass);
  if (!tasks.phases[0]) throw py::value_error("isa " + isa + " has no kernel of this op");
  const GatheredSchedule s = schedule(g, level, threads);
  if (!fits(s)) throw py::value_error("the problem's tiles are too large");
  {
    py::gil_scoped_release release;
    const Bytes shared = buffer(s.shared_bytes);
    for (int phase = 0; phase < 2; ++phase)
      run_tasks(s.tasks[phase], s.scratch_bytes, threads,
                [&](int64_t i, void* scratch) { tasks.phases[phase](g, s, i, shared.get(), scratch); });
  }
  return problem.result;
}

template <class T>
void define(py::module_& m) {
  const Pair ones{1, 1}, none{0, 0};
  m.def("masked_conv2d", masked_conv2d<T>, py::arg("which"), py::arg("a").noconvert(), py::arg("b").noconvert(),
        py::arg("bits"), py::arg("plan") = py::none(), py::arg("size") = py::none(), py::arg("stride") = ones,
        py::arg("padding") = none, py::arg("isa"), py::arg("threads") = 1,
        "One pass of a masked convolution; see csrc/cpu/masked_conv2d.h.");
  m.def("gathered_conv2d", gathered_conv2d<T>, py::arg("which"), py::arg("a").noconvert(), py::arg("b").noconvert(),
        py::arg("channels"), py::arg("size") = py::none(), py::arg("stride") = ones, py::arg("padding") = none,
        py::arg("isa"), py::arg("threads") = 1,
        "One pass of a convolution of chosen channels; see csrc/cpu/gathered_conv2d.h.");
}

}  // namespace

void define_conv2d(py::module_& m) {
  define<float>(m);
  define<double>(m);
}

}  // namespace maskfuse::raw
