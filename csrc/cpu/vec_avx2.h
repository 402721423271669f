// Vectors of 8 floats and 4 doubles. Included by *_avx2.cpp only. The interface is vec_avx512.h's.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "dtype.h"

namespace maskfuse {
namespace {

// For 8 bits, which of the leading lanes goes to each lane, 8 where none does; and the inverse, 0 past the last bit.
struct Expansion {
  uint8_t lane[256][8], inverse[256][8];
  constexpr Expansion() : lane(), inverse() {
    for (int bits = 0; bits < 256; ++bits) {
      int next = 0;
      for (int i = 0; i < 8; ++i) {
        lane[bits][i] = bits >> i & 1 ? (uint8_t)next : 8;
        if (bits >> i & 1) inverse[bits][next++] = (uint8_t)i;
      }
    }
  }
};
static constexpr Expansion kExpansion;

// Where lanes of two vectors are taken from, and which of them from the second.
struct HalfTurn {
  __m256i lane, second;
};

struct F32x8 {
  using S = float;
  using Reg = __m256;
  static constexpr int W = 8;
  static constexpr uint32_t kAll = 0xff;
  static constexpr int kRegisters = 16;
  static constexpr bool kCopiesHalves = false;

  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg set1(S x) { return _mm256_set1_ps(x); }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
  static Reg min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
  static Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static Reg round(Reg a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Reg scale(Reg a, Reg n) {  // a 2^n, for n in a float's range of exponents
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
  }
  static Reg keep_nan(Reg x, Reg a) { return _mm256_blendv_ps(a, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q)); }
  static S first(Reg a) { return _mm256_cvtss_f32(a); }
  static S sum(Reg a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }

