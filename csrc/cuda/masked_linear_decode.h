// y = x @ where(mask, w, 0)^T + bias for few rows of x, from a packed weight: only its bits and active values are read.
#pragma once

#include "masked_linear_pack.h"

namespace maskfuse::cuda {

// Rows of x that a call takes.
inline constexpr int64_t kDecodeRows = 16;

struct DecodeProblem {
  PackedTiles weight;
  const void* x;  // [m, weight.columns], rows x_ld elements apart
  int64_t x_ld, m;
  const void* bias;  // [weight.rows] or null
  void* y;           // [m, weight.rows], rows y_ld elements apart
  int64_t y_ld;
};

// How the weight is shared out: blocks of `strips` times 16 rows and, along the columns, `splits` of `slabs` slabs
// each.
struct DecodePlan {
  int strips;
  int64_t splits, slabs;
};

// What the plan wants to know of the device: multiprocessors, and the shared memory that a block may ask for.
struct DecodeDevice {
  int multiprocessors;
  int64_t block_shared;
};

// The plan for m rows of x. It fixes the order of sums: the same one for every call.
DecodePlan decode_plan(const PackedTiles& weight, int64_t m, const DecodeDevice& device);

// Splits leave their sums in a workspace, for a second kernel to add in order; 0 if there is one split.
int64_t decode_workspace_bytes(const PackedTiles& weight, int64_t m, const DecodePlan& plan);

cudaError_t masked_linear_decode(const DecodeProblem& problem, const DecodePlan& plan, void* workspace,
                                 cudaStream_t stream);

// One thread an output, walking over bits: to read, and to test the other against.
cudaError_t masked_linear_decode_naive(const DecodeProblem& problem, cudaStream_t stream);

}  // namespace maskfuse::cuda
