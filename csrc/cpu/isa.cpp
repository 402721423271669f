#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace maskfuse {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::scalar: return "scalar";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
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

Isa choose() {
  const char* wanted = std::getenv("MASKFUSE_CPU");
  if (wanted == nullptr || *wanted == '\0') return isa_best();
  for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (std::strcmp(wanted, isa_name(isa)) != 0) continue;
    if (isa_available(isa)) return isa;
    throw std::runtime_error(std::string("MASKFUSE_CPU=") + wanted + ": this machine runs at most " +
                             isa_name(isa_best()));
  }
  throw std::runtime_error(std::string("MASKFUSE_CPU=") + wanted + ": expected scalar, avx2 or avx512");
}

}  // namespace

Isa isa_in_use() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace maskfuse
