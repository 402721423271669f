// A tile of 16-bit elements in shared memory, in pieces of eight.
//
// A row's pieces change places so that ldmatrix, which reads the same piece of eight neighbouring rows, and threads
// that write neighbouring pieces of a row both find them in different banks: piece p of row r lies at p ^ (r % 8).
#pragma once

#include "number.h"

namespace maskfuse::cuda {

inline constexpr int kPieceElements = 8;

// kRows x kColumns elements; kColumns is a multiple of 64.
template <int kRows_, int kColumns_>
struct SharedTile {
  static constexpr int kRows = kRows_, kColumns = kColumns_, kRowPieces = kColumns / kPieceElements;
  static constexpr int kPieces = kRows * kRowPieces, kBytes = kPieces * kPieceBytes;
  static_assert(kColumns % 64 == 0);

  // Bytes from the tile's beginning to a piece.
  __host__ __device__ static constexpr int at(int row, int piece) {
    return (row * kRowPieces + (piece ^ (row & 7))) * kPieceBytes;
  }
};

// Where lane l points ldmatrix for a 16x16 operand of mma, in the order of its registers (ptx_mma.h).
struct FragmentAddress {
  int row, piece;
};

// Operand A (16 rows of the result x 16 of the depth), or the two neighbouring B's of 16 columns of the result, from a
// tile whose rows are those of the result (`along_depth`: its columns are the depth), or from one whose rows are the
// depth. `outer` and `depth` are multiples of 8 and name the fragment's first element.
//
// A's registers go over its rows first, B's over the depth first: `rows_first`.
__host__ __device__ constexpr FragmentAddress fragment_address(int lane, int outer, int depth, bool along_depth,
                                                               bool rows_first) {
  const int matrix = lane / 8, in_matrix = lane % 8;
  const int low = 8 * (matrix & 1), high = 8 * (matrix >> 1);
  const int o = outer + (rows_first ? low : high), d = depth + (rows_first ? high : low);
  return along_depth ? FragmentAddress{o + in_matrix, d / kPieceElements}
                     : FragmentAddress{d + in_matrix, o / kPieceElements};
}

}  // namespace maskfuse::cuda
