// What product_sm90.h takes for granted of Hopper's instructions, exhaustively: where a bulk copy puts an element is
// where wgmma's descriptors and ldmatrix look for it, and each lane masks with the bits of its own elements. csrc/simt
// carries the instructions out as PTX documents them; here places are worked out anew.
#include <stdexcept>

#include "../cpu/mask.h"
#include "../cuda/product_sm90.h"
#include "harness.h"

using namespace maskfuse;
using namespace maskfuse::cuda;
using namespace maskfuse::test;

namespace {

// A 128-byte swizzle on top of rows of 128 bytes: sixteenth s of row r of eight lies at s ^ r.
uint32_t place_in_box(int row, int column) {
  return (uint32_t)(row * 128 + ((column / 8) ^ (row % 8)) * 16 + column % 8 * 2);
}

void descriptors_find_what_copies_put() {
  for (uint32_t base : {0u, 1024u, 0x8000u, 0x37000u})
    for (int first : {0, 16, 32, 48})
      for (int outer = 0; outer < 128; ++outer)
        for (int depth = 0; depth < 16; ++depth) {
          // One box whose rows are those of the result.
          const uint64_t along = group_operand(group_operand_at(base, first, true), true);
          CHECK(group_element(along, true, outer, depth) == base + place_in_box(outer, first + depth), "%d, %d", outer,
                first + depth);
          // Boxes of 64 rows (columns) of the result, whose rows are the depth.
          const uint64_t across = group_operand(group_operand_at(base, first, false), false);
          CHECK(group_element(across, false, outer, depth) ==
                    base + (uint32_t)outer / 64 * 8192 + place_in_box(first + depth, outer % 64),
                "%d, %d", outer, first + depth);
        }
  const uint64_t operand = group_operand(0x37400, false);
  CHECK((operand & 0x3fff) << 4 == 0x37400, "address");
  CHECK((operand >> 16 & 0x3fff) << 4 == 8192 && (operand >> 32 & 0x3fff) << 4 == 1024, "strides");
  CHECK(operand >> 49 == (uint64_t)1 << (62 - 49), "swizzle");
}

void shared_tiles_are_boxes() {
  for (int row = 0; row < 128; ++row)
    for (int piece = 0; piece < 8; ++piece)
      CHECK((uint32_t)(SharedTile<128, 64>::at(row, piece)) == place_in_box(row, 8 * piece), "row %d piece %d", row,
            piece);
}

constexpr int kBlocks = 3;

template <bool kAlongDepth>
__global__ void fragments_kernel(const uint32_t* bits, int64_t ld, int64_t rows, int64_t outer, uint32_t* results) {
  for (int block = 0; block < kBlocks; ++block) {
    const uint32_t word = mask_word<kAlongDepth>(bits, ld, rows, outer, block);
    uint32_t a[4][4];
    for (auto& fragment : a)
      for (uint32_t& value : fragment) value = 0xffffffff;
    mask_fragments<kAlongDepth>(word, a);
    for (int i = 0; i < 16; ++i) results[(block * kWarp + lane_index()) * 16 + i] = a[i / 4][i % 4];
  }
}

// Fragment f, word w, half h of lane l is the weight's element (outer, depth) with outer = g + 8 (w % 2) and depth =
// 16 f + 2 t + h + 8 (w / 2).
template <bool kAlongDepth>
void masks_are_of_own_elements() {
  // Rows and columns that end within a fragment's 16 and a block's 64.
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{192, 192}, {150, 160}, {72, 104}, {1, 8}}) {
    const std::vector<uint32_t> bits = random_bits(rows, columns, 0.5);
    const int64_t ld = mask_words(columns);
    for (int64_t outer = 0; outer < 208; outer += 16) {
      std::vector<uint32_t> results((size_t)kBlocks * kWarp * 16);
      CHECK(launch(fragments_kernel<kAlongDepth>, dim3(1), kWarp, 0, nullptr, bits.data(), ld, rows, outer,
                   results.data()) == cudaSuccess,
            "launch");
      for (int block = 0; block < kBlocks; ++block)
        for (int lane = 0; lane < kWarp; ++lane)
          for (int i = 0; i < 32; ++i) {
            const int f = i / 8, w = i / 2 % 4, h = i % 2;
            const int64_t o = outer + lane / 4 + 8 * (w % 2);
            const int64_t d = 64 * block + 16 * f + 2 * (lane % 4) + h + 8 * (w / 2);
            const int64_t row = kAlongDepth ? o : d, column = kAlongDepth ? d : o;
            const bool want =
                row < rows && column < 32 * ld && (bits[row * ld + column / 32] >> (column % 32) & 1) != 0;
            const uint32_t got = results[(block * kWarp + lane) * 16 + i / 2] >> 16 * h & 0xffff;
            CHECK(got == (want ? 0xffff : 0), "along %d, outer %ld block %d lane %d element %d", (int)kAlongDepth,
                  (long)outer, block, lane, i);
          }
    }
  }
}

