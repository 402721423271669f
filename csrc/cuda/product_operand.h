// An operand of a product: its tiles in shared memory, filled from a source.
//
// A source has:
//   kAlongDepth              its pieces run along the depth, or along the rows (columns) of C
//   Block at(d)              what pieces of the depth's block d have in common
//   Outer outer(index)       what is known of a piece before the depth: of a row (column) of C, or of eight of them
//   Span span(Block, Outer, in_block)   where a piece lies and how many of its elements there are; in_block: of the
//                            depth, its first element or (not kAlongDepth) its only one
//   vectors                  16-byte reads are aligned
//   kMasked                  instead of span: Raw load(Block, Outer, in_block), and Piece finish(Raw)
//   in_group(g)              the source of a product's group g: several products of one shape are one launch
#pragma once

#include "ptx_copy_async.h"
#include "ptx_load_matrix.h"
#include "shared_tile.h"

namespace maskfuse::cuda {

inline constexpr int kDepth = 64;

// Eight elements of memory of which `count` are there.
template <class T>
struct Span {
  const T* data;
  int count;
};

// Eight elements, zeros where there are none.
template <class T>
__device__ __forceinline__ Piece read_piece(Span<T> from, bool vectors) {
  static_assert(sizeof(T) == 2);
  Piece piece{};
  if (vectors && from.count == kPieceElements) return *(const Piece*)from.data;
#pragma unroll
  for (int i = 0; i < kPieceElements; ++i)
    if (i < from.count) piece.word[i / 2] |= (uint32_t)from.data[i].bits << 16 * (i % 2);
  return piece;
}

// One operand's tiles in shared memory: kOuter rows (columns) of C by kDepth.
template <class T, class Source, int kOuter, int kThreads>
struct Operand {
  using Tile = SharedTile<Source::kAlongDepth ? kOuter : kDepth, Source::kAlongDepth ? kDepth : kOuter>;
  static constexpr int kTurns = Tile::kPieces / kThreads;
  static_assert(Tile::kPieces % kThreads == 0);

  Source source;
  int64_t origin;  // the first row (column) of C

  struct Where {
    int row, piece;
  };
  __device__ __forceinline__ static Where where(int turn) {
    const int i = (int)threadIdx.x + turn * kThreads;
    return {i / Tile::kRowPieces, i % Tile::kRowPieces};
  }

  // A thread's pieces: what is known before the depth, and those in flight between memory and shared memory (nothing
  // for plain sources).
  struct Flight {
    typename Source::Outer outer[kTurns];
    typename Source::Raw raw[kTurns];
  };

  __device__ __forceinline__ void prepare(Flight& flight) const {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const auto [row, piece] = where(turn);
      flight.outer[turn] = source.outer(origin + (Source::kAlongDepth ? row : piece * kPieceElements));
    }
  }

  __device__ __forceinline__ void start(int64_t block, char* tile, Flight& flight) const {
    const typename Source::Block at = source.at(block);
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const auto [row, piece] = where(turn);
      const int in_block = Source::kAlongDepth ? piece * kPieceElements : row;
      if constexpr (Source::kMasked) {
        flight.raw[turn] = source.load(at, flight.outer[turn], in_block);
      } else {
        const Span<T> span = source.span(at, flight.outer[turn], in_block);
        char* const to = tile + Tile::at(row, piece);
        if (source.vectors)
          copy_async(to, span.data, 2 * span.count);
        else
          *(Piece*)to = read_piece(span, false);
      }
    }
  }

  __device__ __forceinline__ void finish(char* tile, const Flight& flight) const {
    if constexpr (Source::kMasked) {
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
        const auto [row, piece] = where(turn);
        *(Piece*)(tile + Tile::at(row, piece)) = source.finish(flight.raw[turn]);
      }
    }
  }

  // The 16x16 fragment at (outer, depth) of the tile; see fragment_address.
  template <bool kRowsFirst>
  __device__ __forceinline__ static void fragment(const char* tile, int outer, int depth, uint32_t (&to)[4]) {
    const FragmentAddress at = fragment_address(lane_index(), outer, depth, Source::kAlongDepth, kRowsFirst);
    load_matrices<!Source::kAlongDepth>(tile + Tile::at(at.row, at.piece), to);
  }
};

}  // namespace maskfuse::cuda
