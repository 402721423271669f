#include "isa.h"

#include <unistd.h>
#ifdef MASKFUSE_X86
#include <cpuid.h>
#endif

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace maskfuse {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::scalar:
      return "scalar";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
  }
  return "unknown";
}

bool isa_available(Isa isa) {
  if (isa == Isa::scalar) return true;
#ifdef MASKFUSE_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (isa == Isa::avx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

Isa isa_best() {
  for (Isa isa : {Isa::avx512, Isa::avx2})
    if (isa_available(isa)) return isa;
  return Isa::scalar;
}

namespace {

Isa parse(const char* source, const char* name) {
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (std::strcmp(name, isa_name(isa)) != 0) continue;
    if (isa_available(isa)) return isa;
    throw std::runtime_error(std::string(source) + name + ": this machine runs at most " + isa_name(isa_best()));
  }
  throw std::runtime_error(std::string(source) + name + ": expected scalar, avx2 or avx512");
}

Isa from_environment() {
  const char* wanted = std::getenv("MASKFUSE_CPU");
  return wanted == nullptr || *wanted == '\0' ? isa_best() : parse("MASKFUSE_CPU=", wanted);
}

std::atomic<Isa>& level() {
  static std::atomic<Isa> isa{from_environment()};
  return isa;
}

}  // namespace

Isa isa_in_use() { return level().load(std::memory_order_relaxed); }

void isa_set(const char* name) { level().store(parse("level ", name), std::memory_order_relaxed); }

int64_t first_level_cache() {
#ifdef _SC_LEVEL1_DCACHE_SIZE
  static const long bytes = sysconf(_SC_LEVEL1_DCACHE_SIZE);
  if (bytes >= 8 << 10) return bytes;
#endif
  return 32 << 10;
}

namespace {

// What libraries need for half types, which __builtin_cpu_supports of older compilers does not know.
struct HalfTypes {
  bool avx512_bf16 = false, avx512_fp16 = false, amx_bf16 = false;

  HalfTypes() {
#ifdef MASKFUSE_X86
    unsigned a, b, c, d;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
      amx_bf16 = d >> 22 & 1;
      avx512_fp16 = d >> 23 & 1;
      if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) avx512_bf16 = a >> 5 & 1;
    }
#endif
  }
};

bool is_intel() {
#ifdef MASKFUSE_X86
  __builtin_cpu_init();
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

}  // namespace

// Measured on an Intel Xeon with AMX (1, 0.17 for bf16, 1.05 for f16) and on an AMD EPYC of the Zen 5 generation.
double library_cost(Dtype dtype) {
  static const HalfTypes has;
  static const bool intel = is_intel();
  switch (dtype) {
    case Dtype::f32:
    case Dtype::f64:
      return intel ? 1 : 2;
    case Dtype::bf16:
      return has.amx_bf16 ? 0.17 : has.avx512_bf16 ? 0.55 : 0;
    case Dtype::f16:
      return has.avx512_fp16 ? 1.05 : 0;
  }
  return 0;
}

bool library_is_faster() { return library_cost(Dtype::f32) <= 1; }

}  // namespace maskfuse
