// Channels of a pixel in AVX-512: elements of two, four and eight bytes.
#include "vec_avx512.h"
//
#include "channel_gather_lanes.h"

namespace maskfuse {
namespace {

// Elements of two bytes in lanes of four: moving two-byte lanes needs an extension that not all of these machines have.
struct U16x16 {
  using S = uint16_t;
  using Reg = __m512i;
  static constexpr int W = 16;

  static Reg load_bits(const S* p, uint32_t bits, int) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16((__mmask16)bits, p));
  }
  static Reg load_n(const S* p, int n) { return load_bits(p, lanes(n), n); }
  static Reg compress(Reg a, uint32_t bits) { return _mm512_maskz_compress_epi32((__mmask16)bits, a); }
  static Reg expand(Reg a, uint32_t bits) { return _mm512_maskz_expand_epi32((__mmask16)bits, a); }
  static void store_n(S* p, Reg a, int n) {
    _mm256_mask_storeu_epi16(p, (__mmask16)lanes(n), _mm512_cvtepi32_epi16(a));
  }

 private:
  static uint32_t lanes(int n) { return (1u << n) - 1; }
};

}  // namespace

ChannelSteps channel_steps_avx512(int64_t element) {
  switch (element) {
    case 2:
      return steps_of<U16x16>();
    case 4:
      return steps_of<F32x16>();
    case 8:
      return steps_of<F64x8>();
    default:
      return {};
  }
}

}  // namespace maskfuse
