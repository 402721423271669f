// Packed decode on the stand-in for the device: the layout of tiles, packing, and products against sums in double.
#include <limits>

#include "../cuda/masked_linear_decode.h"
#include "../cuda/masked_linear_tiles.h"
#include "../cuda/number.h"
#include "operands.h"

using namespace maskfuse;
using namespace maskfuse::cuda;
using namespace maskfuse::test;

namespace {

// Every weight of a slab belongs to one unit, and lies where mma takes it with x as it is.
template <int kUnit>
void places() {
  std::vector<int> seen(kStripRows * kSlabColumns, 0);
  for (int lane = 0; lane < kWarp; ++lane)
    for (int field = 0; field < kWordFields * lane_words(kUnit); ++field)
      for (int j = 0; j < kFieldUnits; ++j)
        for (int e = 0; e < kUnit; ++e) {
          const Place at = unit_place<kUnit>(lane, field, j);
          ++seen[at.row * kSlabColumns + at.column + e];
          const int mma = kUnit == 1 ? field / 2 : field, i = kUnit == 1 ? field % 2 + 2 * (j / 2) : j;
          const int g = lane / 4, t = lane % 4, next = kUnit == 1 ? j % 2 : e;
          // Register i holds row g + 8 (i % 2) and k = 2 t + 8 (i / 2) + next; x's words 2 (mma % 2) + i / 2 of the 16
          // bytes at column 32 (mma / 2) + 8 t meet it.
          const int column = 32 * (mma / 2) + 8 * t + 2 * (2 * (mma % 2) + i / 2) + next;
          CHECK(at.row == g + 8 * (i % 2) && at.column + e == column, "unit %d lane %d field %d, %d", kUnit, lane,
                field, j);
        }
  for (int count : seen) CHECK(count == 1, "unit %d: %d times", kUnit, count);
}

void words() {
  for (uint32_t i = 0; i < 16; ++i) {
    // Four bits in the lowest bits of bytes.
    uint32_t bits = 0;
    for (int j = 0; j < 4; ++j) bits |= (i >> j & 1) << (8 * j);
    for (int field = 0; field < 8; ++field) CHECK(field_bits(bits << field, field) == bits, "field %d", field);
    uint32_t below = 0;
    for (int j = 0; j < 4; ++j) {
      CHECK(after_bits(bits, j, 2, 7) == 7 + 2 * below, "bits %u below %d", i, j);
      below += i >> j & 1;
    }
    const auto pair = [&](uint32_t low, uint32_t high) {
      const uint32_t high_value = low ? 0xbbbbu : 0xaaaau;
      return (low ? 0xaaaau : 0u) | (high ? high_value << 16 : 0u);
    };
    CHECK(placed_pair<false>(bits, 0xaaaa, 0xbbbb) == pair(i & 1, i >> 1 & 1), "bits %u", i);
    CHECK(placed_pair<true>(bits, 0xaaaa, 0xbbbb) == pair(i >> 2 & 1, i >> 3 & 1), "bits %u", i);
  }
  const uint32_t counts[2] = {0x04030201u, 0x80706050u};
  for (int field = 0; field < 8; ++field)
    CHECK(after_units(counts, field, 4, 9) == 9 + 4 * (counts[field / 4] >> (8 * (field % 4)) & 255), "field %d",
          field);
}

// A weight with its mask and what packing makes of it, all in exactly their bytes.
struct Packed {
  Matrix weight;
  std::vector<uint32_t> bits;
  std::unique_ptr<char, Aligned> offsets, data;
  PackedTiles tiles;

  bool active(int64_t r, int64_t c) const {
    return c < weight.columns && (bits[r * mask_words(weight.columns) + c / 32] >> (c % 32) & 1);
  }

