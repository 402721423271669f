// The raw kernels as a Python module: NumPy arrays in, no torch, no dispatcher. For microbenchmarks and for
// looking at one instruction set at a time; built by CMake only, never part of the wheel.
#include "raw_kernels.h"

PYBIND11_MODULE(maskfuse_raw, m) {
  using namespace maskfuse;
  m.doc() = "Raw kernels of maskfuse on NumPy arrays.";
  raw::define_linear(m);
  raw::define_conv2d(m);
  raw::define_channels(m);
  m.def(
      "levels",
      [] {
        std::vector<std::string> names;
        for (Isa level : {Isa::scalar, Isa::avx2, Isa::avx512})
          if (isa_available(level)) names.push_back(isa_name(level));
        return names;
      },
      "Instruction sets that this build and this machine have.");
}
