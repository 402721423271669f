// A machine that runs the CUDA kernels of csrc/cuda on the host, for tests: block after block, each thread of a block
// on a stack of its own. Compile a .cu file as C++ with MASKFUSE_SIMT defined and its launches come here.
//
// What it is for: everything about a kernel but the silicon. Threads of a block run one at a time, in an order that
// changes from block to block, and each runs until it meets a barrier or an operation of its whole warp. So it finds
// barriers that not all threads reach, warp operations that lanes come to apart, copies and products that are read
// before they were waited for, wrong fragment layouts; and, under AddressSanitizer, every access outside of an array,
// shared memory included. What it does not find: races between accesses that no order of whole pieces shows, and
// slowness.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) noexcept : x(x), y(y), z(z) {}
};

// Set by the machine whenever it lets a thread run.
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
using cudaStream_t = void*;
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : error == cudaErrorInvalidValue ? "invalid argument" : "invalid launch";
}

// NOLINTBEGIN(bugprone-reserved-identifier): CUDA's own words.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
// NOLINTEND(bugprone-reserved-identifier)

namespace maskfuse::simt {

// Runs kernel(context) on every thread of a grid. Throws std::runtime_error where threads wait for each other in vain.
// `seed` chooses the order in which threads run.
cudaError_t run(dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(void*), void* context);

// Shared memory of the block that runs, aligned to 1024 bytes; filled with ones, which are NaNs, before each block.
void* shared();

// The order of threads, and whether copies are made at once or as late as they may be, in the launches that follow.
void seed(uint64_t value);

// How many launches there were: a test of a choice between kernels wants to know.
int64_t launches();

// __syncthreads.
void barrier();

// An operation of a whole warp: each lane gives a record, and when all 32 have come, all(records) runs once. Lanes must
// come with the same `name`.
void exchange(const char* name, void* mine, void (*all)(void* const* lanes));

// Copies to shared memory that are not there before they are waited for: 16 bytes, of which the first `bytes` are read
// and the others zero.
void copy_async(void* to, const void* from, int bytes);
void copy_commit();
void copy_wait(int groups_left);

// Lets others run until ready() holds, which they, or work in the background, make true.
void wait_until(std::function<bool()> ready);

// Lets others run for a while.
void pause();

// The threads of a part of the block, whole warps, meet at barrier `id`, 1 to 15: bar.sync.
void part_barrier(int id, int threads);

// What the device does beside the threads, at a time and in an order of its own.
void in_background(std::function<void()> work);

// Called by an exchange: work of its warp that is carried out in order, at the latest when a lane of the warp waits for
// its group. As copy_async's groups otherwise.
void warp_work(std::function<void()> work);
void warp_commit();
void warp_wait(int groups_left);

}  // namespace maskfuse::simt
