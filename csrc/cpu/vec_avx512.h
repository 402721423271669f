// Vectors of 16 floats and 8 doubles. Included by *_avx512.cpp only.
//
// A load reads the leading `n` lanes at most; `bits` select among them. The other lanes become +0.0 and their
// memory is not touched, whatever the bits say.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "dtype.h"

namespace maskfuse {
namespace {

struct F32x16 {
  using S = float;
  using Reg = __m512;
  static constexpr int W = 16;
  static constexpr uint32_t kAll = 0xffff;
  static constexpr int kRegisters = 32;

  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg set1(S x) { return _mm512_set1_ps(x); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
  static Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  static Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static Reg round(Reg a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Reg scale(Reg a, Reg n) { return _mm512_scalef_ps(a, n); }  // a 2^n
  static Reg keep_nan(Reg x, Reg a) { return _mm512_mask_mov_ps(a, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x); }
  static S sum(Reg a) { return _mm512_reduce_add_ps(a); }
  static S first(Reg a) { return _mm512_cvtss_f32(a); }

  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static Reg load_bits(const float* p, uint32_t bits, int n) {
    return _mm512_maskz_loadu_ps((__mmask16)(bits & lanes(n)), p);
  }
  static Reg load_bits(const Bf16* p, uint32_t bits, int n) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16((__mmask16)(bits & lanes(n)), p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static Reg load_bits(const Fp16* p, uint32_t bits, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16((__mmask16)(bits & lanes(n)), p));
  }
  template <class T>
  static Reg load_n(const T* p, int n) {
    return load_bits(p, kAll, n);
  }

  // Lanes where bits are set from memory, the others from `a`; and to memory. Other lanes' memory is not touched.
  template <class T>
  static constexpr bool kMasks = true;
  static Reg blend(Reg a, const float* p, uint32_t bits) { return _mm512_mask_loadu_ps(a, (__mmask16)bits, p); }
  template <class Half>
  static Reg blend(Reg a, const Half* p, uint32_t bits) {
    return _mm512_mask_mov_ps(a, (__mmask16)bits, load_bits(p, bits, W));
  }
  static void store_bits(float* p, Reg a, uint32_t bits) { _mm512_mask_storeu_ps(p, (__mmask16)bits, a); }
  static void store_bits(Fp16* p, Reg a, uint32_t bits) { _mm256_mask_storeu_epi16(p, (__mmask16)bits, narrow(a, p)); }
  static void store_bits(Bf16* p, Reg a, uint32_t bits) { _mm256_mask_storeu_epi16(p, (__mmask16)bits, narrow(a, p)); }

  static void store(float* p, Reg a) { _mm512_storeu_ps(p, a); }
  static void store_n(float* p, Reg a, int n) { _mm512_mask_storeu_ps(p, (__mmask16)lanes(n), a); }
  static void store_n(Fp16* p, Reg a, int n) { store_bits(p, a, lanes(n)); }
  static void store_n(Bf16* p, Reg a, int n) { store_bits(p, a, lanes(n)); }
  static __m256i narrow(Reg a, const Fp16*) { return _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT); }
  static __m256i narrow(Reg a, const Bf16*) {
    // Round to nearest even on the upper half; a NaN keeps its sign and becomes quiet.
    const __m512i x = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
    __m512i y = _mm512_srli_epi32(_mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    y = _mm512_mask_or_epi32(y, nan, _mm512_srli_epi32(x, 16), _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(y);
  }
  static Reg keep(Reg a, uint32_t bits) { return _mm512_maskz_mov_ps((__mmask16)bits, a); }

  // n <= 32 elements of a half type as they are, zeros where bits are not set.
  static constexpr bool kCopiesHalves = true;
  template <class T>
  static void copy_halves(T* to, const T* from, uint32_t bits, int n) {
    const __mmask32 inside = n >= 32 ? ~0u : (1u << n) - 1;
    _mm512_mask_storeu_epi16(to, inside, _mm512_maskz_loadu_epi16(bits & inside, from));
  }

  // Lanes [by, by + W) of a's and then b's, for by <= W; and b added where bits are set.
  using Turn = __m512i;
  static Turn turn(int by) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_add_epi32(lane, _mm512_set1_epi32(by));
  }
  static Reg take(Reg a, Reg b, Turn turn) { return _mm512_permutex2var_ps(a, turn, b); }
  static Reg add_bits(Reg a, Reg b, uint32_t bits) { return _mm512_mask_add_ps(a, (__mmask16)bits, a, b); }

  // Leading lanes spread to where bits are set, zeros between them.
  static Reg expand(Reg a, uint32_t bits) { return _mm512_maskz_expand_ps((__mmask16)bits, a); }
  // The inverse: lanes where bits are set move together to the front.
  static Reg compress(Reg a, uint32_t bits) { return _mm512_maskz_compress_ps((__mmask16)bits, a); }
  // p[at[i]] for n lanes.
  static Reg gather(const float* p, const uint16_t* at, int n) {
    const __mmask16 lane = (__mmask16)lanes(n);
    const __m512i index = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lane, at));
    return _mm512_mask_i32gather_ps(zero(), lane, index, p, 4);
  }

