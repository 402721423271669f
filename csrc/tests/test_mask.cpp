// Packing, unpacking and the structure of masks.
#include <algorithm>

#include "harness.h"
#include "mask.h"

using namespace maskfuse;
using namespace maskfuse::test;

namespace {

void round_trip() {
  for (int i = 0; i < 200; ++i) {
    const int64_t rows = random_int(0, 5), columns = random_int(0, 130);
    std::vector<uint8_t> dense(rows * columns), back(rows * columns, 7);
    for (auto& byte : dense) byte = (uint8_t)(random_int(0, 1) * random_int(1, 255));  // any byte but 0 is true
    std::vector<uint32_t> bits(rows * mask_words(columns), ~0u);
    mask_pack(dense.data(), columns, bits.data(), 0, rows);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t b = 0; b < mask_words(columns) * 32; ++b) {
        const bool bit = bits[r * mask_words(columns) + b / 32] >> (b % 32) & 1;
        CHECK(bit == (b < columns && dense[r * columns + b] != 0), "row %ld bit %ld of %ld", (long)r, (long)b,
              (long)columns);
      }
    }
    for (auto& byte : dense) byte = byte != 0;
    mask_unpack(bits.data(), columns, back.data(), 0, rows);
    CHECK(back == dense, "%ld x %ld", (long)rows, (long)columns);
  }
}

MaskStructure structure_of(const std::vector<uint8_t>& dense, int64_t rows, int64_t columns, int64_t inner = 1) {
  std::vector<uint32_t> bits(rows * mask_words(columns));
  mask_pack(dense.data(), columns, bits.data(), 0, rows);
  return mask_structure(bits.data(), rows, columns, inner);
}

void structures() {
  constexpr int64_t kRows = 24, kColumns = 72;
  const auto make = [&](auto active) {
    std::vector<uint8_t> dense(kRows * kColumns);
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t c = 0; c < kColumns; ++c) dense[r * kColumns + c] = active(r, c);
    return dense;
  };
  using S = Structure;
  CHECK(structure_of(make([](auto, auto) { return 0; }), kRows, kColumns).kind == S::empty, "empty");
  CHECK(structure_of(make([](auto, auto) { return 1; }), kRows, kColumns).kind == S::full, "full");
  CHECK(
      structure_of(make([](auto r, auto c) { return r % 3 == 0 && c % 5 != 0; }), kRows, kColumns).kind == S::channels,
      "channels");

  // A checkerboard of 4 x 6 cells, whose size is no power of two.
  const auto blocks = structure_of(
      make([](auto r, auto c) { return (r / 4 * 5 + c / 6 * 3 + r / 4 * (c / 6)) % 4 < 2; }), kRows, kColumns);
  CHECK(blocks.kind == S::blocks && blocks.block_rows == 4 && blocks.block_columns == 6, "blocks %ld x %ld",
        (long)blocks.block_rows, (long)blocks.block_columns);

  const auto n_m = structure_of(make([](auto r, auto c) { return (c + c / 4 * r + r) % 4 < 2; }), kRows, kColumns);
  CHECK(n_m.kind == S::n_m && n_m.n == 2 && n_m.m == 4, "kind %ld, %ld of %ld", (long)n_m.kind, (long)n_m.n,
        (long)n_m.m);

  auto noise = make([](auto, auto) { return (int)random_int(0, 1); });
  const auto any = structure_of(noise, kRows, kColumns);
  CHECK(any.kind == S::unstructured && any.active == std::count(noise.begin(), noise.end(), 1), "noise");

  // Columns 0, 2, 4 of nine taps: one pattern in every row, but no whole channel.
  const auto taps = make([](auto, auto c) { return c % 9 % 2 == 0; });
  CHECK(structure_of(taps, kRows, kColumns, 9).kind != S::channels, "taps are not channels");
  CHECK(structure_of(taps, kRows, kColumns, 1).kind == S::channels, "taps as columns");
  CHECK(structure_of({}, 0, 0).kind == S::empty, "nothing");

  // One row, nine taps, two of every four channels at each tap.
  std::vector<uint8_t> row(8 * 9);
  for (int c = 0; c < 8; ++c)
    for (int tap = 0; tap < 9; ++tap) row[c * 9 + tap] = (c + tap * tap) % 4 < 2;
  const auto one = structure_of(row, 1, 72, 9);
  CHECK(one.kind == S::n_m && one.n == 2 && one.m == 4, "one row: kind %ld", (long)one.kind);
}

}  // namespace

int main() {
  round_trip();
  structures();
  return report("mask");
}
