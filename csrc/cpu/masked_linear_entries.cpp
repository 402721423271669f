#include "masked_linear_entries.h"

#include <algorithm>
#include <cstring>

#include "mask.h"

namespace maskfuse {
namespace {

// A column of a shared list does four rows' work in the time of this many columns of single lists: by the planner's
// table, with copying, at a batch of about 256; fewer at smaller ones.
constexpr double kSharedCost = 2.3;

// A union of this share of a chunk's columns is made one of all of them.
constexpr double kNearlyAll = 0.9;

uint64_t mix(uint64_t x) {
  x *= 0x9e3779b97f4a7c15u;
  return x ^ x >> 29;
}

}  // namespace

void tile_entries(const uint32_t* bits, const PlanHeader& header, int64_t panel, int64_t chunk,
                  std::vector<Entry>& list) {
  const int64_t row0 = panel * header.panel, row1 = std::min(row0 + header.panel, header.rows);
  const int64_t column0 = chunk * header.chunk;
  const int64_t words = mask_words(header.columns), word0 = column0 / 32;
  const int64_t used = std::min<int64_t>(header.chunk / 32, words - word0);

  // Rows in order of count, then pattern, then number.
  Pattern patterns[kMostRows];
  uint64_t order[kMostRows];
  int64_t listed = 0;
  for (int64_t r = row0; r < row1; ++r) {
    Pattern& p = patterns[r - row0];
    std::memset(&p, 0, sizeof(p));
    std::memcpy(p.words, bits + r * words + word0, used * sizeof(uint32_t));
    if (column0 + used * 32 > header.columns) p.words[used - 1] &= ~0u >> (column0 + used * 32 - header.columns);
    uint64_t count = 0, hash = 0;
    for (int64_t w = 0; w < used; ++w) {
      count += count_bits(p.words[w]);
      hash = mix(hash ^ p.words[w]);
    }
    if (count > 0) order[listed++] = count << 55 | (hash & (((uint64_t)1 << 47) - 1)) << 8 | (uint64_t)(r - row0);
  }
  std::sort(order, order + listed);

  const auto row_of = [&](int64_t i) { return (uint8_t)order[i]; };
  const auto same = [&](int64_t i, int64_t j) {
    return order[i] >> 8 == order[j] >> 8 &&
           std::memcmp(&patterns[row_of(i)], &patterns[row_of(j)], sizeof(Pattern)) == 0;
  };
  list.clear();
  uint8_t singles[kMostRows];
  int64_t single_count = 0;
  const int64_t wide = std::min<int64_t>(header.chunk, header.columns - column0);
  const auto four = [&](const uint8_t* rows, bool exact) {
    Entry e{};
    e.width = 4;
    e.exact = exact;
    for (int i = 0; i < 4; ++i) {
      e.rows[i] = rows[i];
      for (int64_t w = 0; w < used; ++w) e.columns.words[w] |= patterns[rows[i]].words[w];
    }
    for (int64_t w = 0; w < used; ++w) e.length += (uint16_t)count_bits(e.columns.words[w]);
    if (!exact && e.length >= kNearlyAll * (double)wide) {
      e.length = (uint16_t)wide;
      for (int64_t w = 0; w < used; ++w) e.columns.words[w] = wide - w * 32 >= 32 ? ~0u : ~0u >> (32 - (wide - w * 32));
    }
    return e;
  };
  for (int64_t i = 0; i < listed;) {
    if (i + 3 < listed && same(i, i + 1) && same(i, i + 2) && same(i, i + 3)) {
      const uint8_t rows[4] = {row_of(i), row_of(i + 1), row_of(i + 2), row_of(i + 3)};
      list.push_back(four(rows, true));
      i += 4;
    } else {
      singles[single_count++] = row_of(i++);
    }
  }
  // What is left, from the densest down: fours whose union is cheaper than their lists. Rows that are nearly full
  // are taken in their own order, in which their weights lie in memory.
  const auto count_of = [&](uint8_t row) {
    int64_t count = 0;
    for (int64_t w = 0; w < used; ++w) count += count_bits(patterns[row].words[w]);
    return count;
  };
  const int64_t dense = (int64_t)((double)(used * 32) * 0.5);
  int64_t first_dense = single_count;
  while (first_dense > 0 && count_of(singles[first_dense - 1]) >= dense) --first_dense;
  std::sort(singles + first_dense, singles + single_count);
  int64_t left = first_dense;
  for (int64_t i = first_dense; i < single_count;) {
    if (i + 4 <= single_count) {
      const Entry e = four(singles + i, false);
      int64_t sum = 0;
      for (int j = 0; j < 4; ++j) sum += count_of(singles[i + j]);
      if (kSharedCost * e.length < (double)sum) {
        list.push_back(e);
        i += 4;
        continue;
      }
    }
    singles[left++] = singles[i++];
  }
  for (int64_t i = 0; i < left; ++i) {
    Entry e{};
    e.width = 1;
    e.exact = 1;
    e.rows[0] = singles[i];
    e.columns = patterns[singles[i]];
    e.length = (uint16_t)count_of(singles[i]);
    list.push_back(e);
  }
  std::stable_sort(list.begin(), list.end(), [](const Entry& a, const Entry& b) {
    if (a.width != b.width) return a.width < b.width;
    return a.exact != b.exact ? a.exact > b.exact : a.length < b.length;
  });
}

}  // namespace maskfuse
