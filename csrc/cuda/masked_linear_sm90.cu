// masked_linear in half types on Hopper, under a mask of bits.
#include "masked_linear.h"
#include "product_sm90.h"

namespace maskfuse::cuda {
namespace {

template <class T, Pass kPass, class Tile>
cudaError_t run(const MaskedGemm& g, int blocks, cudaStream_t stream) {
  Sm90Problem p{};
  p.m = g.m, p.n = g.n, p.depth_blocks = ceil_div(g.k, kDepth), p.lists = g.lists;
  p.bits = g.bits, p.bits_ld = g.bits_ld, p.weight_rows = kPass == Pass::forward ? g.n : g.k;
  p.bias = kPass == Pass::forward ? g.bias : nullptr, p.c = g.c, p.c_ld = g.c_ld;
  // Rows of C's own side are a box; where the depth is along rows, a box has 64 of it.
  constexpr bool kRightRows = kPass == Pass::forward, kLeftRows = kPass != Pass::weight_grad;
  cudaError_t error = make_tensor_map(&p.right, g.b, kRightRows ? g.n : g.k, kRightRows ? g.k : g.n, g.b_ld,
                                      kRightRows ? Tile::kN : kDepth, g.dtype);
  if (error != cudaSuccess) return error;
  error = make_tensor_map(&p.left, g.a, kLeftRows ? g.m : g.k, kLeftRows ? g.k : g.m, g.a_ld,
                          kLeftRows ? Tile::kM : kDepth, g.dtype);
  if (error != cudaSuccess) return error;
  return launch(product_sm90_kernel<T, kPass, Tile>, dim3((unsigned)blocks), Tile::kThreads, Tile::kSharedBytes, stream,
                p);
}

template <class T, class Tile>
cudaError_t run(const MaskedGemm& g, int blocks, cudaStream_t stream) {
  switch (g.pass) {
    case Pass::forward:
      return run<T, Pass::forward, Tile>(g, blocks, stream);
    case Pass::input_grad:
      return run<T, Pass::input_grad, Tile>(g, blocks, stream);
    default:
      return run<T, Pass::weight_grad, Tile>(g, blocks, stream);
  }
}

// Rows that a bulk copy takes: aligned, and one behind the other.
bool plain_rows(const void* data, int64_t ld, int64_t columns) {
  return (uintptr_t)data % kPieceBytes == 0 && ld % kPieceElements == 0 && ld >= columns;
}

}  // namespace

bool masked_linear_sm90_takes(const MaskedGemm& g) {
  constexpr int64_t kMost = int64_t{1} << 31;
  return (g.dtype == Dtype::bf16 || g.dtype == Dtype::f16) && g.bits && g.n % kPieceElements == 0 && g.m > 0 &&
         g.n > 0 && g.k > 0 && g.m < kMost && g.n < kMost && g.k < kMost &&
         plain_rows(g.a, g.a_ld, g.pass == Pass::weight_grad ? g.m : g.k) &&
         plain_rows(g.b, g.b_ld, g.pass == Pass::forward ? g.k : g.n) && plain_rows(g.c, g.c_ld, g.n);
}

int64_t masked_linear_sm90_tiles(const MaskedGemm& g, bool large) {
  return ceil_div(g.m, large ? Sm90Tile<2>::kM : Sm90Tile<1>::kM) * ceil_div(g.n, Sm90Tile<1>::kN);
}

cudaError_t masked_linear_sm90(const MaskedGemm& g, const LinearChoice& choice, cudaStream_t stream) {
  const auto with = [&]<class T>(T) {
    return choice.large ? run<T, Sm90Tile<2>>(g, choice.blocks, stream) : run<T, Sm90Tile<1>>(g, choice.blocks, stream);
  };
  return g.dtype == Dtype::bf16 ? with(Bf16{}) : with(Fp16{});
}

}  // namespace maskfuse::cuda
