#include "masked_linear_packed.h"

#include "mask.h"

namespace maskfuse {
namespace {

template <class T>
void copy_rows(const uint32_t* bits, int64_t columns, const T* weight, int64_t ld, const int64_t* rows, int64_t begin,
               int64_t end, T* values, uint16_t* at) {
  const int64_t words = mask_words(columns);
  for (int64_t r = begin; r < end; ++r) {
    int64_t next = rows[r];
    for (int64_t w = 0; w < words; ++w) {
      for (uint32_t word = bits[r * words + w]; word != 0; word &= word - 1) {
        const int64_t c = w * 32 + __builtin_ctz(word);
        if (c >= columns) break;
        if (at) at[next] = (uint16_t)c;
        values[next++] = weight[r * ld + c];
      }
    }
  }
}

}  // namespace

int64_t packed_rows(const uint32_t* bits, int64_t rows, int64_t columns, int64_t* to) {
  const int64_t words = mask_words(columns);
  int64_t active = 0;
  for (int64_t r = 0; r < rows; ++r) {
    to[r] = active;
    for (int64_t w = 0; w < words; ++w) {
      active += count_bits(bits[r * words + w] & mask_columns(w, columns));
    }
  }
  to[rows] = active;
  return active;
}

void packed_values(const uint32_t* bits, int64_t columns, const void* weight, int64_t ld, Dtype dtype,
                   const int64_t* rows, int64_t begin, int64_t end, void* values, uint16_t* at) {
  switch (dtype) {
    case Dtype::f32:
      return copy_rows(bits, columns, (const float*)weight, ld, rows, begin, end, (float*)values, at);
    case Dtype::f64:
      return copy_rows(bits, columns, (const double*)weight, ld, rows, begin, end, (double*)values, at);
    case Dtype::bf16:
    case Dtype::f16:
      return copy_rows(bits, columns, (const Bf16*)weight, ld, rows, begin, end, (Bf16*)values, at);
  }
}

}  // namespace maskfuse
