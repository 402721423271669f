// A few lines instead of a test framework: random problems in buffers of exactly their size, so that a
// sanitizer sees every access past an end, and checks that count.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

namespace maskfuse::test {

inline int checks = 0;

#define CHECK(condition, ...)                                       \
  do {                                                              \
    ++maskfuse::test::checks;                                       \
    if (!(condition)) {                                             \
      std::printf("%s:%d: %s\n  ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                     \
      std::printf("\n");                                            \
      std::exit(1);                                                 \
    }                                                               \
  } while (0)

inline std::mt19937& random() {
  static std::mt19937 engine(20261121);
  return engine;
}

inline int64_t random_int(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random());
}
inline float random_float() { return std::uniform_real_distribution<float>(-1, 1)(random()); }

// Bits of a rows x columns mask; `density` 0 and 1 give empty and full ones, padding stays zero.
inline std::vector<uint32_t> random_bits(int64_t rows, int64_t columns, double density) {
  const int64_t words = (columns + 31) / 32;
  std::vector<uint32_t> bits(rows * words, 0);
  std::bernoulli_distribution active(density);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      if (active(random())) bits[r * words + c / 32] |= 1u << (c % 32);
  return bits;
}

inline int report(const char* name) {
  std::printf("%s: %d checks passed\n", name, checks);
  return 0;
}

}  // namespace maskfuse::test
