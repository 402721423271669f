// What the library says about itself; the schemas of all other ops are in schemas.h. Implementations live beside their
// kernels.
#include <string>

#include "../cpu/isa.h"
#include "schemas.h"
#include "tensor.h"

#ifndef MASKFUSE_ABI_TARGET
#error "MASKFUSE_ABI_TARGET is set by setup.py"
#endif

namespace maskfuse {
namespace {

std::string cpu_level() { return isa_name(isa_in_use()); }

// Returns the level that was in use before.
std::string set_cpu_level(std::string name) {
  const std::string before = cpu_level();
  isa_set(name.c_str());
  return before;
}

// key=value lines; parsed by maskfuse.build_info().
std::string library_info() {
  std::string levels = "scalar";
  for (Isa isa : {Isa::avx2, Isa::avx512})
    if (isa_available(isa)) levels += std::string(",") + isa_name(isa);
  return std::string("compiler=") +
#if defined(__clang__)
         "clang " __clang_version__
#else
         "gcc " __VERSION__
#endif
         "\ntorch_abi_target=" MASKFUSE_ABI_TARGET "\ncpu_levels=" +
         levels + "\ncpu_best=" + isa_name(isa_best()) + "\nlibrary_gemm=" + (library_is_faster() ? "1" : "0");
}

}  // namespace
}  // namespace maskfuse

STABLE_TORCH_LIBRARY(maskfuse, m) {
  maskfuse::define_ops(m);
  m.def("cpu_level() -> str");
  m.def("set_cpu_level(str name) -> str");
  m.def("library_info() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(maskfuse, CompositeExplicitAutograd, m) {
  m.impl("cpu_level", TORCH_BOX(&maskfuse::cpu_level));
  m.impl("set_cpu_level", TORCH_BOX(&maskfuse::set_cpu_level));
  m.impl("library_info", TORCH_BOX(&maskfuse::library_info));
}
