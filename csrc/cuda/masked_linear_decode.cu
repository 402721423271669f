// Choosing and launching the kernels of masked_linear_decode_mma.h and masked_linear_decode_scalar.h.
#include "masked_linear_decode.h"
#include "masked_linear_decode_mma.h"

namespace maskfuse::cuda {
namespace {

constexpr int64_t kHeldBlocks = 3;            // of a multiprocessor at once, as registers allow
constexpr int64_t kReservedShared = 1 << 10;  // what a block takes besides its own

// A warp's copies in flight have to cover memory's latency: short slabs need more of them.
constexpr int64_t kRingBytes = 72 << 10;

// What a multiprocessor reads in the time of a second launch, about 3 microseconds, and in that of a block's start.
constexpr int64_t kLaunchBytes = 100 << 10;
constexpr int64_t kStartBytes = 24 << 10;

DecodeStages stages_of(const PackedTiles& weight, const DecodePlan& plan) {
  // The ring also holds the sums that warps exchange, 1 KB each.
  constexpr int64_t kLeast = 512 / kPieceBytes;
  const int64_t slot = weight.longest > kLeast ? weight.longest : kLeast;
  int stages = 6;
  if (kWarps * stages * slot * kPieceBytes > kRingBytes) stages = 3;
  if (kWarps * stages * slot * kPieceBytes > kRingBytes) stages = 2;
  return {plan.strips, stages, (int)slot, (int)(plan.slabs * kSlabColumns) + kRowPad, false};
}

int64_t shared_bytes(const DecodeStages& s, int64_t m) {
  return (int64_t)kWarps * s.stages * s.slot_pieces * kPieceBytes + m * s.x_stride * 2;
}

template <class T>
DecodeArguments<T> arguments(const DecodeProblem& p, const DecodePlan& plan, void* workspace) {
  const PackedTiles& w = p.weight;
  return {(const Piece*)w.data,
          w.offsets,
          w.rows,
          w.columns,
          slabs_a_strip(w.columns),
          plan.slabs,
          (const T*)p.x,
          p.x_ld,
          (int)p.m,
          (const T*)p.bias,
          (T*)p.y,
          p.y_ld,
          plan.splits > 1 ? (typename Accumulator<T>::type*)workspace : nullptr};
}

template <class T>
cudaError_t add_splits(const DecodeArguments<T>& g, int64_t splits, cudaStream_t stream) {
  if (splits == 1) return cudaSuccess;
  return launch(add_splits_kernel<T>, grid_blocks(g.m * g.rows, kThreads), kThreads, 0, stream, g, (int)splits);
}

template <class T>
cudaError_t decode_half(const DecodeProblem& p, const DecodePlan& plan, void* workspace, cudaStream_t stream) {
  constexpr int64_t kElements = kPieceBytes / sizeof(T);
  const DecodeArguments<T> g = arguments<T>(p, plan, workspace);
  DecodeStages s = stages_of(p.weight, plan);
  s.x_aligned = (uintptr_t)p.x % kPieceBytes == 0 && p.x_ld % kElements == 0;
  const auto kernel = p.weight.unit == 1 ? (p.m <= 8 ? decode_kernel<T, 1, 1> : decode_kernel<T, 1, 2>)
                                         : (p.m <= 8 ? decode_kernel<T, 2, 1> : decode_kernel<T, 2, 2>);
  const dim3 grid((unsigned)ceil_div(strip_count(g.rows), plan.strips), (unsigned)plan.splits);
  const cudaError_t error = launch(kernel, grid, kThreads, (size_t)shared_bytes(s, p.m), stream, g, s);
  return error != cudaSuccess ? error : add_splits(g, plan.splits, stream);
}

template <class T>
cudaError_t decode_wide(const DecodeProblem& p, const DecodePlan& plan, void* workspace, cudaStream_t stream) {
  const DecodeArguments<T> g = arguments<T>(p, plan, workspace);
  const dim3 grid((unsigned)ceil_div(strip_count(g.rows), kWarps), (unsigned)plan.splits, (unsigned)ceil_div(p.m, 4));
  const cudaError_t error = launch(decode_wide_kernel<T>, grid, kThreads, 0, stream, g);
  return error != cudaSuccess ? error : add_splits(g, plan.splits, stream);
}

template <class T>
cudaError_t decode_naive(const DecodeProblem& p, cudaStream_t stream) {
  const DecodeArguments<T> g = arguments<T>(p, {1, 1, slabs_a_strip(p.weight.columns)}, nullptr);
  const unsigned blocks = (unsigned)ceil_div(p.m * g.rows, kThreads);
  if constexpr (sizeof(T) == 2)
    if (p.weight.unit == 2) return launch(decode_naive_kernel<T, 2>, blocks, kThreads, 0, stream, g);
  return launch(decode_naive_kernel<T, 1>, blocks, kThreads, 0, stream, g);
}

}  // namespace

DecodePlan decode_plan(const PackedTiles& weight, int64_t m, const DecodeDevice& device) {
  const int64_t strips = strip_count(weight.rows), slabs = slabs_a_strip(weight.columns);
  const bool half = dtype_size(weight.dtype) == 2;
  DecodePlan best{kWarps, 1, slabs};
  if (strips == 0) return best;
  int64_t least = INT64_MAX;
  for (int block_strips = kWarps; block_strips > 0; block_strips /= 2) {
    for (int64_t splits = 1; splits <= slabs && splits <= 256; ++splits) {
      const DecodePlan plan{block_strips, splits, ceil_div(slabs, splits)};
      if (ceil_div(slabs, plan.slabs) != splits) continue;
      const int64_t shared = half ? shared_bytes(stages_of(weight, plan), m) : 0;
      if (shared > device.block_shared) continue;
      // What the busiest multiprocessor reads, weights and x. Blocks that it holds together hide each other's waiting:
      // one alone takes half as long again.
      const int64_t turns = ceil_div(ceil_div(strips, block_strips) * splits, device.multiprocessors);
      const int64_t fits = (device.block_shared + kReservedShared) / (shared + kReservedShared);
      const int64_t held = fits < kHeldBlocks ? fits : kHeldBlocks, together = turns < held ? turns : held;
      const int64_t slab_bytes =
          block_strips * weight.longest * kPieceBytes + m * kSlabColumns * dtype_size(weight.dtype);
      int64_t cost = turns * (plan.slabs * slab_bytes + kStartBytes) * (2 * together + 1) / (2 * together);
      // Sums of splits are written and read again.
      if (splits > 1) cost += kLaunchBytes + 2 * decode_workspace_bytes(weight, m, plan) / device.multiprocessors;
      if (cost < least) best = plan, least = cost;
    }
    if (!half) break;  // a block of the wide kernel has one shape
  }
  return best;
}

int64_t decode_workspace_bytes(const PackedTiles& weight, int64_t m, const DecodePlan& plan) {
  return plan.splits == 1 ? 0 : plan.splits * m * weight.rows * (weight.dtype == Dtype::f64 ? 8 : 4);
}

cudaError_t masked_linear_decode(const DecodeProblem& problem, const DecodePlan& plan, void* workspace,
                                 cudaStream_t stream) {
  if (problem.m > kDecodeRows) return cudaErrorInvalidValue;
  if (problem.m == 0) return cudaSuccess;
  switch (problem.weight.dtype) {
    case Dtype::f32:
      return decode_wide<float>(problem, plan, workspace, stream);
    case Dtype::f64:
      return decode_wide<double>(problem, plan, workspace, stream);
    case Dtype::bf16:
      return decode_half<Bf16>(problem, plan, workspace, stream);
    case Dtype::f16:
      return decode_half<Fp16>(problem, plan, workspace, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t masked_linear_decode_naive(const DecodeProblem& problem, cudaStream_t stream) {
  switch (problem.weight.dtype) {
    case Dtype::f32:
      return decode_naive<float>(problem, stream);
    case Dtype::f64:
      return decode_naive<double>(problem, stream);
    case Dtype::bf16:
      return decode_naive<Bf16>(problem, stream);
    case Dtype::f16:
      return decode_naive<Fp16>(problem, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace maskfuse::cuda
