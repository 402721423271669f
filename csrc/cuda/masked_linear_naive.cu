// masked_linear as it is defined: a thread an element of the result, one loop over the depth. Every type and pass; what
// the other kernels are tested against, and what runs where they do not.
#include "masked_linear_operands.h"

namespace maskfuse::cuda {
namespace {

constexpr int kThreads = 256;

template <class T, class Left, class Right, class Result>
__global__ void __launch_bounds__(kThreads)
    naive_kernel(const Left left, const Right right, const Result result, int64_t m, int64_t n, int64_t k) {
  using Sum = typename Accumulator<T>::type;
  for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < m * n; i += (int64_t)gridDim.x * kThreads) {
    const int64_t row = i / n, column = i % n;
    Sum sum = 0;
    for (int64_t d = 0; d < k; ++d)
      sum = multiply_add((Sum)widened(left.element(left.at(d / kDepth), row, (int)(d % kDepth))),
                         (Sum)widened(right.element(right.at(d / kDepth), column, (int)(d % kDepth))), sum);
    result.write_one(row, column, sum);
  }
}

template <class T>
cudaError_t run(const MaskedGemm& g, cudaStream_t stream) {
  return with_operands<T>(g, [&]<class Left, class Right>(const Left& left, const Right& right) {
    return launch(naive_kernel<T, Left, Right, MatrixResult<T>>, grid_blocks(g.m * g.n, kThreads), kThreads, 0, stream,
                  left, right, result_of<T>(g), g.m, g.n, g.k);
  });
}

}  // namespace

cudaError_t masked_linear_naive(const MaskedGemm& g, cudaStream_t stream) {
  switch (g.dtype) {
    case Dtype::f32:
      return run<float>(g, stream);
    case Dtype::f64:
      return run<double>(g, stream);
    case Dtype::bf16:
      return run<Bf16>(g, stream);
    default:
      return run<Fp16>(g, stream);
  }
}

}  // namespace maskfuse::cuda