  static Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static Reg load_bits(const float* p, uint32_t bits, int n) {
    if (n >= W) return _mm256_and_ps(_mm256_loadu_ps(p), _mm256_castsi256_ps(select(bits)));
    return _mm256_maskload_ps(p, select(bits & lanes(n)));
  }
  template <class Half>
  static Reg load_bits(const Half* p, uint32_t bits, int n) {
    return _mm256_and_ps(load_n(p, n), _mm256_castsi256_ps(select(bits)));
  }
  static Reg load_n(const float* p, int n) {
    return n >= W ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, select(lanes(n)));
  }
  static Reg load_n(const Bf16* p, int n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(p, n)), 16));
  }
  static Reg load_n(const Fp16* p, int n) { return _mm256_cvtph_ps(load16(p, n)); }

  // There are no masked loads and stores of half types.
  template <class T>
  static constexpr bool kMasks = sizeof(T) == sizeof(S);
  static Reg blend(Reg a, const float* p, uint32_t bits) {
    const __m256i lane = select(bits);
    return _mm256_blendv_ps(a, _mm256_maskload_ps(p, lane), _mm256_castsi256_ps(lane));
  }
  static void store_bits(float* p, Reg a, uint32_t bits) { _mm256_maskstore_ps(p, select(bits), a); }

  static void store(float* p, Reg a) { _mm256_storeu_ps(p, a); }
  static void store_n(float* p, Reg a, int n) {
    if (n >= W)
      _mm256_storeu_ps(p, a);
    else
      _mm256_maskstore_ps(p, select(lanes(n)), a);
  }
  static void store_n(Fp16* p, Reg a, int n) { store16(p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT), n); }
  static void store_n(Bf16* p, Reg a, int n) {
    // Round to nearest even on the upper half; a NaN keeps its sign and becomes quiet.
    const __m256i x = _mm256_castps_si256(a);
    const __m256i high = _mm256_srli_epi32(x, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i up = _mm256_srli_epi32(_mm256_add_epi32(x, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    const __m256i y = _mm256_blendv_epi8(up, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
    store16(p, _mm_packus_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1)), n);
  }
  static Reg keep(Reg a, uint32_t bits) { return _mm256_and_ps(a, _mm256_castsi256_ps(select(bits))); }

  using Turn = HalfTurn;
  static Turn turn(int by) {
    const __m256i lane = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(by));
    return {lane, _mm256_cmpgt_epi32(lane, _mm256_set1_epi32(W - 1))};  // of a lane's number the low bits count
  }
  static Reg take(Reg a, Reg b, Turn t) {
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(a, t.lane), _mm256_permutevar8x32_ps(b, t.lane),
                            _mm256_castsi256_ps(t.second));
  }
  static Reg add_bits(Reg a, Reg b, uint32_t bits) { return add(a, keep(b, bits)); }

  static Reg expand(Reg a, uint32_t bits) {
    const __m256i from = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)kExpansion.lane[bits & kAll]));
    return keep(_mm256_permutevar8x32_ps(a, from), bits);
  }
  static Reg compress(Reg a, uint32_t bits) {
    const __m256i from = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)kExpansion.inverse[bits & kAll]));
    return _mm256_permutevar8x32_ps(a, from);
  }
  static Reg gather(const float* p, const uint16_t* at, int n) {
    const __m256i lane = select(lanes(n));
    return _mm256_mask_i32gather_ps(zero(), p, _mm256_cvtepu16_epi32(load16(at, n)), _mm256_castsi256_ps(lane), 4);
  }

  static void transpose(Reg* r) {
    Reg t[8];
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
      r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
      const Reg low = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
      r[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
      r[i] = low;
    }
  }

  static void interleave4(Reg* r) {
    const Reg a = _mm256_unpacklo_ps(r[0], r[1]), b = _mm256_unpackhi_ps(r[0], r[1]);
    const Reg c = _mm256_unpacklo_ps(r[2], r[3]), d = _mm256_unpackhi_ps(r[2], r[3]);
    const Reg e = _mm256_shuffle_ps(a, c, 0x44), f = _mm256_shuffle_ps(a, c, 0xee);  // columns 0 4, 1 5
    const Reg g = _mm256_shuffle_ps(b, d, 0x44), h = _mm256_shuffle_ps(b, d, 0xee);  // columns 2 6, 3 7
    r[0] = _mm256_permute2f128_ps(e, f, 0x20);
    r[1] = _mm256_permute2f128_ps(g, h, 0x20);
    r[2] = _mm256_permute2f128_ps(e, f, 0x31);
    r[3] = _mm256_permute2f128_ps(g, h, 0x31);
  }

  static void transpose_fours(Reg* r) {
    const Reg low = _mm256_permute2f128_ps(r[0], r[1], 0x20);
    r[1] = _mm256_permute2f128_ps(r[0], r[1], 0x31);
    r[0] = low;
  }

  static constexpr int kGroup = 4;
  static Reg join(const Reg* r) { return _mm256_hadd_ps(_mm256_hadd_ps(r[0], r[1]), _mm256_hadd_ps(r[2], r[3])); }
  static Reg sums(const Reg* r) {
    return add(_mm256_permute2f128_ps(r[0], r[1], 0x20), _mm256_permute2f128_ps(r[0], r[1], 0x31));
  }

 private:
  static uint32_t lanes(int n) { return n >= W ? kAll : (1u << n) - 1; }
  static __m256i select(uint32_t bits) {
    const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)bits), lane), lane);
  }
  static __m128i load16(const void* p, int n) {
    if (n >= W) return _mm_loadu_si128((const __m128i*)p);
    alignas(16) uint16_t part[W] = {};
    memcpy(part, p, 2 * (size_t)(n & (W - 1)));
    return _mm_load_si128((const __m128i*)part);
  }
  static void store16(void* p, __m128i a, int n) {
    if (n >= W) {
      _mm_storeu_si128((__m128i*)p, a);
      return;
    }
    alignas(16) uint16_t part[W];
    _mm_store_si128((__m128i*)part, a);
    memcpy(p, part, 2 * (size_t)(n & (W - 1)));
  }
};

struct F64x4 {
  using S = double;
  using Reg = __m256d;
  static constexpr int W = 4;
  static constexpr uint32_t kAll = 0xf;
  static constexpr int kRegisters = 16;
  static constexpr bool kCopiesHalves = false;

