// Masked convolutions by torch's own library, on a masked copy of the weight: where little is masked, in groups, and on
// processors that multiply half types.
#pragma once

#include "../cpu/masked_conv2d.h"
#include "tensor.h"

namespace maskfuse {

// Operands as the op has them; `weight` is [out, in / groups, kernel_h, kernel_w], any strides.
Tensor library_forward(const MaskedConv& problem, const Tensor& input, const Tensor& weight,
                       const std::optional<Tensor>& bias, Isa isa);
Tensor library_input_grad(const MaskedConv& problem, const Tensor& grad, const Tensor& weight, Isa isa);
Tensor library_weight_grad(const MaskedConv& problem, const Tensor& grad, const Tensor& input, Isa isa);

}  // namespace maskfuse
