// Operands of the products under test: random ones of any dtype, plans and buffers of exactly their size.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>

#include "dtype.h"
#include "harness.h"
#include "mask.h"
#include "masked_linear_plan.h"

namespace maskfuse::test {

// A matrix of any dtype in exactly its bytes, with its values in double beside it.
struct Matrix {
  int64_t rows, columns, ld;
  std::vector<unsigned char> bytes;
  std::vector<double> values;

  Matrix(Dtype dtype, int64_t rows, int64_t columns, int64_t pad = 0)
      : rows(rows),
        columns(columns),
        ld(columns + pad),
        bytes(rows > 0 ? (size_t)((rows - 1) * ld + columns) * dtype_size(dtype) : 0),
        values((size_t)(rows * columns)) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        // Eighths up to 1 are exact in every dtype.
        const double value = std::round(random_float() * 8) / 8;
        set(dtype, r, c, value);
        values[r * columns + c] = value;
      }
    }
  }

  void set(Dtype dtype, int64_t r, int64_t c, double value) {
    unsigned char* to = bytes.data() + (r * ld + c) * dtype_size(dtype);
    const float f = (float)value;
    uint32_t wide;
    std::memcpy(&wide, &f, 4);
    if (dtype == Dtype::f64) std::memcpy(to, &value, 8);
    if (dtype == Dtype::f32) std::memcpy(to, &f, 4);
    if (dtype == Dtype::bf16) {
      const uint16_t half = (uint16_t)(wide >> 16);
      std::memcpy(to, &half, 2);
    }
    if (dtype == Dtype::f16) {
      const uint16_t half = f == 0   ? 0
                            : f != f ? 0x7e00
                                     : (uint16_t)((wide >> 16 & 0x8000) | ((wide & 0x7fffffff) - 0x38000000) >> 13);
      std::memcpy(to, &half, 2);
    }
  }
};

inline double read(Dtype dtype, const unsigned char* from) {
  if (dtype == Dtype::f64) {
    double x;
    std::memcpy(&x, from, 8);
    return x;
  }
  uint32_t wide = 0;
  std::memcpy(&wide, from, dtype_size(dtype));
  if (dtype == Dtype::bf16) wide <<= 16;
  if (dtype == Dtype::f16) {
    const double magnitude = (wide >> 10 & 31) == 0 ? (wide & 1023) * 0x1p-24
                                                    : std::ldexp(1024 + (wide & 1023), (int)(wide >> 10 & 31) - 25);
    return wide & 0x8000 ? -magnitude : magnitude;
  }
  float x;
  std::memcpy(&x, &wide, 4);
  return x;
}

// A plan in exactly its bytes.
inline std::vector<unsigned char> plan_of(const std::vector<uint32_t>& bits, int64_t rows, int64_t columns,
                                          int64_t cache, int64_t taps = 0) {
  int64_t active = 0;
  for (uint32_t word : bits) active += __builtin_popcount(word);
  PlanBuilder builder(bits.data(), rows, columns, active, cache, taps);
  for (int64_t p = 0; p < builder.panels(); ++p) builder.build(p);
  std::vector<unsigned char> plan((size_t)builder.layout());
  builder.write_header(plan.data());
  for (int64_t p = 0; p < builder.panels(); ++p) builder.write(p, plan.data());
  return plan;
}

// Exactly the bytes asked for, so that a sanitizer sees an access past their end.
struct Aligned {
  void operator()(char* p) const { ::operator delete[](p, std::align_val_t(64)); }
};
inline std::unique_ptr<char, Aligned> buffer(size_t bytes) {
  return std::unique_ptr<char, Aligned>((char*)::operator new[](bytes, std::align_val_t(64)));
}

}  // namespace maskfuse::test
