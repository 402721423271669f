// The dispatcher library of the tests: the ops' CUDA implementations on CPU tensors, as torch.ops.maskfuse_simt.
#include "../torch/cuda_library.h"
#include "../torch/schemas.h"

namespace maskfuse {
namespace {

void seed(int64_t value) { simt::seed((uint64_t)value); }
int64_t launches() { return simt::launches(); }

int64_t get_capability() { return simt_capability; }
int64_t set_capability(int64_t value) { return simt_capability.exchange((int)value); }

}  // namespace
}  // namespace maskfuse

STABLE_TORCH_LIBRARY(maskfuse_simt, m) {
  maskfuse::define_ops(m);
  m.def("seed(int value) -> ()");
  m.def("launches() -> int");
  m.def("capability() -> int");               // ten times
  m.def("set_capability(int value) -> int");  // returns the last one
}

STABLE_TORCH_LIBRARY_IMPL(maskfuse_simt, CompositeExplicitAutograd, m) {
  m.impl("seed", TORCH_BOX(&maskfuse::seed));
  m.impl("launches", TORCH_BOX(&maskfuse::launches));
  m.impl("capability", TORCH_BOX(&maskfuse::get_capability));
  m.impl("set_capability", TORCH_BOX(&maskfuse::set_capability));
}