  Packed(Dtype dtype, int unit, int64_t rows, int64_t columns, double density)
      : weight(dtype, rows, columns, random_int(0, 3)), bits(random_bits(rows, columns, density)) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c)
        if (!active(r, c)) weight.set(dtype, r, c, std::numeric_limits<double>::quiet_NaN());
    // Bits past the last column must be zero; packing does not look at them even when they are not.
    if (columns % 32 != 0 && random_int(0, 1))
      for (int64_t r = 0; r < rows; ++r) bits[(r + 1) * mask_words(columns) - 1] |= ~0u << (columns % 32);
    const int64_t slabs = decode_slabs(rows, columns);
    offsets = buffer((size_t)(slabs + 2) * 4);
    uint32_t* const at = (uint32_t*)offsets.get();
    CHECK(decode_count(bits.data(), rows, columns, dtype, unit, at, nullptr) == cudaSuccess, "count");
    data = buffer((size_t)at[slabs] * kPieceBytes);
    CHECK(decode_pack(bits.data(), weight.bytes.data(), weight.ld, rows, columns, dtype, unit, at, data.get(),
                      nullptr) == cudaSuccess,
          "pack");
    tiles = {data.get(), at, rows, columns, dtype, unit, at[slabs + 1]};
  }
};

// Packing against the layout as masked_linear_tiles.h says it.
template <int kUnit>
void packing(Dtype dtype, int64_t rows, int64_t columns, double density) {
  const Packed packed(dtype, kUnit, rows, columns, density);
  const int64_t across = slabs_a_strip(columns), slabs = decode_slabs(rows, columns), bytes = dtype_size(dtype);
  int64_t at = 0, longest = 0;
  for (int64_t slab = 0; slab < slabs; ++slab) {
    CHECK(packed.tiles.offsets[slab] == at, "slab %ld", (long)slab);
    const uint32_t* const words = (const uint32_t*)(packed.data.get() + at * kPieceBytes);
    std::vector<char> values;
    for (int field = 0; field < kWordFields * lane_words(kUnit); ++field)
      for (int lane = 0; lane < kWarp; ++lane)
        for (int j = 0; j < kFieldUnits; ++j) {
          const Place place = unit_place<kUnit>(lane, field, j);
          const int64_t r = slab / across * kStripRows + place.row, c = slab % across * kSlabColumns + place.column;
          bool any = false;
          for (int e = 0; e < kUnit; ++e) any |= r < rows && packed.active(r, c + e);
          if (packed.tiles.offsets[slab + 1] > at) {
            const uint32_t word = words[lane * lane_words(kUnit) + field / kWordFields];
            CHECK((word >> (field % kWordFields + 8 * j) & 1) == any, "slab %ld lane %d", (long)slab, lane);
          }
          for (int e = 0; e < kUnit && any; ++e) {
            const char* const from = (const char*)packed.weight.bytes.data() + (r * packed.weight.ld + c + e) * bytes;
            if (packed.active(r, c + e))
              values.insert(values.end(), from, from + bytes);
            else
              values.insert(values.end(), (size_t)bytes, 0);
          }
        }
    if (!values.empty()) {
      values.resize((size_t)ceil_div((int64_t)values.size(), kPieceBytes) * kPieceBytes, 0);
      CHECK(std::memcmp(words + kWarp * lane_words(kUnit), values.data(), values.size()) == 0, "slab %ld", (long)slab);
      const int64_t pieces = word_pieces(kUnit) + (int64_t)values.size() / kPieceBytes;
      at += pieces, longest = std::max(longest, pieces);
    }
  }
  CHECK(packed.tiles.offsets[slabs] == at && packed.tiles.longest == longest, "%ld pieces", (long)at);
}

