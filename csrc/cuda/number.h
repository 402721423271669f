// Numbers as kernels store them and as they add them: half types are widened to float and rounded to nearest even.
#pragma once

#include "../cpu/dtype.h"
#include "machine.h"

#ifdef MASKFUSE_SIMT
#include <cmath>

#include "../cpu/half.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace maskfuse::cuda {

__host__ __device__ __forceinline__ float widened(float x) { return x; }
__host__ __device__ __forceinline__ double widened(double x) { return x; }

template <class T>
struct Rounded;  // Rounded<T>::of(sum): the sum as it is stored

template <>
struct Rounded<float> {
  __host__ __device__ static __forceinline__ float of(float x) { return x; }
};
template <>
struct Rounded<double> {
  __host__ __device__ static __forceinline__ double of(double x) { return x; }
};

#ifdef MASKFUSE_SIMT
inline float widened(Bf16 x) { return widen(x); }
inline float widened(Fp16 x) { return widen(x); }
template <class T>
struct Rounded {
  static T of(float x) {
    T result;
    narrow(x, &result);
    return result;
  }
};
inline float exponential(float x) { return std::exp(x); }
inline double exponential(double x) { return std::exp(x); }
inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline double multiply_add(double a, double b, double c) { return std::fma(a, b, c); }
#else
__device__ __forceinline__ float widened(Bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }
__device__ __forceinline__ float widened(Fp16 x) { return __half2float(__ushort_as_half(x.bits)); }
template <>
struct Rounded<Bf16> {
  __device__ static __forceinline__ Bf16 of(float x) { return {__bfloat16_as_ushort(__float2bfloat16_rn(x))}; }
};
template <>
struct Rounded<Fp16> {
  __device__ static __forceinline__ Fp16 of(float x) { return {__half_as_ushort(__float2half_rn(x))}; }
};
__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }
#endif

// 1 / (1 + exp(-x)): 0 and 1 at the ends, as exp overflows to infinity and falls to 0.
template <class Sum>
__device__ __forceinline__ Sum sigmoid(Sum x) {
  return (Sum)1 / ((Sum)1 + exponential(-x));
}

// Two half numbers in a word, the first one in the low half.
template <class T>
__device__ __forceinline__ uint32_t pair_of(float low, float high) {
  return (uint32_t)Rounded<T>::of(low).bits | (uint32_t)Rounded<T>::of(high).bits << 16;
}
template <class T>
__device__ __forceinline__ float low_of(uint32_t pair) {
  return widened(T{(uint16_t)pair});
}
template <class T>
__device__ __forceinline__ float high_of(uint32_t pair) {
  return widened(T{(uint16_t)(pair >> 16)});
}

// Sixteen bytes, moved as one.
inline constexpr int kPieceBytes = 16;
struct alignas(kPieceBytes) Piece {
  uint32_t word[4];
};

}  // namespace maskfuse::cuda
