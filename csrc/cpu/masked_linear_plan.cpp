#include "masked_linear_plan.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "mask.h"

namespace maskfuse {
namespace {

constexpr uint32_t kMagic = 0x6d66706d;
constexpr int64_t kMostRows = 256, kMostColumns = 256;

// Bytes of activations that one column of a tile takes: see masked_linear_lanes.h.
constexpr int64_t kColumnBytes = 256;

// The same where columns are taps of 3 x 3: six rows of three copies of a channel serve four output rows.
constexpr int64_t kTapBytes = 128;

// Values of a panel are copied into scratch; more than this many leave the caches.
constexpr int64_t kPanelValues = 1 << 20;

// A column of a shared list does four rows' work in the time of this many columns of single lists: by the planner's
// table, with copying, at a batch of about 256; fewer at smaller ones.
constexpr double kSharedCost = 2.3;

// A union of this share of a chunk's columns is made one of all of them.
constexpr double kNearlyAll = 0.9;

int64_t floor_power_of_2(int64_t x) {
  int64_t power = 1;
  while (2 * power <= x) power *= 2;
  return power;
}

// A row's bits in one chunk.
struct Pattern {
  uint32_t words[kMostColumns / 32];
};

struct Entry {
  uint16_t length;
  uint8_t width, exact;
  uint8_t rows[4];
  Pattern columns;
};

// What one panel adds to the plan.
struct PanelPart {
  std::vector<PlanTile> sizes;  // of its tiles
  std::vector<PlanRun> runs;
  std::vector<uint8_t> rows, columns;
  int64_t strips = 0, single_entries = 0;
};

// Bits of a row's word w that are columns.
uint32_t inside(int64_t w, int64_t columns) { return columns - w * 32 < 32 ? (1u << (columns - w * 32)) - 1 : ~0u; }

// Four rows by 16 columns that have an active weight, among rows [begin, end).
int64_t count_strips(const uint32_t* bits, int64_t columns, int64_t begin, int64_t end) {
  const int64_t words = mask_words(columns);
  int64_t strips = 0;
  for (int64_t r = begin; r < end; r += 4)
    for (int64_t w = 0; w < words; ++w) {
      uint32_t any = 0;
      for (int64_t i = r; i < std::min(r + 4, end); ++i) any |= bits[i * words + w];
      any &= inside(w, columns);
      strips += ((any & 0xffff) != 0) + (any >> 16 != 0);
    }
  return strips;
}

// Bits of a pattern of so many rows or columns.
int64_t count(const uint32_t* pattern, int64_t size) {
  int64_t active = 0;
  for (int64_t w = 0; w < mask_words(size); ++w) active += count_bits(pattern[w]);
  return active;
}

uint64_t mix(uint64_t x) {
  x *= 0x9e3779b97f4a7c15u;
  return x ^ x >> 29;
}

}  // namespace

bool plan_open(const void* bytes, int64_t size, int64_t rows, int64_t columns, Plan* plan) {
  if (size < (int64_t)sizeof(PlanHeader) || (uintptr_t)bytes % alignof(PlanHeader) != 0) return false;
  const auto* header = (const PlanHeader*)bytes;
  if (header->magic != kMagic || header->bytes != size || header->rows != rows || header->columns != columns)
    return false;
  const PlanHeader& h = *header;
  if (h.chunk < 32 || h.chunk > kMostColumns || h.chunk % 32 != 0 || h.panel < 1 || h.panel > kMostRows) return false;
  const auto within = [](int64_t count, int64_t most) { return count >= 0 && count <= most; };
  if (!within(h.runs, size) || !within(h.row_bytes, size) || !within(h.column_bytes, size) ||
      !within(h.single_entries, h.row_bytes) || !within(h.values, 4 * h.column_bytes) ||
      !within(h.most_panel_values, h.values) || !within(h.strips, rows * columns) || !within(h.active_rows, rows) ||
      !within(h.active_columns, columns) || !within(h.active, rows * columns))
    return false;
  const int64_t patterns = h.active_rows > 0 ? mask_words(rows) + mask_words(columns) : 0;
  const int64_t tiles = ((rows + h.panel - 1) / h.panel) * ((columns + h.chunk - 1) / h.chunk) + 1;
  if ((int64_t)sizeof(PlanHeader) + tiles * (int64_t)sizeof(PlanTile) + patterns * (int64_t)sizeof(uint32_t) +
          h.runs * (int64_t)sizeof(PlanRun) + h.row_bytes + h.column_bytes >
      size)
    return false;
  plan->header = header;
  plan->tiles = (const PlanTile*)(header + 1);
  const auto* pattern = (const uint32_t*)(plan->tiles + plan->panels() * plan->chunks() + 1);
  plan->row_pattern = plan->column_pattern = nullptr;
  if (header->active_rows > 0) {
    plan->row_pattern = pattern;
    plan->column_pattern = pattern + mask_words(rows);
    pattern = plan->column_pattern + mask_words(columns);
  }
  plan->runs = (const PlanRun*)pattern;
  plan->rows = (const uint8_t*)(plan->runs + header->runs);
  plan->columns = plan->rows + header->row_bytes;
  return plan->row_pattern == nullptr ||
         (count(plan->row_pattern, rows) == h.active_rows && count(plan->column_pattern, columns) == h.active_columns);
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

struct PlanBuilder::State {
  const uint32_t* bits;
  PlanHeader header;
  int64_t chunks;
  std::vector<PanelPart> parts;
  std::vector<PlanTile> tiles;    // where each begins
  std::vector<uint32_t> pattern;  // of rows, then of columns

  // Fills `pattern` where the mask is whole rows and columns.
  void find_pattern();
  // Bytes before the runs.
  int64_t fixed_bytes() const {
    return (int64_t)(sizeof(PlanHeader) + tiles.size() * sizeof(PlanTile) + pattern.size() * sizeof(uint32_t));
  }

  // The entries of a tile, in the order of the plan.
  void entries(int64_t panel, int64_t chunk, std::vector<Entry>& list) const;
};

void PlanBuilder::State::entries(int64_t panel, int64_t chunk, std::vector<Entry>& list) const {
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

void PlanBuilder::State::find_pattern() {
  const int64_t words = mask_words(header.columns);
  const uint32_t* columns = nullptr;  // the first row that is not empty
  pattern.assign((size_t)mask_words(header.rows), 0);
  for (int64_t r = 0; r < header.rows; ++r) {
    const uint32_t* const row = bits + r * words;
    if (std::all_of(row, row + words, [](uint32_t word) { return word == 0; })) continue;
    if (columns == nullptr) columns = row;
    if (!std::equal(row, row + words, columns)) {
      header.active_rows = 0;
      pattern.clear();
      return;
    }
    pattern[r / 32] |= 1u << (r % 32);
    ++header.active_rows;
  }
  if (columns == nullptr) return pattern.clear();
  for (int64_t w = 0; w < words; ++w) header.active_columns += count_bits(columns[w] & inside(w, header.columns));
  if (header.active_columns == 0) {
    header.active_rows = 0;
    return pattern.clear();
  }
  pattern.insert(pattern.end(), columns, columns + words);
  pattern.back() &= inside(words - 1, header.columns);
}

PlanBuilder::PlanBuilder(const uint32_t* bits, int64_t rows, int64_t columns, int64_t active, int64_t cache_bytes,
                         int64_t taps)
    : state_(nullptr) {
  auto state = std::make_unique<State>();  // until all of it is there: what follows allocates
  PlanHeader& h = state->header;
  state->bits = bits;
  h.magic = kMagic;
  h.rows = rows, h.columns = columns, h.active = std::min(active, rows * columns);
  // A tile of activations fills two thirds of the first-level cache. Where lists are short, wider tiles: reading the
  // second-level cache now and then costs less than loading and storing a row's sums for a handful of weights.
  const double density = rows * columns > 0 ? (double)active / ((double)rows * (double)columns) : 0;
  const int64_t column_bytes = taps > 1 ? kTapBytes : kColumnBytes;
  h.chunk =
      (uint32_t)std::min(kMostColumns, std::max<int64_t>(32, floor_power_of_2(cache_bytes * 2 / 3 / column_bytes)));
  if (density < 0.08) h.chunk = (uint32_t)std::min<int64_t>(kMostColumns, 2 * h.chunk);
  // Eight panels at least, to share among threads, which a convolution does not need; and so few rows that their values
  // stay in cache.
  int64_t panel = kMostRows;
  while (panel > 32 && panel * 8 > rows && taps == 0) panel /= 2;
  while (panel > 16 && panel * columns > kPanelValues) panel /= 2;
  h.panel = panel;
  state->chunks = (columns + h.chunk - 1) / h.chunk;
  state->parts.resize((size_t)((rows + panel - 1) / panel));
  state_ = state.release();
}

PlanBuilder::~PlanBuilder() { delete state_; }

int64_t PlanBuilder::panels() const { return (state_->header.rows + state_->header.panel - 1) / state_->header.panel; }

void PlanBuilder::build(int64_t panel) {
  PanelPart& part = state_->parts[panel];
  const PlanHeader& h = state_->header;
  part.strips = count_strips(state_->bits, h.columns, panel * h.panel, std::min((panel + 1) * h.panel, h.rows));
  std::vector<Entry> list;
  for (int64_t chunk = 0; chunk < state_->chunks; ++chunk) {
    state_->entries(panel, chunk, list);
    PlanTile size{};
    const Entry* before = nullptr;
    for (const Entry& e : list) {
      if (before == nullptr || before->width != e.width || before->length != e.length || before->exact != e.exact) {
        part.runs.push_back({0, e.length, e.width, e.exact});
        ++size.run;
      }
      ++part.runs.back().entries;
      before = &e;
      part.single_entries += e.width == 1;
      part.rows.insert(part.rows.end(), e.rows, e.rows + e.width);
      part.columns.resize(part.columns.size() + e.length);
      uint8_t* column = part.columns.data() + part.columns.size() - e.length;
      for (int64_t w = 0; w < kMostColumns / 32; ++w)
        for (uint32_t bits = e.columns.words[w]; bits != 0; bits &= bits - 1)
          *column++ = (uint8_t)(w * 32 + __builtin_ctz(bits));
      size.row += e.width;
      size.column += e.length;
      size.value += (uint32_t)e.length * e.width;
    }
    part.sizes.push_back(size);
  }
}

int64_t PlanBuilder::layout() {
  PlanHeader& h = state_->header;
  std::vector<PlanTile>& tiles = state_->tiles;
  int64_t run = 0, row = 0, column = 0, value = 0;
  const auto here = [&] { return PlanTile{(uint32_t)run, (uint32_t)row, (uint32_t)column, (uint32_t)value}; };
  for (const PanelPart& part : state_->parts) {
    const int64_t begin = value;
    for (const PlanTile& size : part.sizes) {
      tiles.push_back(here());
      run += size.run, row += size.row, column += size.column, value += size.value;
    }
    h.most_panel_values = std::max(h.most_panel_values, value - begin);
    h.strips += part.strips, h.single_entries += part.single_entries;
  }
  tiles.push_back(here());
  if (value > (int64_t)UINT32_MAX) return 0;
  h.runs = run, h.row_bytes = row, h.column_bytes = column, h.values = value;
  state_->find_pattern();
  h.bytes = state_->fixed_bytes() + run * (int64_t)sizeof(PlanRun) + row + column;
  return h.bytes;
}

void PlanBuilder::write_header(void* plan) const {
  std::memcpy(plan, &state_->header, sizeof(PlanHeader));
  auto* const tiles = (PlanTile*)((char*)plan + sizeof(PlanHeader));
  std::copy(state_->tiles.begin(), state_->tiles.end(), tiles);
  std::copy(state_->pattern.begin(), state_->pattern.end(), (uint32_t*)(tiles + state_->tiles.size()));
}

void PlanBuilder::write(int64_t panel, void* plan) const {
  const PanelPart& part = state_->parts[panel];
  if (part.sizes.empty()) return;
  const PlanTile& begin = state_->tiles[panel * state_->chunks];
  auto* const runs = (PlanRun*)((char*)plan + state_->fixed_bytes());
  auto* const rows = (uint8_t*)(runs + state_->header.runs);
  auto* const columns = rows + state_->header.row_bytes;
  std::copy(part.runs.begin(), part.runs.end(), runs + begin.run);
  std::copy(part.rows.begin(), part.rows.end(), rows + begin.row);
  std::copy(part.columns.begin(), part.columns.end(), columns + begin.column);
}

}  // namespace maskfuse
