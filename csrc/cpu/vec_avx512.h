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

  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg set1(S x) { return _mm512_set1_ps(x); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
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

  static void store(float* p, Reg a) { _mm512_storeu_ps(p, a); }
  static void store_n(float* p, Reg a, int n) { _mm512_mask_storeu_ps(p, (__mmask16)lanes(n), a); }
  static void store_n(Fp16* p, Reg a, int n) {
    _mm256_mask_storeu_epi16(p, (__mmask16)lanes(n), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store_n(Bf16* p, Reg a, int n) {
    // Round to nearest even on the upper half; a NaN keeps its sign and becomes quiet.
    const __m512i x = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
    __m512i y = _mm512_srli_epi32(_mm512_add_epi32(x, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    y = _mm512_mask_or_epi32(y, nan, _mm512_srli_epi32(x, 16), _mm512_set1_epi32(0x40));
    _mm256_mask_storeu_epi16(p, (__mmask16)lanes(n), _mm512_cvtepi32_epi16(y));
  }
  static Reg keep(Reg a, uint32_t bits) { return _mm512_maskz_mov_ps((__mmask16)bits, a); }

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

 private:
  static uint32_t lanes(int n) { return n >= W ? kAll : (1u << n) - 1; }
};

struct F64x8 {
  using S = double;
  using Reg = __m512d;
  static constexpr int W = 8;
  static constexpr uint32_t kAll = 0xff;

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
  static void store(double* p, Reg a) { _mm512_storeu_pd(p, a); }
  static void store_n(double* p, Reg a, int n) { _mm512_mask_storeu_pd(p, (__mmask8)lanes(n), a); }
  static Reg keep(Reg a, uint32_t bits) { return _mm512_maskz_mov_pd((__mmask8)bits, a); }

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

 private:
  static uint32_t lanes(int n) { return n >= W ? kAll : (1u << n) - 1; }
};

}  // namespace
}  // namespace maskfuse
