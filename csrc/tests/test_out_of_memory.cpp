// Planning where the n-th allocation fails, for every n: an exception, nothing lost (the leak checker of the address
// sanitizer looks), and the same plan afterwards.
#include <cstdlib>
#include <new>

#include "operands.h"

using namespace maskfuse;
using namespace maskfuse::test;

namespace {
long left = -1;  // allocations that succeed; all of them below 0

void* allocated(std::size_t size) {
  if (left == 0) return nullptr;
  if (left > 0) --left;
  return std::malloc(size ? size : 1);
}
}  // namespace

void* operator new(std::size_t size) {
  void* const p = allocated(size);
  if (!p) throw std::bad_alloc();
  return p;
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return allocated(size); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { std::free(p); }

int main() {
  const int64_t rows = 90, columns = 300;
  for (double density : {0.0, 0.1, 0.9}) {
    const std::vector<uint32_t> bits = random_bits(rows, columns, density);
    const std::vector<unsigned char> want = plan_of(bits, rows, columns, 8 << 10);
    bool failed = true;
    long allowed = 0;
    for (; failed; ++allowed) {
      std::vector<unsigned char> got;
      left = allowed;
      try {
        got = plan_of(bits, rows, columns, 8 << 10);
        failed = false;
      } catch (const std::bad_alloc&) {
      }
      left = -1;
      CHECK(failed || got == want, "the plan with %ld allocations", allowed);
    }
    CHECK(allowed > 5, "only %ld allocations: the failures are not seen", allowed);
    CHECK(plan_of(bits, rows, columns, 8 << 10) == want, "the plan afterwards");
  }
  return report("out_of_memory");
}
