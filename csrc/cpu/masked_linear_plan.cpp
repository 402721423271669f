#include "masked_linear_plan.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "mask.h"
#include "masked_linear_entries.h"

namespace maskfuse {
namespace {

constexpr uint32_t kMagic = 0x6d66706d;

// Bytes of activations that one column of a tile takes: see masked_linear_lanes.h.
constexpr int64_t kColumnBytes = 256;

// The same where columns are taps of 3 x 3: six rows of three copies of a channel serve four output rows.
constexpr int64_t kTapBytes = 128;

// Values of a panel are copied into scratch; more than this many leave the caches.
constexpr int64_t kPanelValues = 1 << 20;

int64_t floor_power_of_2(int64_t x) {
  int64_t power = 1;
  while (2 * power <= x) power *= 2;
  return power;
}

// What one panel adds to the plan.
struct PanelPart {
  std::vector<PlanTile> sizes;  // of its tiles
  std::vector<PlanRun> runs;
  std::vector<uint8_t> rows, columns;
  int64_t strips = 0, single_entries = 0;
};

// Four rows by 16 columns that have an active weight, among rows [begin, end).
int64_t count_strips(const uint32_t* bits, int64_t columns, int64_t begin, int64_t end) {
  const int64_t words = mask_words(columns);
  int64_t strips = 0;
  for (int64_t r = begin; r < end; r += 4)
    for (int64_t w = 0; w < words; ++w) {
      uint32_t any = 0;
      for (int64_t i = r; i < std::min(r + 4, end); ++i) any |= bits[i * words + w];
      any &= mask_columns(w, columns);
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
};

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
  for (int64_t w = 0; w < words; ++w) header.active_columns += count_bits(columns[w] & mask_columns(w, header.columns));
  if (header.active_columns == 0) {
    header.active_rows = 0;
    return pattern.clear();
  }
  pattern.insert(pattern.end(), columns, columns + words);
  pattern.back() &= mask_columns(words - 1, header.columns);
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
    tile_entries(state_->bits, h, panel, chunk, list);
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
