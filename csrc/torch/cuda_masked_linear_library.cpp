#include "cuda_masked_linear_library.h"

#include "../cuda/channel_gather.h"
#include "../cuda/masked_copy.h"
#include "../cuda/scatter_columns.h"

namespace maskfuse {
namespace {

// out = a b^T + bias by the library. Into a given result: autocast, where the caller has it on, casts the operands of
// the overloads without `out`. None of the tensors was made by a caller, so that nothing is recorded for gradients.
void multiply_into(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias, const Tensor& out,
                   const char* op) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(a), from(b), from(bias), from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "out", stack, TORCH_ABI_VERSION));
  check_same_dtype(torch::stable::detail::to<Tensor>(stack[0]), "the library's product", a, "its operands", op);
}

// A matrix in memory, for the library to look at.
Tensor matrix(const void* data, int64_t rows, int64_t columns, int64_t ld, const Tensor& like) {
  const int64_t sizes[] = {rows, columns}, strides[] = {ld, 1};
#ifdef MASKFUSE_SIMT
  const torch::stable::Device device(torch::headeronly::DeviceType::CPU);
#else
  const torch::stable::Device device(torch::headeronly::DeviceType::CUDA, like.get_device_index());
#endif
  return torch::stable::from_blob(const_cast<void*>(data), {sizes, 2}, {strides, 2}, device, like.scalar_type());
}
Tensor transposed(const Tensor& t) { return torch::stable::transpose(t, 0, 1); }

// The masked copy is made in panels of this much, so that it takes no more memory; of a weight that is smaller, at
// once.
constexpr int64_t kPanelBytes = 64 << 20;
constexpr int64_t kPanelRows = 128;  // a panel has a multiple of

// C's columns by panels of B's rows (forward), or C as the sum over them (input_grad).
void multiply_masked(const cuda::MaskedGemm& g, const Tensor& like, const char* op) {
  const bool forward = g.pass == Pass::forward;
  const int64_t rows = forward ? g.n : g.k, columns = forward ? g.k : g.n, element = dtype_size(g.dtype);
  const int64_t fit = std::max<int64_t>(1, kPanelBytes / std::max<int64_t>(1, columns * element * kPanelRows));
  // A sum over panels would be rounded between them: all of the weight at once.
  const int64_t step = forward ? std::min(rows, fit * kPanelRows) : rows;
  const int64_t sizes[] = {step, columns};
  const Tensor copy = new_tensor(like, sizes, 2);
  const Tensor a = matrix(g.a, g.m, g.k, g.a_ld, like);
  for (int64_t begin = 0; begin < rows; begin += step) {
    const int64_t end = std::min(begin + step, rows);
    check_launch(cuda::masked_copy(g, begin, end, copy.mutable_data_ptr(), current_stream(like)), op);
    const Tensor panel = matrix(copy.const_data_ptr(), end - begin, columns, columns, like);
    if (!forward) return multiply_into(a, transposed(panel), {}, matrix(g.c, g.m, g.n, g.c_ld, like), op);
    std::optional<Tensor> bias;
    if (g.bias)
      bias =
          torch::stable::view(matrix((const char*)g.bias + begin * element, 1, end - begin, end - begin, like), {-1});
    multiply_into(a, panel, bias, matrix((char*)g.c + begin * element, g.m, end - begin, g.c_ld, like), op);
  }
}

void multiply_then_mask(const cuda::MaskedGemm& g, const Tensor& like, const char* op) {
  const Tensor dy = matrix(g.a, g.k, g.m, g.a_ld, like), x = matrix(g.b, g.k, g.n, g.b_ld, like);
  multiply_into(transposed(dy), transposed(x), {}, matrix(g.c, g.m, g.n, g.c_ld, like), op);
  check_launch(cuda::masked_result(g, current_stream(like)), op);
}

// The problem and what is gathered of its operands.
class Compact {
 public:
  Compact(const cuda::MaskedGemm& problem, const ActiveChannels& active, const Tensor& like, const char* op)
      : g(problem),
        active(active),
        like(like),
        op(op),
        element((int64_t)like.element_size()),
        stream(current_stream(like)) {}

