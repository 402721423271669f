// wgmma m64n128k16 (sm_90): the product of half matrices, summed in float, by four warps at a time, asynchronously.
//
// Warp w of the four holds rows 16 w to 16 w + 15 of A and of the sums, as mma.sync's fragments of 16 rows (ptx_mma.h):
// of A four words, of the sums for columns 8 j to 8 j + 7 d[4 j] to d[4 j + 3]. B, and A where it is not in registers,
// lie in shared memory where a descriptor says.
//
// Between group_begin and group_wait nobody touches the registers of A and of the sums, nor shared memory that is read.
//
// Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions", and there "Shared Memory Matrix Layout".
#pragma once

#include "number.h"
#include "ptx_bulk_copy.h"

namespace maskfuse::cuda {

inline constexpr int kGroupWarps = 4, kGroupRows = 64, kGroupColumns = 128, kGroupDepth = 16;

// An operand as bulk copies leave it: boxes of 64 columns in rows of 128 bytes, swizzled, each aligned to 1024 bytes.
//
// Depth along columns: one box has all rows (columns) of the result. Else rows are the depth, and 64 neighbouring rows
// (columns) of the result are a box, right behind the last.
//
// Bits 0 to 13: the address; 16 to 29: bytes between boxes, or 1 where there is one; 32 to 45: bytes between groups of
// eight rows; all in sixteens. Bits 62 and 63: 1, the 128-byte swizzle.
__host__ __device__ constexpr uint64_t group_operand(uint32_t address, bool along_depth) {
  constexpr uint64_t kEightRows = 8 * kBoxRowBytes;
  const uint32_t box_bytes = along_depth ? 16 : 64 * kBoxRowBytes;
  return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(box_bytes >> 4 & 0x3fff) << 16 | kEightRows / 16 << 32 |
         (uint64_t)1 << 62;
}

// The address from which an operand's 16 elements of depth from `depth` on are read; 0 <= depth < 64.
__host__ __device__ constexpr uint32_t group_operand_at(uint32_t address, int depth, bool along_depth) {
  return address + (uint32_t)(along_depth ? 2 * depth : depth * kBoxRowBytes);
}

// Where the tensor cores find an element of an operand: the byte's address, from a descriptor.
__host__ __device__ constexpr uint32_t group_element(uint64_t operand, bool along_depth, int outer, int depth) {
  const uint32_t first = (uint32_t)(operand & 0x3fff) << 4, box = (uint32_t)(operand >> 16 & 0x3fff) << 4,
                 eight = (uint32_t)(operand >> 32 & 0x3fff) << 4;
  const uint32_t place =
      along_depth ? (uint32_t)(outer / 8) * eight + (uint32_t)(outer % 8) * kBoxRowBytes + 2 * (uint32_t)depth
                  : (uint32_t)(outer / 64) * box + 2 * (uint32_t)(outer % 64) + (uint32_t)(depth / 8) * eight +
                        (uint32_t)(depth % 8) * kBoxRowBytes;
  return swizzled(first + place);
}

#ifdef MASKFUSE_SIMT

namespace group_mma {

struct Record {
  float* d;
  const uint32_t* a;  // or null, and then:
  uint64_t a_operand, b_operand;
  bool along_depth;
  int warp;
};

// One warp's part. Runs at once or as late as the warp's wait: what it reads must stay.
template <class T>
void multiply(const std::array<Record, kWarp>& lanes) {
  const char* const shared = (const char*)simt::shared();
  const auto in_shared = [&](uint64_t operand, bool along_depth, int outer, int depth) {
    return widened(*(const T*)(shared + group_element(operand, along_depth, outer, depth)));
  };
  const Record& one = lanes[0];
  float left[16][kGroupDepth];
  for (int r = 0; r < 16; ++r)
    for (int k = 0; k < kGroupDepth; ++k) {
      if (one.a) {
        const uint32_t word = lanes[r % 8 * 4 + k % 8 / 2].a[r / 8 + 2 * (k / 8)];
        left[r][k] = k % 2 ? high_of<T>(word) : low_of<T>(word);
      } else {
        left[r][k] = in_shared(one.a_operand, one.along_depth, 16 * (one.warp % kGroupWarps) + r, k);
      }
    }
  for (int c = 0; c < kGroupColumns; ++c) {
    float right[kGroupDepth];
    for (int k = 0; k < kGroupDepth; ++k) right[k] = in_shared(one.b_operand, one.along_depth, c, k);
    for (int r = 0; r < 16; ++r) {
      float& d = lanes[r % 8 * 4 + c % 8 / 2].d[c / 8 * 4 + r / 8 * 2 + c % 2];
      double sum = 0;
      for (int k = 0; k < kGroupDepth; ++k) sum += (double)left[r][k] * right[k];
      d = (float)(d + sum);
    }
  }
}

template <class T>
void run(Record record) {
  simt::exchange("wgmma", &record, [](void* const* records) {
    std::array<Record, kWarp> lanes;
    for (int l = 0; l < kWarp; ++l) lanes[l] = *(const Record*)records[l];
    simt::warp_work([lanes] { multiply<T>(lanes); });
  });
}

}  // namespace group_mma

inline void group_begin() {
  simt::exchange("wgmma.fence", nullptr, [](void* const*) {});
}
inline void group_commit() {
  simt::exchange("wgmma.commit", nullptr, [](void* const*) { simt::warp_commit(); });
}
template <int kLeft>
void group_wait() {
  simt::exchange("wgmma.wait", nullptr, [](void* const*) { simt::warp_wait(kLeft); });
}
inline void group_hold(float (&)[64]) {}
inline void group_hold(uint32_t (&)[4]) {}

// d += A B with A's fragment in registers, and B's depth along its rows.
template <class T>
void group_multiply(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  group_mma::run<T>({d, a, 0, b, true, warp_index()});
}
// d += A B of shared memory, both with the depth across their rows.
template <class T>
void group_multiply(float (&d)[64], uint64_t a, uint64_t b) {
  group_mma::run<T>({d, nullptr, a, b, false, warp_index()});
}

#else

// What registers hold so far is there for what follows.
__device__ __forceinline__ void group_begin() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
// Ends a group: the products since the last one.
__device__ __forceinline__ void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
// Waits until at most kLeft groups are not done.
template <int kLeft>
__device__ __forceinline__ void group_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kLeft) : "memory");
}
// Keep the compiler from moving what is written before, or read behind, past this place: to group_begin's other side,
// or that of group_wait.
__device__ __forceinline__ void group_hold(float (&d)[64]) {
#pragma unroll
  for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
__device__ __forceinline__ void group_hold(uint32_t (&a)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

#define MASKFUSE_SUMS                                                                                               \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "  \
  "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
#define MASKFUSE_SUMS_4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define MASKFUSE_SUMS_16(d, i) \
  MASKFUSE_SUMS_4(d, i), MASKFUSE_SUMS_4(d, i + 4), MASKFUSE_SUMS_4(d, i + 8), MASKFUSE_SUMS_4(d, i + 12)
#define MASKFUSE_SUMS_64(d) \
  MASKFUSE_SUMS_16(d, 0), MASKFUSE_SUMS_16(d, 16), MASKFUSE_SUMS_16(d, 32), MASKFUSE_SUMS_16(d, 48)

// The last operands: sums are added to; signs of A and B; whether operands in shared memory are transposed.
#define MASKFUSE_GROUP_MULTIPLY_REGISTERS(type)                                      \
  asm volatile(                                                                      \
      "{.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"                                   \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " " MASKFUSE_SUMS \
      "{%64, %65, %66, %67}, %68, add, 1, 1, 0;}\n"                                  \
      : MASKFUSE_SUMS_64(d)                                                          \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define MASKFUSE_GROUP_MULTIPLY_SHARED(type)                                                                         \
  asm volatile(                                                                                                      \
      "{.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"                                                                   \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " " MASKFUSE_SUMS "%64, %65, add, 1, 1, 1, 1;}\n" \
      : MASKFUSE_SUMS_64(d)                                                                                          \
      : "l"(a), "l"(b))

// d += A B with A's fragment in registers, and B's depth along its rows.
template <class T>
__device__ __forceinline__ void group_multiply(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  if constexpr (__is_same(T, Bf16))
    MASKFUSE_GROUP_MULTIPLY_REGISTERS("bf16");
  else
    MASKFUSE_GROUP_MULTIPLY_REGISTERS("f16");
}
// d += A B of shared memory, both with the depth across their rows.
template <class T>
__device__ __forceinline__ void group_multiply(float (&d)[64], uint64_t a, uint64_t b) {
  if constexpr (__is_same(T, Bf16))
    MASKFUSE_GROUP_MULTIPLY_SHARED("bf16");
  else
    MASKFUSE_GROUP_MULTIPLY_SHARED("f16");
}

#undef MASKFUSE_SUMS
#undef MASKFUSE_SUMS_4
#undef MASKFUSE_SUMS_16
#undef MASKFUSE_SUMS_64
#undef MASKFUSE_GROUP_MULTIPLY_REGISTERS
#undef MASKFUSE_GROUP_MULTIPLY_SHARED

#endif

}  // namespace maskfuse::cuda