// Operands are eighths, so that sums are exact in every accumulator: results are the sums in double, rounded once.
void product(const Packed& packed, int64_t m, const DecodePlan& plan, bool unaligned, bool naive) {
  const PackedTiles& w = packed.tiles;
  const int64_t bytes = dtype_size(w.dtype);
  Matrix x(w.dtype, m, w.columns, unaligned ? random_int(0, 5) : 8 - w.columns % 8);
  Matrix bias(w.dtype, 1, w.rows);
  const bool with_bias = random_int(0, 1);
  const int64_t shift = unaligned ? bytes * random_int(0, 1) : 0;
  const auto x_bytes = buffer(x.bytes.size() + (size_t)shift);
  std::memcpy(x_bytes.get() + shift, x.bytes.data(), x.bytes.size());

  const int64_t y_ld = w.rows + random_int(0, 3), y_size = ((m - 1) * y_ld + w.rows) * bytes;
  std::vector<unsigned char> results[3];
  for (int run = 0; run < (naive ? 3 : 2); ++run) {
    std::vector<unsigned char>& y = results[run];
    y.assign((size_t)y_size, 0x77);
    const auto workspace = buffer((size_t)decode_workspace_bytes(w, m, plan));
    const DecodeProblem problem{w,   x_bytes.get() + shift, x.ld, m, with_bias ? bias.bytes.data() : nullptr, y.data(),
                                y_ld};
    const cudaError_t error = run == 2 ? masked_linear_decode_naive(problem, nullptr)
                                       : masked_linear_decode(problem, plan, workspace.get(), nullptr);
    CHECK(error == cudaSuccess, "%s", cudaGetErrorString(error));
    CHECK(y == results[0], "run %d differs: dtype %d unit %d, %ld x %ld, m %ld, %d strips, %ld splits", run,
          (int)w.dtype, w.unit, (long)w.rows, (long)w.columns, (long)m, plan.strips, (long)plan.splits);
  }
  const double step = w.dtype == Dtype::bf16 ? 0x1p-8 : w.dtype == Dtype::f16 ? 0x1p-11 : 0;
  for (int64_t b = 0; b < m; ++b)
    for (int64_t r = 0; r < y_ld && b * y_ld + r < y_size / bytes; ++r) {
      const unsigned char* const at = results[0].data() + (b * y_ld + r) * bytes;
      if (r >= w.rows) {
        for (int i = 0; i < bytes; ++i) CHECK(at[i] == 0x77, "written between rows");
        continue;
      }
      double sum = with_bias ? bias.values[r] : 0;
      for (int64_t c = 0; c < w.columns; ++c)
        if (packed.active(r, c)) sum += x.values[b * w.columns + c] * packed.weight.values[r * w.columns + c];
      const double error = std::abs(read(w.dtype, at) - sum);
      CHECK(error <= step * std::abs(sum),
            "dtype %d unit %d, %ld x %ld, m %ld, %d strips, %ld splits, y[%ld][%ld]: %g for %g", (int)w.dtype, w.unit,
            (long)w.rows, (long)w.columns, (long)m, plan.strips, (long)plan.splits, (long)b, (long)r, read(w.dtype, at),
            sum);
    }
}

DecodePlan plan_of(const PackedTiles& w, int strips, int64_t splits) {
  const int64_t slabs = slabs_a_strip(w.columns), each = std::max<int64_t>(1, ceil_div(slabs, splits));
  return {strips, std::max<int64_t>(1, ceil_div(slabs, each)), each};
}

constexpr DecodeDevice kDevice{132, 227 << 10};

void products() {
  const struct {
    int64_t rows, columns;
  } shapes[] = {{1, 1}, {15, 17}, {16, 16}, {17, 100}, {33, 257}, {100, 129}, {130, 1000}};
  for (Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::f16})
    for (int unit = 1; unit <= (dtype_size(dtype) == 2 ? 2 : 1); ++unit)
      for (const auto& shape : shapes)
        for (double density : {0., 0.05, 0.5, 1.}) {
          const Packed packed(dtype, unit, shape.rows, shape.columns, density);
          for (int i = 0; i < 2; ++i) {
            const int64_t m = random_int(1, kDecodeRows);
            const DecodePlan plan = i == 0 ? decode_plan(packed.tiles, m, kDevice)
                                           : plan_of(packed.tiles, 1 << random_int(0, 3), random_int(1, 4));
            product(packed, m, plan, random_int(0, 1), shape.rows < 130);
          }
        }
  // Every number of rows, and every plan of two slabs and of many.
  for (Dtype dtype : {Dtype::f32, Dtype::bf16, Dtype::f16}) {
    const Packed packed(dtype, dtype == Dtype::f16 ? 2 : 1, 40, 250, 0.3);
    for (int64_t m = 1; m <= kDecodeRows; ++m) product(packed, m, plan_of(packed.tiles, 8, 1), m % 2, m < 4);
  }
  for (int unit = 1; unit <= 2; ++unit)
    for (int64_t columns : {256, 1700}) {
      const Packed packed(Dtype::bf16, unit, 150, columns, unit == 1 ? 0.3 : 0.1);
      for (int strips : {1, 2, 4, 8})
        for (int64_t splits : {1, 2, 3, 14}) product(packed, 3, plan_of(packed.tiles, strips, splits), false, false);
    }
}

