// A thread takes eight neighbouring columns, a byte of the mask's bits, of several rows: their loads are under way
// together. Where rows are not aligned to 16 bytes it moves its elements one by one.
#include "divisor.h"
#include "masked_copy.h"
#include "number.h"

namespace maskfuse::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kColumns = 8;  // of a thread
template <class T>
constexpr int kRows = sizeof(T) == 8 ? 2 : 4;  // of a thread
constexpr int64_t kMostRowBlocks = 65535;

enum class Mask { bits, factor, gate };

// What is masked, and where it goes; C of weight_grad is both.
struct Pass2d {
  const char* from;
  char* to;
  int64_t rows, columns, from_ld, to_ld;
  const uint32_t* bits;
  int64_t bits_ld;
  Divisor together;    // rows that share a row of bits
  const char* factor;  // or scores
  int64_t factor_ld;
  // A gate's: the weight, and where the scores' gradient goes.
  const char* weight;
  int64_t weight_ld;
  char* scores;
  int64_t scores_ld;
};

// Elements, and the pieces that they are moved in.
template <class T>
union Eight {
  static constexpr int kPieces = kColumns * (int)sizeof(T) / kPieceBytes;
  T value[kColumns];
  Piece piece[kPieces];
};

template <class T, bool kAligned>
__device__ __forceinline__ Eight<T> load(const char* matrix, int64_t ld, int64_t row, int64_t column, int64_t columns) {
  Eight<T> result{};
  const T* const from = (const T*)matrix + row * ld + column;
  if constexpr (kAligned) {
#pragma unroll
    for (int i = 0; i < Eight<T>::kPieces; ++i) result.piece[i] = ((const Piece*)from)[i];
  } else {
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      if (column + j < columns) result.value[j] = from[j];
  }
  return result;
}

template <class T, bool kAligned>
__device__ __forceinline__ void store(char* matrix, int64_t ld, int64_t row, int64_t column, int64_t columns,
                                      const Eight<T>& what) {
  T* const to = (T*)matrix + row * ld + column;
  if constexpr (kAligned) {
#pragma unroll
    for (int i = 0; i < Eight<T>::kPieces; ++i) ((Piece*)to)[i] = what.piece[i];
  } else {
#pragma unroll
    for (int j = 0; j < kColumns; ++j)
      if (column + j < columns) to[j] = what.value[j];
  }
}

template <class T, Mask kMask, bool kScores, bool kAligned>
__global__ void __launch_bounds__(kThreads) masked_pass_kernel(Pass2d p) {
  const int64_t column = ((int64_t)blockIdx.x * kThreads + threadIdx.x) * kColumns;
  if (column >= p.columns) return;
  for (int64_t first = (int64_t)blockIdx.y * kRows<T>; first < p.rows; first += (int64_t)gridDim.y * kRows<T>) {
    Eight<T> value[kRows<T>], other[kRows<T>], weight[kRows<T>];
    uint32_t bits[kRows<T>];
#pragma unroll
    for (int r = 0; r < kRows<T>; ++r) {
      const int64_t row = first + r;
      if (row >= p.rows) continue;
      value[r] = load<T, kAligned>(p.from, p.from_ld, row, column, p.columns);
      if constexpr (kMask == Mask::bits)
        bits[r] = p.bits[p.together.quotient((uint32_t)row) * p.bits_ld + column / 32] >> (column % 32);
      else
        other[r] = load<T, kAligned>(p.factor, p.factor_ld, row, column, p.columns);
      if constexpr (kScores) weight[r] = load<T, kAligned>(p.weight, p.weight_ld, row, column, p.columns);
    }
#pragma unroll
    for (int r = 0; r < kRows<T>; ++r) {
      const int64_t row = first + r;
      if (row >= p.rows) continue;
      Eight<T> result{}, scores{};
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        if constexpr (kMask == Mask::bits) {
          if (bits[r] >> j & 1) result.value[j] = value[r].value[j];
        } else {
          const auto v = widened(value[r].value[j]), o = widened(other[r].value[j]);
          using Sum = decltype(widened(T{}));
          const Sum factor = kMask == Mask::gate ? sigmoid<Sum>(o) : o;
          result.value[j] = Rounded<T>::of(v * factor);
          if constexpr (kScores)  // 1 - gate would cancel
            scores.value[j] = Rounded<T>::of(v * widened(weight[r].value[j]) * factor * sigmoid<Sum>(-o));
        }
      }
      store<T, kAligned>(p.to, p.to_ld, row, column, p.columns, result);
      if constexpr (kScores) store<T, kAligned>(p.scores, p.scores_ld, row, column, p.columns, scores);
    }
  }
}

