// masked_linear_decode for half types, by mma.
#pragma once

#include "masked_linear_decode_scalar.h"
#include "ptx_copy_async.h"
#include "ptx_mma.h"

namespace maskfuse::cuda {
namespace {

// Padding of x's rows in shared memory: 64 bytes beyond a multiple of 128, so that 8 lanes' 16 bytes of two rows meet
// no bank twice.
constexpr int kRowPad = 32;

// Shared memory: a ring of `stages` slots for each warp, then x's part [m][x_stride].
struct DecodeStages {
  int strips;       // of a block; the warps of a strip split its columns
  int stages;       // 2, 3 or 6
  int slot_pieces;  // as long as the longest slab
  int x_stride;     // in elements
  bool x_aligned;   // to 16 bytes, every row
};

// Until all but the last stages - kDone of a thread's copies are there.
template <int kDone>
__device__ __forceinline__ void wait_stages(int stages) {
  if (stages == 6)
    copy_wait<6 - kDone>();
  else if (stages == 3)
    copy_wait<3 - kDone>();
  else
    copy_wait<2 - kDone>();
}

// Columns [first, first + width) of x to shared memory, zeros past the last: what meets no weight must still be finite.
template <class T>
__device__ void stage_rows(const DecodeArguments<T>& g, const DecodeStages& s, int64_t first, int width, T* to) {
  constexpr int kElements = kPieceBytes / (int)sizeof(T);
  const int pieces = width / kElements;
  for (int i = (int)threadIdx.x; i < g.m * pieces; i += kThreads) {
    const int r = i / pieces, c = (i - r * pieces) * kElements;
    const T* const from = g.x + r * g.x_ld;
    T* const there = to + r * s.x_stride + c;
    const int64_t left = g.columns - first - c;
    const int count = left <= 0 ? 0 : left < kElements ? (int)left : kElements;
    if (s.x_aligned) {
      copy_async(there, count > 0 ? from + first + c : from, count * (int)sizeof(T));
    } else {
#pragma unroll
      for (int e = 0; e < kElements; ++e) there[e] = e < count ? from[first + c + e] : T{};
    }
  }
}

// The weights of mma `mma` of a word, as its registers. `offset`: of the fields' values in shared memory; moved past
// them.
template <int kUnit>
__device__ __forceinline__ void place_weights(const char* shared, uint32_t word, const FieldCounts& counts, int mma,
                                              uint32_t& offset, uint32_t (&a)[4]) {
  constexpr int kUnitBytes = 2 * kUnit;
  if constexpr (kUnit == 1) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int field = 2 * mma + h;
      const uint32_t bits = field_bits(word, field), at = after_units(counts.below, field, kUnitBytes, offset);
      // The value behind may be another lane's, or past the slab; it is taken only where both are active.
      const uint16_t* const first = (const uint16_t*)(shared + at);
      const uint16_t* const second = (const uint16_t*)(shared + after_bits(bits, 2, kUnitBytes, at));
      a[h] = placed_pair<false>(bits, first[0], first[1]);
      a[2 + h] = placed_pair<true>(bits, second[0], second[1]);
      offset = after_units(counts.all, field, kUnitBytes, offset);
    }
  } else {
    const uint32_t bits = field_bits(word, mma), signs = word << (kWordFields - 1 - mma);
    const uint32_t at = after_units(counts.below, mma, kUnitBytes, offset);
#pragma unroll
    for (int j = 0; j < kFieldUnits; ++j) {
      const uint32_t pair = *(const uint32_t*)(shared + after_bits(bits, j, kUnitBytes, at));
      a[j] = pair & permute_bytes(signs, 0, 0x8888u + 0x1111u * (uint32_t)j);
    }
    offset = after_units(counts.all, mma, kUnitBytes, offset);
  }
}

// A place in each slot of a ring, slot after slot.
struct RingPlace {
  uint32_t at, first, last;
  uint32_t slot_bytes;

