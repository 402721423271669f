// weight_grad, in two ways: one product a weight where few are active, register tiles where many are.
// Included by masked_linear_{avx2,avx512}.cpp only.
#pragma once

#include "masked_linear_weight_grad_sampled.h"
#include "masked_linear_weight_grad_tiled.h"
