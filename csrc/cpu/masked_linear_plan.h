// The index of a binary mask in the order in which the accumulate kernel walks it.
//
// The mask is a matrix of rows (of the product's result) and columns (that the product sums over). Panels of
// rows by chunks of columns make tiles. Inside a tile the rows are entries, each with a list of columns:
//
//   width 1   one row and its active columns
//   width 4   four rows that share a list: rows of one pattern (blocks, channels), or rows so dense that their
//             union costs less than four lists. Then the run is not `exact`: a column of the list may be inactive in
//             some of the rows. A union of nearly all columns is made one of all, whose weights are copied fastest.
//
// Entries of one width and one list length are a run, so that a loop's length rarely changes and branches are
// predicted. An entry without active columns is not listed.
//
//   Plan in memory: PlanHeader | PlanTile[tiles + 1] | pattern words | PlanRun[] | rows[] | columns[]
//     pattern   of a mask that is whole rows and columns (channels): the bits of its rows, then of its columns
//     tiles     panel-major; tile t's runs, rows, columns and values end where those of t + 1 begin
//     rows      one byte a row of an entry: its number in the panel
//     columns   one byte a column of a list: its number in the chunk
//   Values (a copy of active weights, made in a call) come in the same order, `width` to a column.
//
// One byte an active weight, and one for each entry: with the transposed index about 2.3 bytes an active weight
// at density 0.1.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace maskfuse {

struct PlanHeader {
  uint32_t magic, chunk;  // columns a tile, at most 256
  int64_t rows, columns;  // of the mask
  int64_t panel;          // rows a tile, at most 256
  int64_t runs, row_bytes, column_bytes;
  int64_t single_entries;               // entries of one row
  int64_t values;                       // of all lists, width counted
  int64_t active;                       // bits that are set, those past the last column too
  int64_t strips;                       // four rows by 16 columns that have an active weight
  int64_t active_rows, active_columns;  // of a mask that is whole rows and columns and has a pattern; else 0
  int64_t most_panel_values;            // of the panel that has most
  int64_t bytes;                        // of the whole plan
};

struct PlanTile {
  uint32_t run, row, column, value;
};

struct PlanRun {
  uint16_t entries, length;
  uint8_t width, exact;
};

// Where the parts of a plan are; points into the plan's bytes.
struct Plan {
  const PlanHeader* header;
  const PlanTile* tiles;
  const uint32_t *row_pattern, *column_pattern;  // or null
  const PlanRun* runs;
  const uint8_t* rows;
  const uint8_t* columns;

  int64_t panels() const { return (header->rows + header->panel - 1) / header->panel; }
  int64_t chunks() const { return (header->columns + header->chunk - 1) / header->chunk; }
};

// Reads a plan's header. False where the bytes are no plan for rows x columns. The lists behind it are believed:
// kernels index with them.
bool plan_open(const void* bytes, int64_t size, int64_t rows, int64_t columns, Plan* plan);

// Whether the lists of an opened plan lead nowhere but into the matrix and the plan, however they came about.
bool plan_is_sound(const Plan& plan);

// Builds a plan in two steps, both cut by panel so that threads share the work; `layout` between them says how
// large the plan is and where each panel goes.
class PlanBuilder {
 public:
  // `active` bits are set; `cache_bytes` is the first-level data cache, which a tile of activations must fit. Of a
  // convolution's weight, `taps` columns together are one channel; of a linear layer's, 0 are.
  PlanBuilder(const uint32_t* bits, int64_t rows, int64_t columns, int64_t active, int64_t cache_bytes,
              int64_t taps = 0);
  ~PlanBuilder();
  PlanBuilder(const PlanBuilder&) = delete;
  PlanBuilder& operator=(const PlanBuilder&) = delete;

  int64_t panels() const;
  void build(int64_t panel);                    // any thread, once a panel
  int64_t layout();                             // then: bytes of the plan, or 0 where it has 2^32 values or more
  void write_header(void* plan) const;          // then, in any order
  void write(int64_t panel, void* plan) const;  // any thread

 private:
  struct State;
  State* state_;
};

}  // namespace maskfuse
