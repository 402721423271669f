// What MASKFUSE_DEBUG=1 asks for: looks at the values of indices that would cost too much in every call.
#pragma once

#include <cstdlib>
#include <cstring>

namespace maskfuse {

inline bool debugging() {
  static const bool on = [] {
    const char* const value = std::getenv("MASKFUSE_DEBUG");
    return value && std::strcmp(value, "1") == 0;
  }();
  return on;
}

}  // namespace maskfuse