  // `place`: in the first slot.
  __device__ __forceinline__ RingPlace(const DecodeStages& s, uint32_t place)
      : at(place), first(place), slot_bytes((uint32_t)(s.slot_pieces * kPieceBytes)) {
    last = first + (uint32_t)(s.stages - 1) * slot_bytes;
  }
  __device__ __forceinline__ void step() { at = at == last ? first : at + slot_bytes; }
};

// The slabs of a strip that a warp takes, copied one by one to its ring. Only the lanes of the warp wait for each
// other.
template <int kUnit>
struct SlabCopies {
  RingPlace to;  // of this lane's piece
  int count, fetched = 0;
  const uint32_t* offsets;
  uint32_t first_slab;
  uint32_t at, next, coming;  // where the next slabs begin, read ahead of the copies
  const Piece* from;          // this lane's first piece of the next slab

  template <class Arguments>
  __device__ __forceinline__ SlabCopies(const Arguments& g, const DecodeStages& s, uint32_t ring, int64_t first,
                                        int count)
      : to(s, ring + (uint32_t)(lane_index() * kPieceBytes)),
        count(count),
        offsets(g.offsets),
        first_slab(count > 0 ? (uint32_t)first : 0) {
    at = offset(0), next = offset(1), coming = offset(2);
    from = g.data + at + lane_index();
  }

  // Past the last slab, its end: slabs there are empty ones.
  __device__ __forceinline__ uint32_t offset(int i) const { return offsets[first_slab + (i < count ? i : count)]; }

  // Begins the copies of one more slab, as one group.
  __device__ __forceinline__ void fetch(char* shared) {
    constexpr int kTurns = 3;  // of 32 pieces without a loop: up to a third of single weights active
    const int pieces = (int)(next - at), mine = pieces - lane_index();
    ++fetched;
    at = next, next = coming, coming = offset(fetched + 2);
    char* const slot = shared + to.at;
#pragma unroll
    for (int i = 0; i < kTurns; ++i)
      if (mine > i * kWarp) copy_async(slot + i * kWarp * kPieceBytes, from + i * kWarp, kPieceBytes);
#pragma unroll 1
    for (int i = kTurns * kWarp; i < mine; i += kWarp) copy_async(slot + i * kPieceBytes, from + i, kPieceBytes);
    if (pieces == 0) {
      // Read by the lane that writes them.
      constexpr int kBytes = lane_words(kUnit) * 4;
      uint32_t* const words = (uint32_t*)(slot - lane_index() * (kPieceBytes - kBytes));
#pragma unroll
      for (int w = 0; w < lane_words(kUnit); ++w) words[w] = 0;
    }
    from += pieces;
    to.step();
    copy_commit();
  }
};

