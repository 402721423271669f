#include "cuda_masked_linear_library.h"

#include "../cuda/channel_gather.h"
#include "../cuda/scatter_columns.h"

namespace maskfuse {
namespace {

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
        return scatter(multiply(x, w, bias), active.row_places, g.bias);
      }
      case Pass::input_grad: {
        const Tensor dy = gathered(g.a, g.a_ld, g.m, g.k, nullptr, &active.rows);
        const Tensor w = gathered(g.b, g.b_ld, g.k, g.n, &active.rows, &active.columns);
        return scatter(multiply(dy, torch::stable::transpose(w, 0, 1), {}), active.column_places, nullptr);
      }
      default: {
        const Tensor dy = gathered(g.a, g.a_ld, g.k, g.m, nullptr, &active.rows);
        const Tensor x = gathered(g.b, g.b_ld, g.k, g.n, nullptr, &active.columns);
        const Tensor dw = multiply(torch::stable::transpose(dy, 0, 1), torch::stable::transpose(x, 0, 1), {});
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

  Tensor gathered(const void* from, int64_t ld, int64_t rows, int64_t columns, const Tensor* row_list,
                  const Tensor* column_list) const {
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

  // a b^T + bias by the library, into a result of the operands' dtype: autocast, where the caller has it on, casts the
  // operands of the overloads without `out`. All are tensors made here, so that nothing is recorded for gradients.
  Tensor multiply(const Tensor& a, const Tensor& b, const std::optional<Tensor>& bias) const {
    using torch::stable::detail::from;
    const int64_t sizes[] = {a.size(0), b.size(0)};
    StableIValue stack[] = {from(a), from(b), from(bias), from(new_tensor(like, sizes, 2))};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "out", stack, TORCH_ABI_VERSION));
    const Tensor result = torch::stable::detail::to<Tensor>(stack[0]);
    check_same_dtype(result, "the library's product", like, "its operands", op);
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

}  // namespace maskfuse
