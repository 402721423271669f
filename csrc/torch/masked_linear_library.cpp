#include "masked_linear_library.h"

#include <cstring>
#include <vector>

#include "../cpu/masked_linear_planner.h"
#include "buffer.h"
#include "tensor.h"

namespace maskfuse {
namespace {

// A matrix somewhere: torch looks at it, and neither owns it nor knows whether it requires gradients.
struct View {
  const void* data;
  int64_t rows, columns, row_stride, column_stride;

  View transposed() const { return {data, columns, rows, column_stride, row_stride}; }
};

Tensor as_tensor(const View& v, Dtype dtype) {
  const int64_t sizes[] = {v.rows, v.columns}, strides[] = {v.row_stride, v.column_stride};
  return torch::stable::from_blob(const_cast<void*>(v.data), {sizes, 2}, {strides, 2},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), scalar_type(dtype));
}

// c = a b^T + bias, by the library.
void multiply(const View& a, const View& b, const void* bias, const View& c, Dtype dtype) {
  using torch::stable::detail::from;
  std::optional<Tensor> bias_tensor;
  if (bias) {
    const int64_t size[] = {b.rows}, stride[] = {1};
    bias_tensor =
        torch::stable::from_blob(const_cast<void*>(bias), {size, 1}, {stride, 1},
                                 torch::stable::Device(torch::headeronly::DeviceType::CPU), scalar_type(dtype));
  }
  StableIValue stack[] = {from(as_tensor(a, dtype)), from(as_tensor(b, dtype)), from(bias_tensor),
                          from(as_tensor(c, dtype))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "out", stack, TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes the handle of `out` back
}

std::vector<int32_t> listed(const uint32_t* pattern, int64_t begin, int64_t end) {
  std::vector<int32_t> numbers;
  for (int64_t i = begin; i < end; ++i)
    if (pattern[i >> 5] >> (i & 31) & 1) numbers.push_back((int32_t)i);
  return numbers;
}

// Rows of `columns` elements that are worth a thread.
int64_t grain(int64_t columns) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns)); }

class Product {
 public:
  Product(const MaskedGemm& problem, Isa isa)
      : g(problem), p(problem), table(*masked_linear_kernels(isa)), size(dtype_size(g.dtype)), dtype((int)g.dtype) {}

  void run() const {
    if (p.compact)
      g.pass == Pass::weight_grad ? compact_weight_grad() : compact();
    else
      g.pass == Pass::weight_grad ? weight_grad() : masked();
  }

 private:
  const MaskedGemm& g;
  const LibraryProduct p;
  const MaskedLinearKernels& table;
  const int64_t size;
  const int dtype;

  const char* at(const void* matrix, int64_t ld, int64_t row, int64_t column) const {
    return (const char*)matrix + (row * ld + column) * size;
  }

  // Room for elements: the thread's own, or `once` where that should not keep so much.
  char* room(Buffer& once, int64_t elements) const {
    const auto bytes = (size_t)(elements * size);
    return (char*)(bytes > kKeptBytes ? once : thread_shared()).get(bytes);
  }

  void move(Move kernel, const MoveColumns& what, int64_t rows) const {
    torch::stable::parallel_for(0, rows, grain(what.columns),
                                [&](int64_t begin, int64_t end) { kernel(what, begin, end); });
  }

  // forward, input_grad: C's columns [begin, end) from a masked copy of what B has for them, or from B itself.
  void masked() const {
    const bool grad = g.pass == Pass::input_grad;
    Buffer once;
    char* const copy = room(once, p.full ? 0 : p.step * g.k);
    for (int64_t begin = 0; begin < g.n; begin += p.step) {
      const int64_t end = std::min(begin + p.step, g.n), rows = grad ? g.k : end - begin;
      const int64_t columns = grad ? end - begin : g.k;
      View b{at(g.b, g.b_ld, grad ? 0 : begin, grad ? begin : 0), rows, columns, g.b_ld, 1};
      if (!p.full) {
        torch::stable::parallel_for(0, rows, grain(columns), [&](int64_t r0, int64_t r1) {
          const int64_t first = grad ? 0 : begin, column = grad ? begin : 0;
          Part part{first + r0, first + r1, column, column + columns, 0, copy + r0 * columns * size, nullptr};
          table.masked_copy[dtype][mask_index(g)](g, part);
        });
        b = {copy, rows, columns, columns, 1};
      }
      multiply({g.a, g.m, g.k, g.a_ld, 1}, grad ? b.transposed() : b, g.bias ? at(g.bias, 0, 0, begin) : nullptr,
               {at(g.c, g.c_ld, 0, begin), g.m, end - begin, g.c_ld, 1}, g.dtype);
    }
  }