  static Reg zero() { return _mm256_setzero_pd(); }
  static Reg set1(S x) { return _mm256_set1_pd(x); }
  static Reg add(Reg a, Reg b) { return _mm256_add_pd(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm256_mul_pd(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_pd(a, b, c); }
  static S first(Reg a) { return _mm256_cvtsd_f64(a); }
  static S sum(Reg a) {
    const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
  }

  static Reg load(const double* p) { return _mm256_loadu_pd(p); }
  static Reg load_bits(const double* p, uint32_t bits, int n) { return _mm256_maskload_pd(p, select(bits & lanes(n))); }
  static Reg load_n(const double* p, int n) {
    return n >= W ? _mm256_loadu_pd(p) : _mm256_maskload_pd(p, select(lanes(n)));
  }
  template <class T>
  static constexpr bool kMasks = true;
  static Reg blend(Reg a, const double* p, uint32_t bits) {
    const __m256i lane = select(bits);
    return _mm256_blendv_pd(a, _mm256_maskload_pd(p, lane), _mm256_castsi256_pd(lane));
  }
  static void store_bits(double* p, Reg a, uint32_t bits) { _mm256_maskstore_pd(p, select(bits), a); }
  static void store(double* p, Reg a) { _mm256_storeu_pd(p, a); }
  static void store_n(double* p, Reg a, int n) {
    if (n >= W)
      _mm256_storeu_pd(p, a);
    else
      _mm256_maskstore_pd(p, select(lanes(n)), a);
  }
  static Reg keep(Reg a, uint32_t bits) { return _mm256_and_pd(a, _mm256_castsi256_pd(select(bits))); }

  using Turn = HalfTurn;
  static Turn turn(int by) { return F32x8::turn(2 * by); }  // a lane of a double is two of a float
  static Reg take(Reg a, Reg b, Turn t) {
    return _mm256_castps_pd(F32x8::take(_mm256_castpd_ps(a), _mm256_castpd_ps(b), t));
  }
  static Reg add_bits(Reg a, Reg b, uint32_t bits) { return add(a, keep(b, bits)); }

  static Reg expand(Reg a, uint32_t bits) { return keep(permute(a, kExpansion.lane[bits & kAll]), bits); }
  static Reg compress(Reg a, uint32_t bits) { return permute(a, kExpansion.inverse[bits & kAll]); }
  static Reg gather(const double* p, const uint16_t* at, int n) {
    alignas(16) int index[4] = {};
    for (int i = 0; i < n && i < W; ++i) index[i] = at[i];
    const __m256d lane = _mm256_castsi256_pd(select(lanes(n)));
    return _mm256_mask_i32gather_pd(zero(), p, _mm_load_si128((const __m128i*)index), lane, 8);
  }

  static void transpose(Reg* r) {
    const Reg a = _mm256_unpacklo_pd(r[0], r[1]), b = _mm256_unpackhi_pd(r[0], r[1]);
    const Reg c = _mm256_unpacklo_pd(r[2], r[3]), d = _mm256_unpackhi_pd(r[2], r[3]);
    r[0] = _mm256_permute2f128_pd(a, c, 0x20);
    r[1] = _mm256_permute2f128_pd(b, d, 0x20);
    r[2] = _mm256_permute2f128_pd(a, c, 0x31);
    r[3] = _mm256_permute2f128_pd(b, d, 0x31);
  }

  static void interleave4(Reg* r) { transpose(r); }

  static void transpose_fours(Reg*) {}

  static constexpr int kGroup = 2;
  static Reg join(const Reg* r) { return _mm256_hadd_pd(r[0], r[1]); }
  static Reg sums(const Reg* r) {
    return add(_mm256_permute2f128_pd(r[0], r[1], 0x20), _mm256_permute2f128_pd(r[0], r[1], 0x31));
  }

 private:
  static Reg permute(Reg a, const uint8_t* from4) {
    // A lane of a double is two of a float.
    int four;
    memcpy(&four, from4, 4);
    const __m256i from = _mm256_slli_epi64(_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four)), 1);
    const __m256i both = _mm256_or_si256(from, _mm256_slli_epi64(_mm256_add_epi64(from, _mm256_set1_epi64x(1)), 32));
    return _mm256_castps_pd(_mm256_permutevar8x32_ps(_mm256_castpd_ps(a), both));
  }
  static uint32_t lanes(int n) { return n >= W ? kAll : (1u << n) - 1; }
  static __m256i select(uint32_t bits) {
    const __m256i lane = _mm256_setr_epi64x(1, 2, 4, 8);
    return _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x((long long)bits), lane), lane);
  }
};

}  // namespace
}  // namespace maskfuse