// Empty slabs between full ones: they are not in the data at all.
void blocks() {
  for (int unit = 1; unit <= 2; ++unit) {
    Packed packed(Dtype::bf16, unit, 64, 1024, 1);
    for (int64_t r = 0; r < 64; ++r)
      for (int64_t word = 0; word < 32; ++word)
        if ((r / 16 + word / 4) % 3 > 0) packed.bits[r * 32 + word] = 0;
    uint32_t* const at = (uint32_t*)packed.offsets.get();
    CHECK(decode_count(packed.bits.data(), 64, 1024, Dtype::bf16, unit, at, nullptr) == cudaSuccess, "count");
    const int64_t slabs = decode_slabs(64, 1024);
    packed.data = buffer((size_t)at[slabs] * kPieceBytes);
    CHECK(decode_pack(packed.bits.data(), packed.weight.bytes.data(), packed.weight.ld, 64, 1024, Dtype::bf16, unit, at,
                      packed.data.get(), nullptr) == cudaSuccess,
          "pack");
    packed.tiles.data = packed.data.get();
    for (int strips : {1, 4}) product(packed, 9, plan_of(packed.tiles, strips, 1), false, true);
  }
}

// Plans cover the columns, fit the device, and give every multiprocessor work where there is enough.
void plans() {
  for (int64_t columns : {0, 1, 128, 1000, 4096, 8192, 28672})
    for (int64_t rows : {1, 100, 4096, 8192, 28672})
      for (int64_t m : {1, 8, 16})
        for (int64_t longest : {0, 57, 93, 145, 272})
          for (const DecodeDevice& device : {kDevice, DecodeDevice{84, 99 << 10}}) {
            const PackedTiles w{nullptr, nullptr, rows, columns, Dtype::bf16, 1, longest};
            const DecodePlan plan = decode_plan(w, m, device);
            const int64_t slabs = slabs_a_strip(columns);
            CHECK(plan.splits * plan.slabs >= slabs && (plan.splits - 1) * plan.slabs <= slabs, "%ld x %ld", (long)rows,
                  (long)columns);
            const int64_t blocks = ceil_div(strip_count(rows), plan.strips) * plan.splits;
            if (rows * columns >= 4096 * 4096 && longest > 0)
              CHECK(blocks >= device.multiprocessors / 2, "%ld x %ld, m %ld: %ld blocks", (long)rows, (long)columns,
                    (long)m, (long)blocks);
          }
  CHECK(decode_unit(Dtype::bf16, 10, 100) == 2 && decode_unit(Dtype::bf16, 50, 100) == 1, "half");
  CHECK(decode_unit(Dtype::f32, 10, 100) == 1, "float");
}

void nothing() {
  for (Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    const Packed no_rows(dtype, 1, 0, 20, 1), no_columns(dtype, 1, 20, 0, 1), some(dtype, 1, 20, 20, 1);
    product(no_columns, 3, decode_plan(no_columns.tiles, 3, kDevice), false, true);
    unsigned char none = 0;
    const DecodeProblem rows{no_rows.tiles, &none, 20, 2, nullptr, &none, 0};
    CHECK(masked_linear_decode(rows, decode_plan(no_rows.tiles, 2, kDevice), nullptr, nullptr) == cudaSuccess, "rows");
    const DecodeProblem batch{some.tiles, &none, 20, 0, nullptr, &none, 20};
    CHECK(masked_linear_decode(batch, decode_plan(some.tiles, 0, kDevice), nullptr, nullptr) == cudaSuccess, "m");
    const DecodeProblem many{some.tiles, &none, 20, 17, nullptr, &none, 20};
    CHECK(masked_linear_decode(many, {8, 1, 1}, nullptr, nullptr) != cudaSuccess, "too many rows");
  }
}

}  // namespace

int main() {
  places<1>();
  places<2>();
  words();
  for (Dtype dtype : {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::f16})
    for (double density : {0., 0.02, 0.5, 1.})
      for (int64_t columns : {1, 127, 300}) {
        packing<1>(dtype, 35, columns, density);
        if (dtype_size(dtype) == 2) packing<2>(dtype, 35, columns, density);
      }
  plans();
  nothing();
  blocks();
  products();
  return report("cuda decode");
}
