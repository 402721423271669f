// Masked matrix products behind masked_linear, on raw pointers.
//
// The three passes of a masked linear layer are one kind of problem. With S the mask (bits, or a
// matrix of factors) and (.) the elementwise product:
//
//   forward       C[m,n] = A[m,k] (B[n,k] (.) S[n,k])^T + bias[n]     m batch, n out, k in
//   input_grad    C[m,n] = A[m,k] (B[k,n] (.) S[k,n])                 m batch, n in,  k out
//   weight_grad   C[m,n] = (A[k,m]^T B[k,n]) (.) S[m,n]               m out,   n in,  k batch
//
// Every matrix is row-major with unit column stride and its own leading dimension, in elements.
// A problem is cut into independent tasks: no two tasks write the same element and no sum is split
// across tasks, so the result does not depend on how many threads run them.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "dtype.h"
#include "isa.h"

namespace maskfuse {

enum class Pass : int32_t { forward, input_grad, weight_grad };

struct MaskedGemm {
  Pass pass;
  Dtype dtype;
  int64_t m, n, k;
  const void* a;
  int64_t a_ld;
  const void* b;
  int64_t b_ld;
  // Binary mask: one bit an element, rows padded to 32 bits with zeros, least significant bit first.
  // Null when the mask is a matrix of factors.
  const uint32_t* bits;
  int64_t bits_ld;  // in 32-bit words
  // Real-valued mask of the problem's dtype; read only where bits is null.
  const void* factor;
  int64_t factor_ld;
  const void* bias;  // [n] or null; forward only
  void* c;
  int64_t c_ld;
};

// Half-open ranges of the result that one task computes.
struct Block {
  int64_t m0, m1, n0, n1;
};

enum class Kernel : int32_t {
  naive,     // three loops, one element of the result at a time: portable, and the one to read first
  row_dot,   // forward, few rows of A: dot products over rows of B, read once, nothing packed
  streamed,  // input_grad, few rows of A: B read in place in long rows, sums kept in cache
  packed,    // blocked product; the mask is applied while a panel of B is packed
};

using Task = void (*)(const MaskedGemm&, const Block&, void* scratch);

// Rows of A up to which B is read in place instead of being packed.
inline constexpr int64_t kFewRows = 8;

// Elements of scratch that a streamed task keeps its sums in: 16 KiB of floats, half a first-level cache.
inline constexpr int64_t kStreamSums = 4096;

// What one instruction set offers. Indices: [pass][dtype][0 bits, 1 factor].
struct MaskedLinearKernels {
  Task few_rows[2][4][2];  // row_dot, streamed
  Task packed[3][4][2];
  int32_t m_tile;     // rows of C held in registers
  int32_t n_tile[2];  // columns of C held in registers: float, double
  int32_t m_block;    // rows of A packed at once: sized for the second-level cache
  int32_t k_block;    // length of a packed panel
};

struct Schedule {
  Kernel kernel;
  Isa isa;
  Task task;
  int64_t m_step, n_step;    // size of a task's block
  int64_t m_tasks, n_tasks;  // task t covers row block t % m_tasks, column block t / m_tasks
  size_t scratch_bytes;      // for each thread, 64-byte aligned
  int64_t tasks() const { return m_tasks * n_tasks; }
};

const char* kernel_name(Kernel kernel);

// Chooses the kernel and cuts the problem for `threads` threads. Reads no data.
Schedule schedule(const MaskedGemm& problem, Isa isa, int threads);

// Runs task `index` of `schedule.tasks()`. Tasks may run in any order and at the same time.
void run_task(const MaskedGemm& problem, const Schedule& schedule, int64_t index, void* scratch);

const MaskedLinearKernels* masked_linear_kernels_avx2();
const MaskedLinearKernels* masked_linear_kernels_avx512();
// The readable version: [dtype][0 bits, 1 factor], every pass.
Task masked_linear_naive(Dtype dtype, bool has_bits);

}  // namespace maskfuse
