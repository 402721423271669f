// Which kernel runs a masked product: the one with the least estimated time.
//
// An estimate counts what a kernel does (Work) and multiplies by what each of those takes on an instruction set, from
// the table in masked_linear_planner.cpp. `python bench/calibrate.py` measures the table's numbers and prints them.
#pragma once

#include "masked_linear.h"

namespace maskfuse {

enum Rate {
  kPhase,      // a phase of tasks: waking threads, waiting for the last one
  kWeight,     // a weight read in place; of convolutions, a line of weights put in lanes
  kProduct,    // 64 bytes of weights times one row, read in place; of convolutions, times one pixel
  kLane,       // an element moved into lanes or out of them
  kValue,      // an active weight copied by a row's list
  kValueDown,  // an active weight copied by a list down the columns of B
  kLongValue,  // a weight copied, or passed over, with its whole row
  kEntry,      // an entry's sums loaded and stored, for a unit of the batch
  kSingle,     // an active weight times a unit
  kShared,     // a column of a list that four rows share, times a unit
  kShifted,    // of convolutions, an active weight times a unit in Kernel::shifted
  kVisit,      // and a channel's sums in a chunk, shifted and joined, for a unit
  kSample,     // an active weight's product over a unit
  kTile,       // four rows times 64 bytes of columns times one row of the batch; of convolutions, a line of a tile
  kResult,     // an element of the gradient written
  kCall,       // a call of the library
  kLibrary,    // the library's products, counted as kTile's
  kRead,       // a weight that the library reads, masked or not
  kMoved,      // an element moved with its channel
  kRates
};

const char* rate_name(int rate);

struct Work {
  double count[kRates] = {};
};

// The full product that Kernel::library leaves to a library: the whole problem, or its active channels where the mask
// is whole rows and columns. It is cut, along n, or along m in weight_grad, so that no copy of a large weight is made.
struct LibraryProduct {
  bool full, compact;
  int64_t m, n, k;  // what is multiplied
  int64_t step;     // of the problem's n or m; a multiple of 32

  explicit LibraryProduct(const MaskedGemm& problem);
};

// oneDNN multiplies what lies behind a row of half-type A by zeros, up to a multiple of this many columns: NaN there,
// another row's or beside a slice, would come through.
inline constexpr int64_t kHalfColumns = 32;

// A kernel that could run a problem.
struct Candidate {
  Kernel kernel;
  Work work;
  double nanoseconds;  // estimated
};

// All candidates, the chosen one first; returns their number, at most kMostCandidates.
inline constexpr int kMostCandidates = 5;
int candidates(const MaskedGemm& problem, Isa isa, int threads, Candidate* list);

// Makes every later choice fall on the named kernel where it is a candidate, for benchmarks and tests; "" undoes it.
// Returns false, and changes nothing, where there is no such kernel.
bool prefer_kernel(const char* name);

}  // namespace maskfuse
