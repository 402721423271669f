// The raw kernels as a Python module: NumPy arrays in, no torch, no dispatcher. For microbenchmarks and for
// looking at one instruction set at a time; built by CMake only, never part of the wheel.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "mask.h"
#include "masked_linear.h"

namespace py = pybind11;
using namespace maskfuse;

namespace {

Isa parse_isa(const std::string& name) {
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512})
    if (name == isa_name(isa)) {
      if (!isa_available(isa))
        throw py::value_error("isa: this machine runs at most " + std::string(isa_name(isa_best())));
      return isa;
    }
  throw py::value_error("isa must be scalar, avx2 or avx512, got " + name);
}

void run(const MaskedGemm& g, Isa isa, int threads) {
  if (g.m == 0 || g.n == 0) return;
  const Schedule s = schedule(g, isa, threads);
  std::unique_ptr<void, decltype(&std::free)> shared(std::aligned_alloc(64, (s.shared_bytes + 127) / 64 * 64),
                                                     std::free);
  for (int phase = 0; phase < 2; ++phase) {
    const int64_t tasks = phase == 0 ? s.first.tasks() : s.grid.tasks();
    std::atomic<int64_t> next{0};
    const auto work = [&] {
      void* scratch = std::aligned_alloc(64, (s.scratch_bytes + 127) / 64 * 64);
      for (int64_t i; (i = next++) < tasks;) run_task(g, s, phase, i, shared.get(), scratch);
      std::free(scratch);
    };
    std::vector<std::thread> pool;
    for (int t = 1; t < threads; ++t) pool.emplace_back(work);
    work();
    for (auto& thread : pool) thread.join();
  }
}

// The index of bits [rows, words(columns)], as bytes.
py::array_t<uint8_t> mask_plan(const py::array_t<uint32_t, py::array::c_style>& bits, int64_t columns) {
  if (bits.ndim() != 2 || bits.shape(1) != mask_words(columns))
    throw py::value_error("bits must have shape [rows, ceil(columns / 32)]");
  int64_t active = 0;
  for (int64_t i = 0; i < bits.size(); ++i) active += __builtin_popcount(bits.data()[i]);
  PlanBuilder builder(bits.data(), bits.shape(0), columns, active, first_level_cache());
  for (int64_t p = 0; p < builder.panels(); ++p) builder.build(p);
  py::array_t<uint8_t> plan(builder.layout());
  builder.write_header(plan.mutable_data());
  for (int64_t p = 0; p < builder.panels(); ++p) builder.write(p, plan.mutable_data());
  return plan;
}

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
Array<T> masked_gemm(const std::string& pass, const Array<T>& a, const Array<T>& b, std::optional<Array<uint32_t>> bits,
                     std::optional<Array<T>> factor, std::optional<Array<uint8_t>> plan, const std::string& isa,
                     int threads) {
  if (a.ndim() != 2 || b.ndim() != 2) throw py::value_error("a and b must be matrices");
  if (bits.has_value() == factor.has_value()) throw py::value_error("give either bits or factor");
  if (threads < 1) throw py::value_error("threads must be positive");
  MaskedGemm g{};
  g.dtype = sizeof(T) == 8 ? Dtype::f64 : Dtype::f32;
  int64_t b_k;
  if (pass == "forward")
    g.pass = Pass::forward, g.m = a.shape(0), g.k = a.shape(1), g.n = b.shape(0), b_k = b.shape(1);
  else if (pass == "input_grad")
    g.pass = Pass::input_grad, g.m = a.shape(0), g.k = a.shape(1), g.n = b.shape(1), b_k = b.shape(0);
  else if (pass == "weight_grad")
    g.pass = Pass::weight_grad, g.m = a.shape(1), g.k = a.shape(0), g.n = b.shape(1), b_k = b.shape(0);
  else
    throw py::value_error("pass must be forward, input_grad or weight_grad, got " + pass);
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

}  // namespace

PYBIND11_MODULE(maskfuse_raw, m) {
  m.doc() = "Raw kernels of maskfuse on NumPy arrays.";
  const auto isa = py::arg("isa");
  m.def("masked_gemm", masked_gemm<float>, py::arg("which"), py::arg("a").noconvert(), py::arg("b").noconvert(),
        py::arg("bits") = py::none(), py::arg("factor") = py::none(), py::arg("plan") = py::none(), isa,
        py::arg("threads") = 1, "One pass of a masked linear layer; see csrc/cpu/masked_linear.h.");
  m.def("masked_gemm", masked_gemm<double>, py::arg("which"), py::arg("a").noconvert(), py::arg("b").noconvert(),
        py::arg("bits") = py::none(), py::arg("factor") = py::none(), py::arg("plan") = py::none(), isa,
        py::arg("threads") = 1);
  m.def("mask_plan", mask_plan, py::arg("bits"), py::arg("columns"), "The index of a mask, as masked_gemm takes it.");
  m.def(
      "levels",
      [] {
        std::vector<std::string> names;
        for (Isa level : {Isa::scalar, Isa::avx2, Isa::avx512})
          if (isa_available(level)) names.push_back(isa_name(level));
        return py::cast(names);
      },
      "Instruction sets that this build and this machine have.");
}
