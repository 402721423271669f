// The index of a mask, and the passes of a masked linear layer.
#include <optional>

#include "mask.h"
#include "raw_kernels.h"

namespace maskfuse::raw {
namespace {

void run(const MaskedGemm& g, Isa isa, int threads) {
  if (g.m == 0 || g.n == 0) return;
  const Schedule s = schedule(g, isa, threads);
  const Bytes shared = buffer(s.shared_bytes);
  for (int phase = 0; phase < 2; ++phase)
    run_tasks(phase == 0 ? s.first.tasks() : s.grid.tasks(), s.scratch_bytes, threads,
              [&](int64_t i, void* scratch) { run_task(g, s, phase, i, shared.get(), scratch); });
}

// The index of bits [rows, words(columns)], as bytes. `taps` columns are one channel of a convolution; 0 for a linear
// layer.
Array<uint8_t> mask_plan(const Array<uint32_t>& bits, int64_t columns, int64_t taps) {
  if (bits.ndim() != 2 || columns < 0 || bits.shape(1) != mask_words(columns))
    throw py::value_error("bits must have shape [rows, ceil(columns / 32)]");
  if (taps < 0 || (taps > 0 && columns % taps != 0)) throw py::value_error("taps must divide columns");
  int64_t active = 0;
  for (int64_t i = 0; i < bits.size(); ++i) active += count_bits(bits.data()[i]);
  PlanBuilder builder(bits.data(), bits.shape(0), columns, active, first_level_cache(), taps);
  for (int64_t p = 0; p < builder.panels(); ++p) builder.build(p);
  Array<uint8_t> plan(builder.layout());
  builder.write_header(plan.mutable_data());
  for (int64_t p = 0; p < builder.panels(); ++p) builder.write(p, plan.mutable_data());
  return plan;
}

template <class T>
Array<T> masked_gemm(const std::string& pass, const Array<T>& a, const Array<T>& b, std::optional<Array<uint32_t>> bits,
                     std::optional<Array<T>> factor, std::optional<Array<uint8_t>> plan, const std::string& isa,
                     int threads) {
  if (a.ndim() != 2 || b.ndim() != 2) throw py::value_error("a and b must be matrices");
  if (bits.has_value() == factor.has_value()) throw py::value_error("give either bits or factor");
  check_threads(threads);
  MaskedGemm g{};
  g.pass = parse_pass(pass);
  g.dtype = kDtype<T>;
  int64_t b_k;
  if (g.pass == Pass::forward)
    g.m = a.shape(0), g.k = a.shape(1), g.n = b.shape(0), b_k = b.shape(1);
  else if (g.pass == Pass::input_grad)
    g.m = a.shape(0), g.k = a.shape(1), g.n = b.shape(1), b_k = b.shape(0);
  else
    g.m = a.shape(1), g.k = a.shape(0), g.n = b.shape(1), b_k = b.shape(0);
  if (b_k != g.k) throw py::value_error("a and b do not fit together");
  const int64_t rows = g.pass == Pass::weight_grad ? g.m : b.shape(0), columns = b.shape(1);
  if (bits) {
    if (bits->ndim() != 2 || bits->shape(0) != rows || bits->shape(1) != mask_words(columns))
      throw py::value_error("bits must have shape [rows, ceil(columns / 32)] of the masked matrix");
    g.bits = bits->data(), g.bits_ld = mask_words(columns);
  } else {
    if (factor->ndim() != 2 || factor->shape(0) != rows || factor->shape(1) != columns)
      throw py::value_error("factor must have the shape of the masked matrix");
    g.factor = factor->data(), g.factor_ld = columns;
  }
  Plan opened;
  if (plan) {
    const bool transposed = g.pass == Pass::input_grad;
    if (!bits ||
        !plan_open(plan->data(), plan->size(), transposed ? columns : rows, transposed ? rows : columns, &opened))
      throw py::value_error("plan is not the plan of bits (for input_grad: of their transpose)");
    g.plan = &opened;
  }
  Array<T> c({g.m, g.n});
  g.a = a.data(), g.a_ld = a.shape(1), g.b = b.data(), g.b_ld = b.shape(1);
  g.c = c.mutable_data(), g.c_ld = g.n;
  const Isa level = parse_isa(isa);
  py::gil_scoped_release release;
  run(g, level, threads);
  return c;
}

template <class T>
void define_gemm(py::module_& m) {
  m.def("masked_gemm", masked_gemm<T>, py::arg("which"), py::arg("a").noconvert(), py::arg("b").noconvert(),
        py::arg("bits") = py::none(), py::arg("factor") = py::none(), py::arg("plan") = py::none(), py::arg("isa"),
        py::arg("threads") = 1, "One pass of a masked linear layer; see csrc/cpu/masked_linear.h.");
}

}  // namespace

void define_linear(py::module_& m) {
  define_gemm<float>(m);
  define_gemm<double>(m);
  m.def("mask_plan", mask_plan, py::arg("bits"), py::arg("columns"), py::arg("taps") = 0,
        "The index of a mask, as masked_gemm takes it, or with taps as masked_conv2d does.");
}

}  // namespace maskfuse::raw
