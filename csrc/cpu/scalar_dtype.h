// Elements of every type as numbers, one at a time, on any machine. Not for files that an instruction set is set for.
#pragma once

#include "half.h"

namespace maskfuse {

inline float load(const float* p) { return *p; }
inline double load(const double* p) { return *p; }
inline float load(const Bf16* p) { return widen(*p); }
inline float load(const Fp16* p) { return widen(*p); }

inline void store(float* p, float x) { *p = x; }
inline void store(double* p, double x) { *p = x; }
inline void store(Bf16* p, float x) { narrow(x, p); }
inline void store(Fp16* p, float x) { narrow(x, p); }

}  // namespace maskfuse