  void run() const {
    switch (g.pass) {
      case Pass::forward: {
        std::optional<Tensor> bias;
        if (g.bias) bias = torch::stable::view(gathered(g.bias, g.n, 1, g.n, nullptr, &active.rows), {-1});
        const Tensor x = gathered(g.a, g.a_ld, g.m, g.k, nullptr, &active.columns);
        const Tensor w = gathered(g.b, g.b_ld, g.n, g.k, &active.rows, &active.columns);
        if (w.size(0) == g.n) return multiply_into(x, w, bias, matrix(g.c, g.m, g.n, g.c_ld, like), op);
        return scatter(multiply(x, w, bias), active.row_places, g.bias);
      }
      case Pass::input_grad: {
        const Tensor dy = gathered(g.a, g.a_ld, g.m, g.k, nullptr, &active.rows);
        const Tensor w = gathered(g.b, g.b_ld, g.k, g.n, &active.rows, &active.columns);
        if (w.size(1) == g.n) return multiply_into(dy, transposed(w), {}, matrix(g.c, g.m, g.n, g.c_ld, like), op);
        return scatter(multiply(dy, transposed(w), {}), active.column_places, nullptr);
      }
      default: {
        const Tensor dy = gathered(g.a, g.a_ld, g.k, g.m, nullptr, &active.rows);
        const Tensor x = gathered(g.b, g.b_ld, g.k, g.n, nullptr, &active.columns);
        const Tensor dw = multiply(transposed(dy), transposed(x), {});
        return copy(dw.const_data_ptr(), dw.size(1), dw.size(0), dw.size(1), g.c, g.m, g.n, &active.row_places,
                    &active.column_places);
      }
    }
  }

 private:
  const cuda::MaskedGemm& g;
  const ActiveChannels& active;
  const Tensor& like;
  const char* const op;
  const int64_t element;
  const cudaStream_t stream;

  // to[r][c] = from[rows[r]][columns[c]], zero where either is negative; null: all in order.
  void copy(const void* from, int64_t ld, int64_t from_rows, int64_t from_columns, void* to, int64_t rows,
            int64_t columns, const Tensor* row_list, const Tensor* column_list) const {
    ChannelCopy copy{};
    copy.samples = rows, copy.channels = columns, copy.pixels = 1, copy.element = element, copy.channels_last = true;
    copy.from = (const char*)from, copy.from_channels = from_columns;
    copy.from_sample = ld * element, copy.from_channel = element, copy.from_pixel = element;
    copy.to = (char*)to;
    const auto list = [](const Tensor* t, int64_t size) {
      return t ? cuda::plain_list((const int32_t*)t->const_data_ptr(), size) : cuda::ChannelList{};
    };
    check_launch(cuda::channel_gather(copy, list(column_list, from_columns), list(row_list, from_rows), stream), op);
  }

  // The rows and columns of the lists; a matrix of which they are all is not copied.
  Tensor gathered(const void* from, int64_t ld, int64_t rows, int64_t columns, const Tensor* row_list,
                  const Tensor* column_list) const {
    if ((!row_list || row_list->size(0) == rows) && (!column_list || column_list->size(0) == columns))
      return matrix(from, rows, columns, ld, like);
    const int64_t sizes[] = {row_list ? row_list->size(0) : rows, column_list ? column_list->size(0) : columns};
    Tensor result = new_tensor(like, sizes, 2);
    copy(from, ld, rows, columns, result.mutable_data_ptr(), sizes[0], sizes[1], row_list, column_list);
    return result;
  }

  // Columns of C from those of a narrower matrix.
  void scatter(const Tensor& from, const Tensor& places, const void* fill) const {
    check_launch(cuda::scatter_columns(from.const_data_ptr(), from.size(1), g.m, g.n,
                                       (const int32_t*)places.const_data_ptr(), fill, element, g.c, g.c_ld, stream),
                 op);
  }

  Tensor multiply(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias) const {
    const int64_t sizes[] = {a.size(0), b.size(0)};
    const Tensor result = new_tensor(like, sizes, 2);
    multiply_into(a, b, bias, result, op);
    return result;
  }
};

}  // namespace

ActiveChannels active_channels(const Tensor* plan, int64_t rows, int64_t columns, const char* op) {
  for (int i = 0; i < 4; ++i) {
    check_dtype(plan[i], ScalarType::Int, op, "plan");
    STD_TORCH_CHECK(plan[i].dim() == 1 && plan[i].is_contiguous() && plan[i].size(0) <= (i % 2 ? columns : rows), op,
                    ": plan does not hold the active channels of a weight of shape [", rows, ", ", columns, "]");
  }
  check_shape(plan[2], {rows}, op, "places of rows");
  check_shape(plan[3], {columns}, op, "places of columns");
  return {plan[0], plan[1], plan[2], plan[3]};
}

void run_library(const cuda::MaskedGemm& problem, const ActiveChannels& active, const Tensor& like, const char* op) {
  Compact(problem, active, like, op).run();
}

void run_library(const cuda::MaskedGemm& problem, const Tensor& like, const char* op) {
  problem.pass == Pass::weight_grad ? multiply_then_mask(problem, like, op) : multiply_masked(problem, like, op);
}

}  // namespace maskfuse
