// Masked matrix products behind masked_linear, on raw pointers.
//
// The three passes of a masked linear layer are one kind of problem. With S the mask (bits, or a
// matrix of factors) and (.) the elementwise product:
//
//   forward       C[m,n] = A[m,k] (B[n,k] (.) S[n,k])^T + bias[n]     m batch, n out, k in
//   input_grad    C[m,n] = A[m,k] (B[k,n] (.) S[k,n])                 m batch, n in,  k out
//   weight_grad   C[m,n] = (A[k,m]^T B[k,n]) (.) S[m,n]               m out,   n in,  k batch
//
// With S the sigmoid of scores, weight_grad gives the gradients of weight and scores in one pass.
//
// Every matrix is row-major with unit column stride and its own leading dimension, in elements.
// A problem is cut into independent tasks: no two tasks write the same element and no sum is split
// across tasks, so the result does not depend on how many threads run them. Some kernels need one operand laid out
// anew first: that is a phase of its own, whose tasks must all be done before the others begin.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "dtype.h"
#include "isa.h"
#include "masked_linear_plan.h"

namespace maskfuse {

enum class Pass : int32_t { forward, input_grad, weight_grad };

// The active weights of B alone, made before the call: row after row for few rows of A (masked_linear_decode.h), and
// in the order of the plan for more (masked_linear_values.h).
struct Packed {
  const void* values;       // [active + kPackedPad] of the problem's dtype
  const uint16_t* columns;  // [active] or null: then the bits say where they belong
  const int64_t* rows;      // [rows of B + 1]: where each row's begin
  const void* ordered;      // [ordered_values(plan)] of the sums' dtype, or null
};

// Values behind the last active one, which are read and not used; and behind each panel's, which are written.
inline constexpr int64_t kPackedPad = 64;

// Values of all panels in the order of the plan, each with its pad.
inline int64_t ordered_values(const Plan& plan) { return plan.header->values + plan.panels() * kPackedPad; }

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
  // Real-valued mask of the problem's dtype, or, with `gate`, scores whose sigmoid is the mask; read only where bits is
  // null.
  const void* factor;
  int64_t factor_ld;
  bool gate;
  // weight_grad with `gate`: the weight, and where the scores' gradient goes; c takes the weight's.
  const void* weight;
  int64_t weight_ld;
  void* c_scores;
  int64_t c_scores_ld;
  // Index of the bits, or null: of the mask for forward and weight_grad, of its transpose for input_grad.
  const Plan* plan;
  const Packed* packed;  // or null; forward with bits only
  const void* bias;      // [n] or null; forward only
  void* c;
  int64_t c_ld;
  bool library;  // whoever runs the problem has a library at hand that multiplies full matrices

  static constexpr size_t kPlanned = 6;  // tensors of an op's plan with a packed weight
};

enum class Kernel : int32_t {
  naive,       // three loops, one element of the result at a time: portable, and the one to read first
  row_dot,     // forward, few rows of A: dot products over rows of B, read once, in place
  decode,      // forward, few rows of A, packed weights: only active ones are read
  streamed,    // input_grad, few rows of A: B read in place in long rows, sums kept in cache
  accumulate,  // forward, input_grad: lists of active weights times lines of the batch; without a plan, all weights
  sampled,     // weight_grad: one product over the batch an active weight
  tiled,       // weight_grad: register tiles, those that the mask leaves empty skipped
  shifted,     // convolutions, forward and input_grad: accumulate on one copy of the input, a sum for each dx
  direct,      // convolutions: register tiles of all weights between active channels, zeros where they are masked
  library,     // a full product by a library, between masked copies, or on the active channels alone
};

// What one call of a kernel computes: half-open ranges of rows and columns of the result, or, for kernels with
// activations in lanes, of blocks of the batch; and where it may work.
struct Part {
  int64_t m0, m1, n0, n1;
  int64_t panel;  // rows of the index that are handled together, where there is no plan to say it
  void* shared;   // one a call, filled in the first phase
  void* scratch;  // one a thread
};

using Task = void (*)(const MaskedGemm&, const Part&);

// Columns of a matrix moved together or apart, for masks that are whole rows and columns: see masked_linear_library.h.
struct MoveColumns {
  const void* from;
  int64_t from_ld;
  void* to;
  int64_t to_ld;
  int64_t columns;         // of the wide matrix
  const uint32_t* active;  // its columns
  const int32_t* rows;     // its rows, one for each of the narrow one's; null where they are the same
  const void* bias;        // [columns] or null; between columns that move apart
};

using Move = void (*)(const MoveColumns&, int64_t begin, int64_t end);

// Rows of A up to which B is read in place.
inline constexpr int64_t kFewRows = 8;

// Rows of A up to which packed weights are used, and up to which, where few are active, A is gathered from.
inline constexpr int64_t kDecodeRows = 16, kGatherRows = 3;

// Elements of scratch that a streamed task keeps its sums in: 16 KiB of floats, half a first-level cache.
inline constexpr int64_t kStreamSums = 4096;

// Bytes of batch in a unit, and units in a whole block: see masked_linear_lanes.h.
inline constexpr int64_t kUnitBytes = 64, kBlockUnits = 4;

// Without a plan: columns a tile, 32 KiB of lines, and rows a panel at most.
inline constexpr int64_t kDenseChunk = 128, kDensePanel = 128;

// tiled: rows a task at most, and rows of the batch at a time.
inline constexpr int64_t kTiledRows = 512, kTiledChunk = 128;

// What one instruction set offers. Indices: [pass][dtype][mask_index].
inline int mask_index(const MaskedGemm& g) { return g.bits ? 0 : g.gate ? 2 : 1; }

struct MaskedLinearKernels {
  Task few_rows[2][4][3];  // row_dot, streamed
  Task decode[4];
  Task lanes[4];             // first phase of accumulate and sampled
  Task accumulate[2][4][3];  // forward, input_grad
  // accumulate where values are few: first phase and second.
  Task values[2][4], accumulate_batch[4];
  Task sampled[4];
  Task tiled[4][3];
  // What surrounds a library's product.
  Task masked_copy[4][3], masked_result[4][3];
  Move gather[4], scatter[4];
  int32_t vector_bytes;
};

// How a range of m x n is cut: task t has part t % m_tasks of m and part t / m_tasks of n.
struct Grid {
  int64_t m, n, m_step, n_step, m_tasks, n_tasks;
  int64_t tasks() const { return m_tasks * n_tasks; }
};

struct Schedule {
  Kernel kernel;
  Isa isa;
  Task first_task, task;
  Grid first, grid;  // of the two phases; the first one may have no tasks
  int64_t panel;
  size_t shared_bytes, scratch_bytes;  // 64-byte aligned
};

const char* kernel_name(Kernel kernel);

// Chooses the kernel and cuts the problem for `threads` threads. Reads no data but the plan's header. Where the choice
// is `library` there are no tasks: the caller runs the product.
Schedule schedule(const MaskedGemm& problem, Isa isa, int threads);

// Runs task `index` of a phase, 0 or 1. The tasks of a phase may run in any order and at the same time.
void run_task(const MaskedGemm& problem, const Schedule& schedule, int phase, int64_t index, void* shared,
              void* scratch);

const MaskedLinearKernels* masked_linear_kernels_avx2();
const MaskedLinearKernels* masked_linear_kernels_avx512();
// Null where `isa` has none.
const MaskedLinearKernels* masked_linear_kernels(Isa isa);
// The readable version, every pass.
Task masked_linear_naive(const MaskedGemm& problem);

}  // namespace maskfuse