  // C's rows [begin, end), masked while they are in cache.
  void weight_grad() const {
    for (int64_t begin = 0; begin < g.m; begin += p.step) {
      const int64_t end = std::min(begin + p.step, g.m);
      const View a{at(g.a, g.a_ld, 0, begin), g.k, end - begin, g.a_ld, 1}, b{g.b, g.k, g.n, g.b_ld, 1};
      multiply(a.transposed(), b.transposed(), nullptr, {at(g.c, g.c_ld, begin, 0), end - begin, g.n, g.c_ld, 1},
               g.dtype);
      if (p.full && !g.gate) continue;
      torch::stable::parallel_for(begin, end, grain(g.n), [&](int64_t r0, int64_t r1) {
        table.masked_result[dtype][mask_index(g)](g, {r0, r1, 0, g.n, 0, nullptr, nullptr});
      });
    }
  }

  // Zeros behind the used columns of rows.
  void clear_tail(char* matrix, int64_t rows, int64_t used, int64_t pitch) const {
    for (int64_t r = 0; used < pitch && r < rows; ++r)
      std::memset(matrix + (r * pitch + used) * size, 0, (size_t)((pitch - used) * size));
  }

  // forward, input_grad of active channels: A, B and C without the others. The plan's rows are C's columns. Sums are
  // over `pitch` channels, some of them zeros where the library wants it (kHalfColumns).
  void compact() const {
    const bool grad = g.pass == Pass::input_grad;
    const uint32_t *const in = g.plan->column_pattern, *const out = g.plan->row_pattern;
    Buffer once;
    const int64_t most = std::min(p.n, p.step), unit = size == 2 ? kHalfColumns : 1;
    const int64_t pitch = (p.k + unit - 1) / unit * unit;
    char* const a = room(once, g.m * pitch + most * pitch + g.m * most + most);
    char *const b = a + g.m * pitch * size, *const c = b + most * pitch * size, *const bias = c + g.m * most * size;
    move(table.gather[dtype], {g.a, g.a_ld, a, pitch, g.k, in, nullptr, nullptr}, g.m);
    clear_tail(a, g.m, p.k, pitch);
    for (int64_t begin = 0; begin < g.n; begin += p.step) {
      const int64_t end = std::min(begin + p.step, g.n);
      const int64_t count = (int64_t)listed(out, begin, end).size();                            // of C's columns
      const std::vector<int32_t> active = grad ? listed(in, 0, g.k) : listed(out, begin, end);  // B's rows
      const auto rows = (int64_t)active.size();
      if (grad) {
        move(table.gather[dtype],
             {at(g.b, 0, 0, begin), g.b_ld, b, count, end - begin, out + begin / 32, active.data(), nullptr}, rows);
        std::memset(b + rows * count * size, 0, (size_t)((pitch - rows) * count * size));
      } else {
        move(table.gather[dtype], {g.b, g.b_ld, b, pitch, g.k, in, active.data(), nullptr}, rows);
        clear_tail(b, rows, p.k, pitch);
      }
      const void* const wide_bias = g.bias ? at(g.bias, 0, 0, begin) : nullptr;
      if (g.bias) table.gather[dtype]({wide_bias, 0, bias, 0, end - begin, out + begin / 32, nullptr, nullptr}, 0, 1);
      const View part = grad ? View{b, count, pitch, 1, count} : View{b, count, pitch, pitch, 1};
      if (count > 0)
        multiply({a, g.m, pitch, pitch, 1}, part, g.bias ? bias : nullptr, {c, g.m, count, count, 1}, g.dtype);
      move(table.scatter[dtype],
           {c, count, (void*)at(g.c, 0, 0, begin), g.c_ld, end - begin, out + begin / 32, nullptr, wide_bias}, g.m);
    }
  }

  void compact_weight_grad() const {
    const uint32_t *const out = g.plan->row_pattern, *const in = g.plan->column_pattern;
    Buffer once;
    const int64_t most = std::min(p.m, p.step);
    char* const a = room(once, g.k * p.m + g.k * p.n + most * p.n);
    char *const b = a + g.k * p.m * size, *const c = b + g.k * p.n * size;
    move(table.gather[dtype], {g.a, g.a_ld, a, p.m, g.m, out, nullptr, nullptr}, g.k);
    move(table.gather[dtype], {g.b, g.b_ld, b, p.n, g.n, in, nullptr, nullptr}, g.k);
    const std::vector<int32_t> active = listed(out, 0, g.m);
    std::vector<int32_t> others;
    for (int64_t r = 0; r < g.m; ++r)
      if (!(out[r >> 5] >> (r & 31) & 1)) others.push_back((int32_t)r);
    torch::stable::parallel_for(0, (int64_t)others.size(), grain(g.n), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) std::memset((void*)at(g.c, g.c_ld, others[i], 0), 0, (size_t)(g.n * size));
    });
    for (int64_t begin = 0; begin < p.m; begin += p.step) {
      const int64_t rows = std::min(p.step, p.m - begin);
      const View dy{a + begin * size, g.k, rows, p.m, 1}, x{b, g.k, p.n, p.n, 1};
      multiply(dy.transposed(), x.transposed(), nullptr, {c, rows, p.n, p.n, 1}, g.dtype);
      move(table.scatter[dtype], {c, p.n, g.c, g.c_ld, g.n, in, active.data() + begin, nullptr}, rows);
    }
  }
};

}  // namespace

void run_library(const MaskedGemm& problem, Isa isa) { Product(problem, isa).run(); }

}  // namespace maskfuse
