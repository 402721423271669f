// What the parts of the module share: arguments as kernels take them, and tasks on threads.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "isa.h"
#include "masked_linear.h"

namespace maskfuse::raw {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
inline constexpr Dtype kDtype = sizeof(T) == 8 ? Dtype::f64 : Dtype::f32;

inline Isa parse_isa(const std::string& name) {
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512})
    if (name == isa_name(isa)) {
      if (!isa_available(isa))
        throw py::value_error("isa: this machine runs at most " + std::string(isa_name(isa_best())));
      return isa;
    }
  throw py::value_error("isa must be scalar, avx2 or avx512, got " + name);
}

inline Pass parse_pass(const std::string& name) {
  if (name == "forward") return Pass::forward;
  if (name == "input_grad") return Pass::input_grad;
  if (name == "weight_grad") return Pass::weight_grad;
  throw py::value_error("pass must be forward, input_grad or weight_grad, got " + name);
}

inline void check_threads(int threads) {
  if (threads < 1) throw py::value_error("threads must be positive");
}

using Bytes = std::unique_ptr<void, decltype(&std::free)>;
inline Bytes buffer(size_t bytes) { return {std::aligned_alloc(64, (bytes + 127) / 64 * 64), std::free}; }

// Calls run(task, scratch) for tasks [0, count) on threads of this call's own: none are started for one thread.
template <class Run>
void run_tasks(int64_t count, size_t scratch_bytes, int threads, const Run& run) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    const Bytes scratch = buffer(scratch_bytes);
    for (int64_t i; (i = next++) < count;) run(i, scratch.get());
  };
  std::vector<std::thread> pool;
  for (int t = 1; t < threads; ++t) pool.emplace_back(work);
  work();
  for (auto& thread : pool) thread.join();
}

void define_linear(py::module_& m);
void define_conv2d(py::module_& m);
void define_channels(py::module_& m);

}  // namespace maskfuse::raw
