// cp.async.bulk.tensor (sm_90): a box of a matrix from global to shared memory, by one thread for all.
//
// The box lies in shared memory as rows of 128 bytes whose sixteenths of bytes change places (SWIZZLE_128B): bits 4 to
// 6 of an address are those of the plain place, exclusive or bits 7 to 9. From a multiple of 1024 on, that is the order
// of shared_tile.h. Elements outside of the matrix are zero, and count as copied.
#pragma once

#include "ptx_barrier.h"
#include "tensor_map.h"

namespace maskfuse::cuda {

// Where the byte at a plain place lies.
__host__ __device__ constexpr uint32_t swizzled(uint32_t place) { return place ^ (place >> 7 & 7) << 4; }

// The box whose first element is (row, column) of the matrix; `arrived` counts its bytes. By one thread.
__device__ __forceinline__ void copy_box(void* shared, const TensorMap& map, int64_t row, int64_t column,
                                         SharedBarrier* arrived) {
#ifdef MASKFUSE_SIMT
  char* const block = (char*)simt::shared();
  const uint32_t to = (uint32_t)((char*)shared - block);
  if (to % 1024) throw std::runtime_error("a bulk copy's place in shared memory is not aligned");
  simt::in_background([=, map = map] {
    for (int r = 0; r < map.box_rows; ++r)
      for (int c = 0; c < kBoxColumns; ++c) {
        const bool there = row + r >= 0 && row + r < map.rows && column + c >= 0 && column + c < map.columns;
        *(uint16_t*)(block + swizzled(to + r * kBoxRowBytes + c * 2)) =
            there ? map.data[(row + r) * map.ld + column + c] : 0;
      }
    arrived->copied(map.box_rows * kBoxRowBytes);
  });
#else
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];\n" ::"r"(
          shared_address(shared)),
      "l"(&map), "r"((int)column), "r"((int)row), "r"(arrived->address())
      : "memory");
#endif
}

// Has the map read before it is needed.
__device__ __forceinline__ void prefetch(const TensorMap& map) {
#ifndef MASKFUSE_SIMT
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(&map) : "memory");
#endif
}

}  // namespace maskfuse::cuda
