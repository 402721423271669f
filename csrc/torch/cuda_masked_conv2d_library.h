// Convolutions by torch's library, of a weight of which a masked copy is made first; or of an image's.
#pragma once

#include <optional>

#include "cuda_image.h"

namespace maskfuse {

// Operands and results as those of the ops of the same names.
Tensor library_forward(const ConvShape& shape, const Tensor& input, const Tensor& weight, const Tensor& bits,
                       const std::optional<Tensor>& bias, const char* op);
Tensor library_input_grad(const ConvShape& shape, const Tensor& grad, const Tensor& weight, const Tensor& bits,
                          const char* op);
Tensor library_weight_grad(const ConvShape& shape, const Tensor& grad, const Tensor& input, const Tensor& bits,
                           const char* op);

// Of the channels that each image chooses by `bits`, [batch or 1, words], of a dense weight.
Tensor library_gathered(const ConvShape& shape, const Tensor& input, const Tensor& weight, const Tensor& bits,
                        const std::optional<Tensor>& bias, const char* op);
Tensor library_gathered_input_grad(const ConvShape& shape, const Tensor& grad, const Tensor& weight, const Tensor& bits,
                                   const char* op);
Tensor library_gathered_weight_grad(const ConvShape& shape, const Tensor& grad, const Tensor& input, const Tensor& bits,
                                    const char* op);

}  // namespace maskfuse
