// A thread follows the chain of its channel's addends, and has the same words of all strips of an addend under way
// together. Most chains have one addend: bound by the bytes moved.
#include "channel_scatter.h"
#include "channel_strips.h"
#include "number.h"

namespace maskfuse::cuda {
namespace {

// How a number is stored, and what a sum of it is kept in.
template <class T>
struct Whole {
  using Stored = T;
  using Sum = T;
  static __device__ __forceinline__ T load(T x) { return x; }
  static __device__ __forceinline__ T store(T x) { return x; }
  static __device__ __forceinline__ T add(T a, T b) { return (T)(a + b); }
};
struct Boolean : Whole<uint8_t> {
  static __device__ __forceinline__ uint8_t add(uint8_t a, uint8_t b) { return (a | b) != 0; }
};
template <class T>
struct Real {
  using Stored = T;
  using Sum = decltype(widened(T{}));
  static __device__ __forceinline__ Sum load(T x) { return widened(x); }
  static __device__ __forceinline__ T store(Sum x) { return Rounded<T>::of(x); }
  static __device__ __forceinline__ Sum add(Sum a, Sum b) { return a + b; }
};

// A channel of the input; none where `channel` is negative.
struct Addend {
  int32_t sample, channel;
};

__device__ __forceinline__ int32_t next_sample(const ChannelSum& s, int32_t sample) {
  return s.next_sample ? s.next_sample[sample] : kNoChannel;
}

// The first addend in `sample`, or in those after it.
__device__ __forceinline__ Addend addend_from(const ChannelSum& s, int32_t sample, int32_t channel) {
  for (; sample >= 0; sample = next_sample(s, sample)) {
    const int32_t found = s.copy.channel[sample * s.copy.rows + channel];
    if (found >= 0) return {sample, found};
  }
  return {0, kNoChannel};
}

__device__ __forceinline__ Addend addend_after(const ChannelSum& s, const Addend& addend, int32_t channel) {
  const int32_t found = s.next_channel[addend.sample * s.next_rows + addend.channel];
  return found >= 0 ? Addend{addend.sample, found} : addend_from(s, next_sample(s, addend.sample), channel);
}

// As many as a thread has registers for the sums of.
template <class T, int kBytes>
constexpr int kSumStrips =
    kStrips<kBytes> * kBytes <= 32 * (int)sizeof(typename T::Stored) ? kStrips<kBytes>
                                                                     : 32 * (int)sizeof(typename T::Stored) / kBytes;

// T: what is added. kBytes: of a word.
template <class T, int kBytes>
__global__ void __launch_bounds__(kMostThreads, 1)  // 1: rather fewer threads than spilled registers
    sum_kernel(ChannelSum s, ChannelStrips strips) {
  constexpr int kTogether = kSumStrips<T, kBytes>, kNumbers = kBytes / (int)sizeof(typename T::Stored);
  struct alignas(kBytes) Word {
    typename T::Stored number[kNumbers];
  };
  const ChannelCopy& c = s.copy;
  const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
  if (thread >= strips.launch_threads) return;
  const ChannelPlace place = channel_place(strips, thread);
  const auto read = [&](const Addend& a, Word* words) {
    const char* from = c.from + a.sample * c.from_sample + a.channel * c.from_channel + place.word * strips.from_step;
#pragma unroll
    for (int k = 0; k < kTogether; ++k, from += strips.from_strip)
      words[k] = a.channel >= 0 && place.word + k * strips.strip < strips.words ? *(const Word*)from : Word{};
  };
  Addend addend = addend_from(s, c.sample ? c.sample[place.sample] : place.sample, place.channel);
  Word value[kTogether];
  read(addend, value);
  if (addend.channel >= 0) addend = addend_after(s, addend, place.channel);
  if (addend.channel >= 0) {
    typename T::Sum total[kTogether][kNumbers];
#pragma unroll
    for (int k = 0; k < kTogether; ++k)
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) total[k][i] = T::load(value[k].number[i]);
    for (; addend.channel >= 0; addend = addend_after(s, addend, place.channel)) {
      read(addend, value);
#pragma unroll
      for (int k = 0; k < kTogether; ++k)
#pragma unroll
        for (int i = 0; i < kNumbers; ++i) total[k][i] = T::add(total[k][i], T::load(value[k].number[i]));
    }
#pragma unroll
    for (int k = 0; k < kTogether; ++k)
#pragma unroll
      for (int i = 0; i < kNumbers; ++i) value[k].number[i] = T::store(total[k][i]);
  }
  char* to = output(strips, c.to, place);
#pragma unroll
  for (int k = 0; k < kTogether; ++k, to += strips.to_strip)
    if (place.word + k * strips.strip < strips.words) *(Word*)to = value[k];
}

template <class T, int kBytes>
cudaError_t run(const ChannelSum& sum, int bytes, cudaStream_t stream) {
  if constexpr (kBytes > (int)sizeof(typename T::Stored))
    if (bytes < kBytes) return run<T, kBytes / 2>(sum, bytes, stream);
  return launch_strips(sum_kernel<T, kBytes>, sum, sum.copy, kBytes, kSumStrips<T, kBytes>, stream);
}

}  // namespace

cudaError_t channel_scatter(const ChannelSum& all, cudaStream_t stream) {
  ChannelSum sum = all;
  if (sum.copy.samples == 0 || sum.copy.channels == 0 || sum.copy.pixels == 0) return cudaSuccess;
  sum.copy = merged(sum.copy, !sum.copy.sample && sum.copy.rows == 0);
  const int bytes = word_bytes(sum.copy);
  switch (sum.number) {
    case Number::boolean:
      return run<Boolean, 16>(sum, bytes, stream);
    case Number::i8:
      return run<Whole<uint8_t>, 16>(sum, bytes, stream);
    case Number::i16:
      return run<Whole<uint16_t>, 16>(sum, bytes, stream);
    case Number::i32:
      return run<Whole<uint32_t>, 16>(sum, bytes, stream);
    case Number::i64:
      return run<Whole<uint64_t>, 16>(sum, bytes, stream);
    case Number::f32:
      return run<Real<float>, 16>(sum, bytes, stream);
    case Number::f64:
      return run<Real<double>, 16>(sum, bytes, stream);
    case Number::bf16:
      return run<Real<Bf16>, 16>(sum, bytes, stream);
    case Number::f16:
      return run<Real<Fp16>, 16>(sum, bytes, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace maskfuse::cuda