  static void transpose(Reg* r) {
    // Step 1: 2x2 and 4x4 inside each 128-bit lane.
    Reg t[16];
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
      r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
      r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
      r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
    }
    // Step 2: 4x4 of the 128-bit lanes.
    for (int i = 0; i < 4; ++i) {
      const Reg a = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88), b = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
      const Reg c = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88),
                d = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
      t[i] = _mm512_shuffle_f32x4(a, c, 0x88);
      t[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
      t[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
      t[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
    for (int i = 0; i < 16; ++i) r[i] = t[i];
  }

  // Four rows to one sequence in which their columns alternate.
  static void interleave4(Reg* r) {
    const Reg a = _mm512_unpacklo_ps(r[0], r[1]), b = _mm512_unpackhi_ps(r[0], r[1]);
    const Reg c = _mm512_unpacklo_ps(r[2], r[3]), d = _mm512_unpackhi_ps(r[2], r[3]);
    // Four columns each in their 128-bit lanes: 0 4 8 12, 1 5 9 13, ...
    Reg t[4] = {_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(c))),
                _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(c))),
                _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(b), _mm512_castps_pd(d))),
                _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(b), _mm512_castps_pd(d)))};
    const Reg e = _mm512_shuffle_f32x4(t[0], t[1], 0x88), f = _mm512_shuffle_f32x4(t[0], t[1], 0xdd);
    const Reg g = _mm512_shuffle_f32x4(t[2], t[3], 0x88), h = _mm512_shuffle_f32x4(t[2], t[3], 0xdd);
    r[0] = _mm512_shuffle_f32x4(e, g, 0x88);
    r[1] = _mm512_shuffle_f32x4(f, h, 0x88);
    r[2] = _mm512_shuffle_f32x4(e, g, 0xdd);
    r[3] = _mm512_shuffle_f32x4(f, h, 0xdd);
  }

  // W / 4 vectors of W / 4 fours each, as a matrix of fours.
  static void transpose_fours(Reg* r) {
    const Reg a = _mm512_shuffle_f32x4(r[0], r[1], 0x44), b = _mm512_shuffle_f32x4(r[0], r[1], 0xee);
    const Reg c = _mm512_shuffle_f32x4(r[2], r[3], 0x44), d = _mm512_shuffle_f32x4(r[2], r[3], 0xee);
    r[0] = _mm512_shuffle_f32x4(a, c, 0x88);
    r[1] = _mm512_shuffle_f32x4(a, c, 0xdd);
    r[2] = _mm512_shuffle_f32x4(b, d, 0x88);
    r[3] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }

  // Sums of vectors, in two steps: kGroup vectors become one, in whose 128-bit lanes their partial sums alternate;
  // W / kGroup of those become one vector of sums.
  static constexpr int kGroup = 4;
  static Reg join(const Reg* r) {
    const __m512d a = _mm512_castps_pd(add(_mm512_unpacklo_ps(r[0], r[1]), _mm512_unpackhi_ps(r[0], r[1])));
    const __m512d b = _mm512_castps_pd(add(_mm512_unpacklo_ps(r[2], r[3]), _mm512_unpackhi_ps(r[2], r[3])));
    return add(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  static Reg sums(const Reg* r) {
    const Reg a = add(_mm512_shuffle_f32x4(r[0], r[1], 0x88), _mm512_shuffle_f32x4(r[0], r[1], 0xdd));
    const Reg b = add(_mm512_shuffle_f32x4(r[2], r[3], 0x88), _mm512_shuffle_f32x4(r[2], r[3], 0xdd));
    return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }

 private:
  static uint32_t lanes(int n) { return n >= W ? kAll : (1u << n) - 1; }
};

struct F64x8 {
  using S = double;
  using Reg = __m512d;
  static constexpr int W = 8;
  static constexpr uint32_t kAll = 0xff;
  static constexpr int kRegisters = 32;

  static Reg zero() { return _mm512_setzero_pd(); }
  static Reg set1(S x) { return _mm512_set1_pd(x); }
  static Reg add(Reg a, Reg b) { return _mm512_add_pd(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_pd(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_pd(a, b, c); }
  static S sum(Reg a) { return _mm512_reduce_add_pd(a); }
  static S first(Reg a) { return _mm512_cvtsd_f64(a); }

  static Reg load(const double* p) { return _mm512_loadu_pd(p); }
  static Reg load_bits(const double* p, uint32_t bits, int n) {
    return _mm512_maskz_loadu_pd((__mmask8)(bits & lanes(n)), p);
  }
  static Reg load_n(const double* p, int n) { return load_bits(p, kAll, n); }
  template <class T>
  static constexpr bool kMasks = true;
  static Reg blend(Reg a, const double* p, uint32_t bits) { return _mm512_mask_loadu_pd(a, (__mmask8)bits, p); }
  static void store_bits(double* p, Reg a, uint32_t bits) { _mm512_mask_storeu_pd(p, (__mmask8)bits, a); }
  static void store(double* p, Reg a) { _mm512_storeu_pd(p, a); }
  static void store_n(double* p, Reg a, int n) { _mm512_mask_storeu_pd(p, (__mmask8)lanes(n), a); }
  static Reg keep(Reg a, uint32_t bits) { return _mm512_maskz_mov_pd((__mmask8)bits, a); }
  static constexpr bool kCopiesHalves = false;

  using Turn = __m512i;
  static Turn turn(int by) {
    return _mm512_add_epi64(_mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7), _mm512_set1_epi64(by));
  }
  static Reg take(Reg a, Reg b, Turn turn) { return _mm512_permutex2var_pd(a, turn, b); }
  static Reg add_bits(Reg a, Reg b, uint32_t bits) { return _mm512_mask_add_pd(a, (__mmask8)bits, a, b); }

  static Reg expand(Reg a, uint32_t bits) { return _mm512_maskz_expand_pd((__mmask8)bits, a); }
  static Reg compress(Reg a, uint32_t bits) { return _mm512_maskz_compress_pd((__mmask8)bits, a); }
  static Reg gather(const double* p, const uint16_t* at, int n) {
    const __mmask8 lane = (__mmask8)lanes(n);
    const __m256i index = _mm256_cvtepu16_epi32(_mm_maskz_loadu_epi16(lane, at));
    return _mm512_mask_i32gather_pd(zero(), lane, index, p, 8);
  }

  static void transpose(Reg* r) {
    Reg t[8];
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm512_unpacklo_pd(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_pd(r[i], r[i + 1]);
    }
    // 4x4 of the 128-bit lanes, for even and odd columns.
    for (int i = 0; i < 2; ++i) {
      const Reg a = _mm512_shuffle_f64x2(t[i], t[i + 2], 0x88), b = _mm512_shuffle_f64x2(t[i], t[i + 2], 0xdd);
      const Reg c = _mm512_shuffle_f64x2(t[i + 4], t[i + 6], 0x88), d = _mm512_shuffle_f64x2(t[i + 4], t[i + 6], 0xdd);
      r[i] = _mm512_shuffle_f64x2(a, c, 0x88);
      r[i + 4] = _mm512_shuffle_f64x2(a, c, 0xdd);
      r[i + 2] = _mm512_shuffle_f64x2(b, d, 0x88);
      r[i + 6] = _mm512_shuffle_f64x2(b, d, 0xdd);
    }
  }

  static void interleave4(Reg* r) {
    const Reg a = _mm512_unpacklo_pd(r[0], r[1]), b = _mm512_unpackhi_pd(r[0], r[1]);
    const Reg c = _mm512_unpacklo_pd(r[2], r[3]), d = _mm512_unpackhi_pd(r[2], r[3]);
    const Reg e = _mm512_shuffle_f64x2(a, c, 0x88), f = _mm512_shuffle_f64x2(a, c, 0xdd);
    const Reg g = _mm512_shuffle_f64x2(b, d, 0x88), h = _mm512_shuffle_f64x2(b, d, 0xdd);
    // e: columns 0 4 of rows 0 1, then of rows 2 3; g: columns 1 5; f: 2 6; h: 3 7.
    const Reg eg0 = _mm512_shuffle_f64x2(e, g, 0x88), eg1 = _mm512_shuffle_f64x2(e, g, 0xdd);
    const Reg fh0 = _mm512_shuffle_f64x2(f, h, 0x88), fh1 = _mm512_shuffle_f64x2(f, h, 0xdd);
    r[0] = eg0, r[1] = fh0, r[2] = eg1, r[3] = fh1;
  }

  static void transpose_fours(Reg* r) {
    const Reg low = _mm512_shuffle_f64x2(r[0], r[1], 0x44);
    r[1] = _mm512_shuffle_f64x2(r[0], r[1], 0xee);
    r[0] = low;
  }

  static constexpr int kGroup = 2;
  static Reg join(const Reg* r) { return add(_mm512_unpacklo_pd(r[0], r[1]), _mm512_unpackhi_pd(r[0], r[1])); }
  static Reg sums(const Reg* r) {
    const Reg a = add(_mm512_shuffle_f64x2(r[0], r[1], 0x88), _mm512_shuffle_f64x2(r[0], r[1], 0xdd));
    const Reg b = add(_mm512_shuffle_f64x2(r[2], r[3], 0x88), _mm512_shuffle_f64x2(r[2], r[3], 0xdd));
    return add(_mm512_shuffle_f64x2(a, b, 0x88), _mm512_shuffle_f64x2(a, b, 0xdd));
  }

 private:
  static uint32_t lanes(int n) { return n >= W ? kAll : (1u << n) - 1; }
};

}  // namespace
}  // namespace maskfuse