// Half types: y^T tiles by mma, the weight its operand A from registers, x^T its operand B. A warp goes along a strip,
// slab by slab: each lane counts its units and those of the lanes below, loads and places its values, two 16-bit loads
// from shared memory a pair (or one of 32 bits where units are pairs), and multiplies.
//
// kBatches: eights of x's rows.
template <class T, int kUnit, int kBatches>
__global__ void __launch_bounds__(kThreads, 3) decode_kernel(const DecodeArguments<T> g, const DecodeStages s) {
  constexpr int kWords = lane_words(kUnit), kWordMmas = kWordFields * kUnit / 2;
  char* const shared = shared_memory();
  const int lane = lane_index(), warp = warp_index(), group = lane / 4, t = lane % 4;

  // Step 1: this warp's slabs, `count` after the first `skipped` of this split of its strip.
  const int way = warp / s.strips, ways = kWarps / s.strips;
  const int64_t strip = (int64_t)blockIdx.x * s.strips + warp % s.strips;
  const int64_t split_begin = (int64_t)blockIdx.y * g.split_slabs;
  const int split_count = (int)(g.slabs - split_begin < g.split_slabs ? g.slabs - split_begin : g.split_slabs);
  const int most = (int)ceil_div(g.split_slabs, ways), skipped = way * most;
  const int left = strip < strip_count(g.rows) && split_count > skipped ? split_count - skipped : 0;
  const int count = left < most ? left : most;

  // Step 2: x, and the first slabs on their way.
  T* const x = (T*)(shared + kWarps * s.stages * s.slot_pieces * kPieceBytes);
  stage_rows(g, s, split_begin * kSlabColumns, split_count * kSlabColumns, x);
  copy_commit();
  const uint32_t ring = (uint32_t)(warp * s.stages * s.slot_pieces * kPieceBytes);
  SlabCopies<kUnit> copies(g, s, ring, strip * g.slabs + split_begin + skipped, count);
  for (int i = 0; i < s.stages - 1; ++i) copies.fetch(shared);
  wait_stages<1>(s.stages);
  sync_block();

  // Step 3: the products. A lane of a row past the last takes the last one's values, whose sums are not stored.
  const char* rows[kBatches];
#pragma unroll
  for (int b = 0; b < kBatches; ++b) {
    const int row = 8 * b + group < g.m ? 8 * b + group : g.m - 1;
    rows[b] = (const char*)(x + row * s.x_stride + skipped * kSlabColumns + 8 * t);
  }
  float sums[kBatches][4] = {};
  RingPlace slot(s, ring + (uint32_t)(lane * kWords * 4));
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    wait_stages<2>(s.stages);
    sync_warp();  // the slab is there, and the one before it is read
    copies.fetch(shared);
    uint32_t words[kWords];
#pragma unroll
    for (int w = 0; w < kWords; ++w) words[w] = ((const uint32_t*)(shared + slot.at))[w];
    if (ballot((words[0] | words[kWords - 1]) != 0) != 0) {
      uint32_t offset = slot.at + (uint32_t)(word_pieces(kUnit) * kPieceBytes - lane * kWords * 4);
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const FieldCounts counts = field_counts(words[w]);
#pragma unroll
        for (int mma = 0; mma < kWordMmas; mma += 2) {
          Piece part[kBatches];
#pragma unroll
          for (int b = 0; b < kBatches; ++b)
            part[b] = *(const Piece*)(rows[b] + (w * kWordMmas + mma) * 16 * sizeof(T));
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            uint32_t a[4];
            place_weights<kUnit>(shared, words[w], counts, mma + k, offset, a);
#pragma unroll
            for (int b = 0; b < kBatches; ++b)
              multiply_16x8x16<T>(sums[b], a, part[b].word[2 * k], part[b].word[2 * k + 1]);
          }
        }
      }
    }
#pragma unroll
    for (int b = 0; b < kBatches; ++b) rows[b] += kSlabColumns * sizeof(T);
    slot.step();
  }

  // Step 4: the first warp of a strip adds the others' sums in order. They take the ring's place: [warp][sum][lane].
  if (ways > 1) {
    sync_block();
    float* const exchanged = (float*)shared;
    const auto place = [&](int w, int b, int i) { return ((w * kBatches + b) * 4 + i) * kWarp + lane; };
#pragma unroll
    for (int b = 0; b < kBatches; ++b)
#pragma unroll
      for (int i = 0; i < 4; ++i) exchanged[place(warp, b, i)] = sums[b][i];
    sync_block();
    if (way > 0) return;
    for (int w = warp + s.strips; w < kWarps; w += s.strips)
#pragma unroll
      for (int b = 0; b < kBatches; ++b)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[b][i] += exchanged[place(w, b, i)];
  }
#pragma unroll
  for (int b = 0; b < kBatches; ++b)
#pragma unroll
    for (int i = 0; i < 4; ++i) g.store(strip * kStripRows + group + 8 * (i / 2), 8 * b + 2 * t + i % 2, sums[b][i]);
}

}  // namespace
}  // namespace maskfuse::cuda