bool aligned(const void* data, int64_t ld) { return (uintptr_t)data % kPieceBytes == 0 && ld % kColumns == 0; }

template <class T, Mask kMask, bool kScores>
cudaError_t run(const Pass2d& p, cudaStream_t stream) {
  if (p.rows == 0 || p.columns == 0) return cudaSuccess;
  const int64_t row_blocks = ceil_div(p.rows, kRows<T>);
  const dim3 grid((unsigned)ceil_div(p.columns, kThreads * kColumns),
                  (unsigned)(row_blocks < kMostRowBlocks ? row_blocks : kMostRowBlocks));
  const bool all = p.columns % kColumns == 0 && aligned(p.from, p.from_ld) && aligned(p.to, p.to_ld) &&
                   (kMask == Mask::bits || aligned(p.factor, p.factor_ld)) &&
                   (!kScores || (aligned(p.weight, p.weight_ld) && aligned(p.scores, p.scores_ld)));
  return all ? launch(masked_pass_kernel<T, kMask, kScores, true>, grid, kThreads, 0, stream, p)
             : launch(masked_pass_kernel<T, kMask, kScores, false>, grid, kThreads, 0, stream, p);
}

template <class T>
cudaError_t run_in(const MaskedGemm& g, const Pass2d& p, cudaStream_t stream) {
  if (g.bits) return run<T, Mask::bits, false>(p, stream);
  if (!g.gate) return run<T, Mask::factor, false>(p, stream);
  return p.scores ? run<T, Mask::gate, true>(p, stream) : run<T, Mask::gate, false>(p, stream);
}

cudaError_t run(const MaskedGemm& g, const Pass2d& p, cudaStream_t stream) {
  switch (g.dtype) {
    case Dtype::f32:
      return run_in<float>(g, p, stream);
    case Dtype::f64:
      return run_in<double>(g, p, stream);
    case Dtype::bf16:
      return run_in<Bf16>(g, p, stream);
    default:
      return run_in<Fp16>(g, p, stream);
  }
}

cudaError_t run(const MaskedGemm& g, Pass2d p, int64_t begin, cudaStream_t stream) {
  const int64_t element = dtype_size(g.dtype);
  p.bits = g.bits ? g.bits + begin * g.bits_ld : nullptr, p.bits_ld = g.bits_ld, p.together = Divisor(1);
  p.factor = g.factor ? (const char*)g.factor + begin * g.factor_ld * element : nullptr, p.factor_ld = g.factor_ld;
  return run(g, p, stream);
}

}  // namespace

cudaError_t masked_copy(const MaskedGemm& g, int64_t begin, int64_t end, void* to, cudaStream_t stream) {
  Pass2d p{};
  p.rows = end - begin, p.columns = g.pass == Pass::forward ? g.k : g.n;
  p.from = (const char*)g.b + begin * g.b_ld * dtype_size(g.dtype), p.from_ld = g.b_ld;
  p.to = (char*)to, p.to_ld = p.columns;
  return run(g, p, begin, stream);
}

cudaError_t masked_result(const MaskedGemm& g, cudaStream_t stream) {
  Pass2d p{};
  p.rows = g.m, p.columns = g.n, p.from = (const char*)g.c, p.to = (char*)g.c, p.from_ld = p.to_ld = g.c_ld;
  if (g.gate) {
    p.weight = (const char*)g.weight, p.weight_ld = g.weight_ld;
    p.scores = (char*)g.c_scores, p.scores_ld = g.c_scores_ld;
  }
  return run(g, p, 0, stream);
}

cudaError_t masked_image(const MaskedImage& image, cudaStream_t stream) {
  if (image.batch == 0 || image.pixels == 0) return cudaSuccess;
  MaskedGemm g{};
  g.dtype = image.dtype, g.bits = image.bits;
  Pass2d p{};
  p.rows = image.batch * image.pixels, p.columns = p.from_ld = p.to_ld = image.channels;
  p.from = (const char*)image.from, p.to = (char*)image.to;
  p.bits = image.bits, p.bits_ld = image.bits_ld, p.together = Divisor((uint32_t)image.pixels);
  return run(g, p, stream);
}

}  // namespace maskfuse::cuda
