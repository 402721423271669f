#include "mask.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <numeric>

namespace maskfuse {
namespace {

bool bit(const uint32_t* row, int64_t column) { return row[column >> 5] >> (column & 31) & 1; }

// Eight bytes to eight bits, any byte but 0 to 1, and back.
uint32_t pack8(uint64_t bytes) {
  const uint64_t high = ((bytes & 0x7f7f7f7f7f7f7f7fu) + 0x7f7f7f7f7f7f7f7fu) | bytes;
  return (uint32_t)((high >> 7 & 0x0101010101010101u) * 0x0102040810204080u >> 56);
}
uint64_t unpack8(uint32_t bits) {
  const uint64_t spread = (uint64_t)(bits & 255) * 0x0101010101010101u & 0x8040201008040201u;
  return (spread + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
}

// Positions in a row where the value differs from the column before, as bits.
uint32_t changes(const uint32_t* row, int64_t word) {
  const uint32_t before = word > 0 ? row[word - 1] >> 31 : row[0] & 1;
  return row[word] ^ (row[word] << 1 | before);
}

// n where exactly n of every m consecutive channels are active in all rows, else 0.
int64_t count_of_every(const uint32_t* bits, int64_t rows, int64_t columns, int64_t inner, int64_t m) {
  const int64_t words = mask_words(columns), channels = columns / inner;
  if (channels % m != 0) return 0;
  int64_t n = -1;
  for (int64_t r = 0; r < rows; ++r) {
    const uint32_t* row = bits + r * words;
    for (int64_t group = 0; group < channels; group += m) {
      for (int64_t i = 0; i < inner; ++i) {
        int64_t count = 0;
        for (int64_t c = group; c < group + m; ++c) count += bit(row, c * inner + i);
        if (n < 0) n = count;
        if (n != count) return 0;
      }
    }
  }
  return n < m ? n : 0;
}

}  // namespace

void mask_pack(const uint8_t* dense, int64_t columns, uint32_t* bits, int64_t row0, int64_t row1) {
  const int64_t words = mask_words(columns);
  if (words == 0) return;  // however many rows there are
  for (int64_t r = row0; r < row1; ++r) {
    const uint8_t* from = dense + r * columns;
    uint32_t* to = bits + r * words;
    int64_t c = 0;
    for (; c + 32 <= columns; c += 32) {
      uint64_t part[4];
      std::memcpy(part, from + c, 32);
      *to++ = pack8(part[0]) | pack8(part[1]) << 8 | pack8(part[2]) << 16 | pack8(part[3]) << 24;
    }
    if (c < columns) {
      uint32_t word = 0;
      for (int64_t i = 0; c + i < columns; ++i) word |= (uint32_t)(from[c + i] != 0) << i;
      *to = word;
    }
  }
}

void mask_unpack(const uint32_t* bits, int64_t columns, uint8_t* dense, int64_t row0, int64_t row1) {
  const int64_t words = mask_words(columns);
  if (words == 0) return;  // however many rows there are
  for (int64_t r = row0; r < row1; ++r) {
    const uint32_t* from = bits + r * words;
    uint8_t* to = dense + r * columns;
    int64_t c = 0;
    for (; c + 8 <= columns; c += 8) {
      const uint64_t bytes = unpack8(from[c >> 5] >> (c & 31));
      std::memcpy(to + c, &bytes, 8);
    }
    for (; c < columns; ++c) to[c] = bit(from, c);
  }
}

MaskStructure mask_structure(const uint32_t* bits, int64_t rows, int64_t columns, int64_t inner) {
  const int64_t words = mask_words(columns);
  MaskStructure s{Structure::unstructured, 0, 1, 1, 0, 0};
  if (rows == 0 || columns == 0) return s.kind = Structure::empty, s;  // however many rows without columns

  // One pass: the number of active weights; whether all rows that are not empty are the same; the
  // greatest common divisors of the positions where rows, and where columns, change.
  const uint32_t* pattern = nullptr;
  bool same_rows = true;
  int64_t row_step = 0, column_step = 0;  // 0: no change seen; an edge cut off a block is none
  for (int64_t r = 0; r < rows; ++r) {
    const uint32_t* row = bits + r * words;
    int64_t count = 0;
    for (int64_t w = 0; w < words; ++w) count += count_bits(row[w]);
    s.active += count;
    const size_t bytes = (size_t)words * sizeof(uint32_t);
    if (count > 0) {
      if (pattern == nullptr)
        pattern = row;
      else if (same_rows)
        same_rows = std::memcmp(pattern, row, bytes) == 0;
    }
    if (r > 0 && row_step != 1 && std::memcmp(row - words, row, bytes) != 0) row_step = std::gcd(row_step, r);
    for (int64_t w = 0; w < words && column_step != 1; ++w) {
      uint32_t change = changes(row, w) & mask_columns(w, columns);  // the edge to the padding is no change
      for (; change != 0 && column_step != 1; change &= change - 1)
        column_step = std::gcd(column_step, w * 32 + __builtin_ctz(change));
    }
  }
  if (pattern == nullptr)
    s.kind = Structure::empty;
  else if (s.active == rows * columns)
    s.kind = Structure::full;
  if (s.kind != Structure::unstructured) return s;

  bool whole_channels = true;
  for (int64_t c = 0; c < columns && same_rows && whole_channels; ++c)
    whole_channels = bit(pattern, c) == bit(pattern, c / inner * inner);
  if (same_rows && whole_channels) {
    s.kind = Structure::channels;
    return s;
  }
  if (row_step == 0) row_step = rows;
  if (column_step == 0) column_step = columns;
  if (row_step * column_step > 1) {
    s.kind = Structure::blocks;
    s.block_rows = row_step;
    s.block_columns = column_step;
    return s;
  }
  for (int64_t m : {2, 4, 8, 16, 32}) {
    const int64_t n = count_of_every(bits, rows, columns, inner, m);
    if (n > 0) {
      s.kind = Structure::n_m;
      s.n = n;
      s.m = m;
      break;
    }
  }
  return s;
}

namespace {

// `count` bits, at most 32, from `at` on.
uint32_t bits_at(const uint32_t* bits, int64_t at, int64_t count) {
  uint64_t two = bits[at >> 5];
  if ((at & 31) + count > 32) two |= (uint64_t)bits[(at >> 5) + 1] << 32;
  return (uint32_t)(two >> (at & 31) & ((uint64_t{1} << count) - 1));
}

// The transpose where columns move in groups.
void transpose_groups(const uint32_t* bits, int64_t rows, int64_t columns, int64_t taps, uint32_t* to, int64_t begin,
                      int64_t end) {
  const int64_t words = mask_words(columns), to_words = mask_words(rows * taps);
  for (int64_t c = begin; c < end; ++c) {
    uint32_t* const row = to + c * to_words;
    std::fill(row, row + to_words, 0u);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t t = 0; t < taps; t += 32) {
        const int64_t count = std::min<int64_t>(32, taps - t), at = r * taps + t;
        const uint64_t two = (uint64_t)bits_at(bits + r * words, c * taps + t, count) << (at & 31);
        row[at >> 5] |= (uint32_t)two;
        if (two >> 32) row[(at >> 5) + 1] |= (uint32_t)(two >> 32);
      }
  }
}

}  // namespace

void mask_transpose(const uint32_t* bits, int64_t rows, int64_t columns, int64_t taps, uint32_t* to, int64_t begin,
                    int64_t end) {
  if (taps > 1) return transpose_groups(bits, rows, columns, taps, to, begin, end);
  const int64_t words = mask_words(columns), to_words = mask_words(rows);
  for (int64_t c = begin; c < end; c += 32) {
    for (int64_t r = 0; r < rows; r += 32) {
      uint32_t block[32];
      for (int64_t i = 0; i < 32; ++i) block[i] = r + i < rows ? bits[(r + i) * words + (c >> 5)] : 0;
      // Swaps halves, quarters, ... of a 32 x 32 bit matrix across its diagonal (Warren, Hacker's Delight, 7-3).
      uint32_t mask = 0x0000ffff;
      for (int step = 16; step != 0; step >>= 1, mask ^= mask << step) {
        for (int i = 0; i < 32; i = (i + step + 1) & ~step) {
          const uint32_t swap = (block[i] >> step ^ block[i + step]) & mask;
          block[i] ^= swap << step;
          block[i + step] ^= swap;
        }
      }
      for (int64_t i = 0; i < 32 && c + i < columns; ++i) to[(c + i) * to_words + (r >> 5)] = block[i];
    }
  }
}

}  // namespace maskfuse