// A box at any place, also outside of the matrix, and the barrier that counts it.
__global__ void copy_kernel(const TensorMap map, int64_t row, int64_t column, uint16_t* results) {
  char* const shared = shared_memory();
  auto* const arrived = (SharedBarrier*)(shared + 8192);
  if (threadIdx.x == 0) arrived->begin(1), publish_barriers();
  sync_block();
  for (uint32_t phase = 0; phase < 2; ++phase) {
    if (threadIdx.x == 0) arrived->arrive_with(8192), copy_box(shared, map, row + phase, column, arrived);
    arrived->wait(phase);
    if (phase == 0) sync_block();  // everyone has waited before the next one begins
  }
  for (int i = (int)threadIdx.x; i < 64 * 64; i += kWarp)
    results[i] = *(const uint16_t*)(shared + SharedTile<64, 64>::at(i / 64, i % 64 / 8) + i % 8 * 2);
}

void copies_fill_boxes() {
  const int64_t rows = 70, columns = 72, ld = 80;
  std::vector<uint16_t> data((size_t)(rows * ld));
  for (size_t i = 0; i < data.size(); ++i) data[i] = (uint16_t)(i + 1);
  TensorMap map;
  CHECK(make_tensor_map(&map, data.data(), rows, columns, ld, 64, Dtype::bf16) == cudaSuccess, "map");
  for (int64_t row : {0, 5, 60, 100})
    for (int64_t column : {0, 8, 64, 128}) {
      std::vector<uint16_t> results(64 * 64);
      CHECK(launch(copy_kernel, dim3(1), kWarp, 8192 + 8, nullptr, map, row, column, results.data()) == cudaSuccess,
            "launch");
      for (int64_t r = 0; r < 64; ++r)
        for (int64_t c = 0; c < 64; ++c) {
          const int64_t at = row + 1 + r;
          const int want = at < rows && column + c < columns ? data[at * ld + column + c] : 0;
          CHECK(results[r * 64 + c] == want, "(%ld, %ld) + (%ld, %ld)", (long)row, (long)column, (long)r, (long)c);
        }
    }
  CHECK(make_tensor_map(&map, data.data() + 1, rows, columns, ld, 64, Dtype::bf16) != cudaSuccess, "unaligned data");
  CHECK(make_tensor_map(&map, data.data(), rows, columns, 64, 64, Dtype::bf16) != cudaSuccess, "rows that overlap");
  CHECK(make_tensor_map(&map, data.data(), rows, columns, ld - 1, 64, Dtype::bf16) != cudaSuccess, "unaligned rows");
}

// A wait for bytes that nobody copies, and a barrier that was not begun, do not pass unseen.
__global__ void waiting_kernel(bool begun) {
  auto* const barrier = (SharedBarrier*)shared_memory();
  if (begun && threadIdx.x == 0) barrier->begin(1);
  sync_block();
  if (threadIdx.x == 0) barrier->arrive_with(16);
  barrier->wait(0);
}

void mistakes_are_found() {
  for (bool begun : {true, false}) {
    bool threw = false;
    try {
      (void)launch(waiting_kernel, dim3(1), kWarp, 8, nullptr, begun);
    } catch (const std::runtime_error&) {
      threw = true;
    }
    CHECK(threw, "begun %d", (int)begun);
  }
}

// What a block asks for fits a multiprocessor of compute capability 9.0.
void shared_memory_fits() {
  CHECK(Sm90Tile<2>::kSharedBytes == 229440, "%d", Sm90Tile<2>::kSharedBytes);
  CHECK(Sm90Tile<1>::kSharedBytes == 229472, "%d", Sm90Tile<1>::kSharedBytes);
}

}  // namespace

int main() {
  descriptors_find_what_copies_put();
  shared_tiles_are_boxes();
  masks_are_of_own_elements<true>();
  masks_are_of_own_elements<false>();
  copies_fill_boxes();
  mistakes_are_found();
  shared_memory_fits();
  return report("cuda_sm90");
}
