// Index arithmetic of the CUDA kernels, exhaustively at small sizes: which tile a block takes, where a piece lies in
// shared memory, and that what ldmatrix and mma are documented to do with it multiplies the right elements.
#include <array>
#include <set>
#include <stdexcept>

#include "../cuda/matrix_source.h"
#include "harness.h"

using namespace maskfuse;
using namespace maskfuse::cuda;
using namespace maskfuse::test;

namespace {

void tiles_are_taken_once() {
  for (int64_t m = 1; m <= 20; ++m)
    for (int64_t n = 1; n <= 20; ++n) {
      std::set<std::pair<int64_t, int64_t>> taken;
      for (int64_t block = 0; block < m * n; ++block) {
        const TileIndex tile = tile_of(block, m, n);
        CHECK(tile.m >= 0 && tile.m < m && tile.n >= 0 && tile.n < n, "block %ld of %ld x %ld", (long)block, (long)m,
              (long)n);
        taken.insert({tile.m, tile.n});
      }
      CHECK((int64_t)taken.size() == m * n, "%ld x %ld", (long)m, (long)n);
    }
}

// Every piece has a place of its own; eight neighbouring rows' same piece, and a row's eight neighbouring pieces, lie
// in the eight different sixteenths of the banks.
template <class Tile>
void pieces_have_places() {
  std::set<int> places;
  for (int row = 0; row < Tile::kRows; ++row)
    for (int piece = 0; piece < Tile::kRowPieces; ++piece) {
      const int at = Tile::at(row, piece);
      CHECK(at >= 0 && at % kPieceBytes == 0 && at + kPieceBytes <= Tile::kBytes, "row %d piece %d", row, piece);
      places.insert(at);
    }
  CHECK((int)places.size() == Tile::kPieces, "%d places", (int)places.size());
  const auto bank = [](int at) { return at / kPieceBytes % 8; };
  for (int row = 0; row < Tile::kRows; row += 8)
    for (int piece = 0; piece < Tile::kRowPieces; ++piece) {
      std::set<int> banks;
      for (int r = 0; r < 8; ++r) banks.insert(bank(Tile::at(row + r, piece)));
      CHECK(banks.size() == 8, "rows %d.., piece %d", row, piece);
    }
  for (int row = 0; row < Tile::kRows; ++row)
    for (int piece = 0; piece < Tile::kRowPieces; piece += 8) {
      std::set<int> banks;
      for (int p = 0; p < 8; ++p) banks.insert(bank(Tile::at(row, piece + p)));
      CHECK(banks.size() == 8, "row %d, pieces %d..", row, piece);
    }
}

struct Element {
  int outer, depth;
  bool operator==(const Element& other) const = default;
};

// The elements (row of the result, depth) that a lane's register holds after ldmatrix from a tile whose element (r, c)
// is (r, c), or with the depth along its rows (c, r).
std::array<Element, 2> loaded(int lane, int word, int outer, int depth, bool along_depth, bool rows_first) {
  const auto row_of = [&](int r) { return fragment_address(8 * word + r, outer, depth, along_depth, rows_first); };
  std::array<Element, 2> result;
  for (int half = 0; half < 2; ++half) {
    const int a = lane / 4, b = 2 * (lane % 4) + half;
    // Transposed where the tile's rows are the depth: the lane's row of the fragment is a column of the matrix.
    const FragmentAddress address = row_of(along_depth ? a : b);
    const int tile_row = address.row, tile_column = 8 * address.piece + (along_depth ? b : a);
    result[half] = along_depth ? Element{tile_row, tile_column} : Element{tile_column, tile_row};
  }
  return result;
}

void fragments_are_what_mma_takes() {
  for (bool along_depth : {true, false})
    for (int outer = 0; outer < 64; outer += 16)
      for (int depth = 0; depth < 64; depth += 16)
        for (int lane = 0; lane < 32; ++lane) {
          const int g = lane / 4, t = lane % 4;
          for (int half = 0; half < 2; ++half) {
            // A: (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8).
            for (int word = 0; word < 4; ++word) {
              const Element want{outer + g + 8 * (word & 1), depth + 2 * t + half + 8 * (word >> 1)};
              CHECK(loaded(lane, word, outer, depth, along_depth, true)[half] == want, "A, lane %d word %d", lane,
                    word);
            }
            // Two B's: of columns outer.. (2t, g), (2t + 8, g), then of columns outer + 8...
            for (int word = 0; word < 4; ++word) {
              const Element want{outer + g + 8 * (word >> 1), depth + 2 * t + half + 8 * (word & 1)};
              CHECK(loaded(lane, word, outer, depth, along_depth, false)[half] == want, "B, lane %d word %d", lane,
                    word);
            }
          }
        }
}

// Each lane loads a row that begins `shift` bytes behind a multiple of 16.
void load_kernel(int shift) {
  uint32_t words[4];
  load_matrices<false>(shared_memory() + lane_index() * kPieceBytes + shift, words);
}

void matrices_are_aligned() {
  for (int shift = 0; shift < 16; shift += 2) {
    bool thrown = false;
    try {
      CHECK(launch(load_kernel, 1, kWarp, (kWarp + 1) * kPieceBytes, nullptr, shift) == cudaSuccess, "launch");
    } catch (const std::runtime_error&) {
      thrown = true;
    }
    CHECK(thrown == (shift != 0), "%d bytes", shift);
  }
}

void bits_become_masks() {
  for (uint32_t bits = 0; bits < 256; ++bits)
    for (int pair = 0; pair < 4; ++pair) {
      const uint32_t mask = pair_mask(bits >> 2 * pair);
      CHECK((mask & 0xffff) == (bits >> 2 * pair & 1 ? 0xffffu : 0u), "bits %u pair %d", bits, pair);
      CHECK(mask >> 16 == (bits >> (2 * pair + 1) & 1 ? 0xffffu : 0u), "bits %u pair %d", bits, pair);
    }
  // Eight columns' bits of any row, tap and column.
  const int64_t rows = 3, taps = 4, columns = 70, words = 3;
  const std::vector<uint32_t> data = random_bits(rows * taps, columns, 0.5);
  const WeightBits bits{data.data(), taps * words, words, 0};
  for (int64_t row = 0; row < rows; ++row)
    for (int tap = 0; tap < taps; ++tap)
      for (int64_t column = 0; column < columns; ++column) {
        const bool want = data[(row * taps + tap) * words + column / 32] >> (column % 32) & 1;
        CHECK(bits.one(row, tap, column) == want, "one");
        CHECK((bits.eight(row, tap, column / 8 * 8) >> (column % 8) & 1) == want, "eight");
      }
}

// A cut has at least one part, no more parts than there are blocks of the depth for, and room for its partial sums.
void cuts_are_possible() {
  for (int64_t m : {1, 16, 64, 65, 128, 1000, 8192})
    for (int64_t n : {1, 64, 100, 4096})
      for (int64_t depth : {0, 1, 3, 8, 64, 1000})
        for (int groups : {1, 8}) {
          const ProductCut cut = cut_product(m, n, depth, groups, 132);
          CHECK(cut.splits >= 1 && (cut.splits == 1 || cut.splits * 4 <= depth), "%ld x %ld x %ld", (long)m, (long)n,
                (long)depth);
          CHECK(cut.groups == groups, "groups");
          CHECK((partial_floats(cut, m, n) == 0) == (cut.splits == 1), "partial sums");
          CHECK(partial_floats(cut, m, n) >= (cut.splits > 1 ? groups * cut.splits * m * n : 0), "partial sums");
        }
}

// What a block of each tile asks for: two of the small ones fit a multiprocessor of any device from compute capability
// 8.0 on, the large one every device's largest block.
void shared_memory_fits() {
  CHECK(LargeTile::kSharedBytes == 98304, "%d", LargeTile::kSharedBytes);
  CHECK(SmallTile::kSharedBytes == 49152, "%d", SmallTile::kSharedBytes);
  constexpr int kLeastOfAnyDevice = 99 << 10;
  CHECK(LargeTile::kSharedBytes <= kLeastOfAnyDevice && 2 * SmallTile::kSharedBytes <= kLeastOfAnyDevice, "room");
}

}  // namespace

int main() {
  shared_memory_fits();
  tiles_are_taken_once();
  pieces_have_places<SharedTile<128, 64>>();
  pieces_have_places<SharedTile<64, 128>>();
  pieces_have_places<SharedTile<64, 64>>();
  fragments_are_what_mma_takes();
  matrices_are_aligned();
  bits_become_masks();
  cuts_are_possible();
  return report("cuda_layout");
}
