// The half types in plain C++, for code that runs on every machine: load to float, store with rounding to nearest even.
#pragma once

#include <cstring>

#include "dtype.h"

namespace maskfuse {

inline float widen(Bf16 p) {
  const uint32_t wide = (uint32_t)p.bits << 16;
  float x;
  std::memcpy(&x, &wide, 4);
  return x;
}

inline float widen(Fp16 p) {
  const uint32_t sign = (uint32_t)(p.bits & 0x8000) << 16, exponent = p.bits >> 10 & 31, fraction = p.bits & 1023;
  uint32_t wide = sign | (exponent + 112) << 23 | fraction << 13;
  if (exponent == 31) wide = sign | 0x7f800000 | fraction << 13;
  float x;
  if (exponent == 0) {
    x = (float)fraction * 0x1p-24f;  // subnormal: a whole number of 2^-24
    return sign ? -x : x;
  }
  std::memcpy(&x, &wide, 4);
  return x;
}

inline void narrow(float x, Bf16* p) {
  uint32_t wide;
  std::memcpy(&wide, &x, 4);
  // Round to nearest even on the upper half; a NaN keeps its sign and becomes quiet.
  p->bits = (uint16_t)(x != x ? wide >> 16 | 0x40 : (wide + 0x7fff + (wide >> 16 & 1)) >> 16);
}

inline void narrow(float x, Fp16* p) {
  uint32_t wide;
  std::memcpy(&wide, &x, 4);
  const uint32_t sign = wide >> 16 & 0x8000;
  wide &= 0x7fffffff;
  uint32_t half;
  if (wide > 0x7f800000) {
    half = 0x7e00 | (wide >> 13 & 0x3ff);  // NaN
  } else if (wide >= 0x477ff000) {
    half = 0x7c00;  // rounds to infinity
  } else if (wide >= 0x38800000) {
    half = (wide - 0x38000000 + 0xfff + (wide >> 13 & 1)) >> 13;
  } else {
    // Subnormal: the sum aligns the value to 2^-24 and rounds it to nearest even.
    float magnitude;
    std::memcpy(&magnitude, &wide, 4);
    magnitude += 0.5f;
    std::memcpy(&half, &magnitude, 4);
    half -= 0x3f000000;
  }
  p->bits = (uint16_t)(sign | half);
}

}  // namespace maskfuse
