#include "isa.h"

#include <unistd.h>

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

bool library_is_faster() {
#ifdef MASKFUSE_X86
  __builtin_cpu_init();
  return __builtin_cpu_is("intel");
#else
  return true;
#endif
}

}  // namespace maskfuse
