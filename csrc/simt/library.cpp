// The dispatcher library of the tests: the ops' CUDA implementations on CPU tensors, as torch.ops.maskfuse_simt.
#include "../torch/schemas.h"
#include "../torch/tensor.h"
#include "simt.h"

namespace maskfuse {
namespace {

void seed(int64_t value) { simt::seed((uint64_t)value); }
int64_t launches() { return simt::launches(); }

}  // namespace
}  // namespace maskfuse

STABLE_TORCH_LIBRARY(maskfuse_simt, m) {
  maskfuse::define_ops(m);
  m.def("seed(int value) -> ()");
  m.def("launches() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(maskfuse_simt, CompositeExplicitAutograd, m) {
  m.impl("seed", TORCH_BOX(&maskfuse::seed));
  m.impl("launches", TORCH_BOX(&maskfuse::launches));
}
