// Which instruction set the CPU kernels use.
#pragma once

#include <stdint.h>

#include "dtype.h"

namespace maskfuse {

enum class Isa : int32_t { scalar, avx2, avx512 };

const char* isa_name(Isa isa);

// The best level that this build and this machine both have.
Isa isa_best();

// True where kernels of `isa` are compiled in and the machine can run them.
bool isa_available(Isa isa);

// Level in use: isa_best(), or what MASKFUSE_CPU=scalar|avx2|avx512 asked for when first called, or what
// was set since. Throws std::runtime_error when that is not a level, or one this machine cannot run.
Isa isa_in_use();

// Sets the level for all threads, for tests and benchmarks that compare levels. Throws likewise.
void isa_set(const char* name);

// Bytes of the first-level data cache of this machine; 32 KiB where it does not say.
int64_t first_level_cache();

// What a product of full matrices costs in torch's own libraries (MKL, oneDNN) on this processor, where float32 on
// Intel's is 1; 0 where they have no fast kernel.
double library_cost(Dtype dtype);

// True where those multiply full float32 matrices faster than the kernels here.
bool library_is_faster();

}  // namespace maskfuse
