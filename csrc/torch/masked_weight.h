// The masked weight of an op, as its problem takes it: bits, their plan, and what was packed. `Problem` is MaskedGemm
// or MaskedConv.
#pragma once

#include "../cpu/isa.h"
#include "../cpu/masked_linear_packed.h"
#include "../cpu/masked_linear_planner.h"
#include "debug.h"
#include "tensor.h"

namespace maskfuse {

// Keeps what `attach` made alive for as long as the problem points into it.
struct Operands {
  Tensor mask, bias;
  Plan plan;
  Packed packed;
};

// The plan's parts in the list that ops take: the index of the mask, and of its transpose, in which a convolution's
// channels change places and their taps stay together; and, where the weight was
// packed, what masked_linear_pack returned.
enum PlanPart { kIndex, kTransposedIndex, kPackedValues, kPackedColumns, kPackedRows, kOrderedValues, kParts };
// What masked_conv2d_pack returned lies behind a convolution's.
inline constexpr size_t kOrdered = 2;

// Of a plan its header, size and patterns are checked, of a packed weight what its sizes add up to. The lists are
// believed to be those that mask_plan and masked_linear_pack made: to check them takes as long as the product of a few
// rows, and is done with MASKFUSE_DEBUG=1 alone.
template <class Problem>
void attach_plan(Problem& g, Operands& keep, const std::vector<Tensor>& plan, PlanPart part, int64_t rows,
                 int64_t columns, const char* op) {
  if (plan.empty()) return;
  STD_TORCH_CHECK(plan.size() == kPackedValues || plan.size() == Problem::kPlanned, op,
                  ": plan must have no tensors, 2, or ", Problem::kPlanned, " with a packed weight, got ", plan.size());
  const Tensor& t = plan[part];
  if (t.dim() == 1 && t.size(0) == 0) return;  // of a mask that has none, for callers who need a tensor all the same
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Byte && t.dim() == 1 && (t.size(0) <= 1 || t.stride(0) == 1) &&
                      plan_open(t.const_data_ptr(), t.size(0), rows, columns, &keep.plan),
                  op, ": plan[", (int)part, "] is not the plan of a mask of shape [", rows, ", ", columns, "]");
  STD_TORCH_CHECK(!debugging() || plan_is_sound(keep.plan), op, ": plan[", (int)part,
                  "] is corrupt: its lists lead out of the mask (seen with MASKFUSE_DEBUG=1 alone)");
  g.plan = &keep.plan;
}

// What sums over products of a type are kept in.
inline ScalarType sum_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <class Problem>
void attach_packed(Problem& g, Operands& keep, const std::vector<Tensor>& plan, ScalarType type, int64_t out,
                   int64_t in, const char* op) {
  if (plan.size() < kParts) return;
  const Tensor &values = plan[kPackedValues], &columns = plan[kPackedColumns], &rows = plan[kPackedRows],
               &ordered = plan[kOrderedValues];
  if (values.scalar_type() != type) return;  // packed in another dtype than a cast call runs in
  bool fits = rows.scalar_type() == ScalarType::Long && rows.dim() == 1 && rows.size(0) == out + 1 &&
              columns.scalar_type() == ScalarType::Short && columns.dim() == 1 && values.dim() == 1 &&
              values.is_contiguous() && columns.is_contiguous() && rows.is_contiguous() && ordered.is_contiguous() &&
              ordered.dim() == 1 && ordered.scalar_type() == sum_type(type);
  if (fits) {
    const int64_t active = ((const int64_t*)rows.const_data_ptr())[out];
    fits = values.size(0) == active + kPackedPad && (columns.size(0) == active || columns.size(0) == 0) &&
           (ordered.size(0) == 0 || (g.plan && ordered.size(0) == ordered_values(*g.plan)));
  }
  STD_TORCH_CHECK(fits, op, ": plan does not hold a packed weight of ", out, " rows");
  keep.packed = {values.const_data_ptr(), columns.size(0) > 0 ? (const uint16_t*)columns.const_data_ptr() : nullptr,
                 (const int64_t*)rows.const_data_ptr(), ordered.size(0) > 0 ? ordered.const_data_ptr() : nullptr};
  STD_TORCH_CHECK(!debugging() || packed_is_sound(g.bits, out, in, keep.packed), op,
                  ": plan holds a packed weight of another mask (seen with MASKFUSE_DEBUG=1 alone)");
  g.packed = &keep.packed;
}

// Bits over rows x columns weights, and their plan; `taps` columns are one channel.
template <class Problem>
void attach_bits(Problem& g, Operands& keep, const Tensor& bits, const std::vector<Tensor>& plan, int64_t rows,
                 int64_t columns, const char* op, int64_t taps = 1) {
  check_bits(bits, rows, columns, op);
  keep.mask = as_contiguous(bits);
  g.bits = (const uint32_t*)keep.mask.const_data_ptr();
  g.bits_ld = mask_words(columns);
  static const uint32_t none = 0;  // an empty mask has no storage, and null would mean "factors"
  if (g.bits == nullptr) g.bits = &none;
  const bool grad = g.pass == Pass::input_grad;
  attach_plan(g, keep, plan, grad ? kTransposedIndex : kIndex, grad ? columns / taps : rows,
              grad ? rows * taps : columns, op);
}

// The weights of the plan's index in its order, for products of many rows; empty where that would be no less than
// half of the matrix, or no kernel reads it.
inline Tensor ordered_weights(MaskedGemm& g, const Tensor& weight) {
  const bool wanted = g.plan && isa_in_use() != Isa::scalar && g.plan->header->values * 2 <= g.n * g.k;
  Tensor ordered =
      torch::stable::new_empty(weight, {wanted ? ordered_values(*g.plan) : 0}, sum_type(weight.scalar_type()));
  if (!wanted) return ordered;
  torch::stable::zero_(ordered);
  const Task copy = masked_linear_kernels(isa_in_use())->values[0][(int)g.dtype];
  void* const to = ordered.mutable_data_ptr();
  const int64_t panel = g.plan->header->panel;
  torch::stable::parallel_for(0, g.plan->panels(), 1, [&](int64_t begin, int64_t end) {
    copy(g, {0, g.m, begin * panel, std::min(end * panel, g.n), panel, to, nullptr});
  });
  return ordered;
}

// A line each: name, estimated nanoseconds, then what was counted as name=count.
inline std::string describe_candidates(const Candidate* list, int count) {
  std::ostringstream text;
  for (int i = 0; i < count; ++i) {
    text << kernel_name(list[i].kernel) << ' ' << list[i].nanoseconds;
    for (int r = 0; r < kRates; ++r) text << ' ' << rate_name(r) << '=' << list[i].work.count[r];
    text << '\n';
  }
  return text.str();
}

}  // namespace maskfuse
