// Checks of arguments that several operators share. A message names the argument, what was expected and what came.
#pragma once
#include "../common/constants.h"

#include <ATen/core/Tensor.h>

namespace ssl_fast {

// x and other: rows (N, D) that belong together, at least one number each.
inline void check_row_pair(const char* name, const at::Tensor& x, const char* other_name, const at::Tensor& other) {
  TORCH_CHECK_VALUE(other.dim() == 2 && other.sizes() == x.sizes() && other.numel() > 0, name,
                    ": expected the shape (N, D) of ", other_name, ", not empty, got ", other.sizes(), " and ",
                    x.sizes());
}

inline void check_reduction(int64_t reduction) {
  TORCH_CHECK_VALUE(reduction >= kNone && reduction <= kSum, "reduction: expected 0, 1 or 2, got ", reduction);
}

// The gradient of a reduced loss of n rows: (n) where it was not reduced, else ().
inline void check_upstream(const at::Tensor& gradient, int64_t reduction, int64_t n) {
  check_reduction(reduction);
  TORCH_CHECK_VALUE(reduction == kNone ? gradient.dim() == 1 && gradient.size(0) == n : gradient.dim() == 0,
                    "gradient: expected the shape of the loss of ", n, " rows, got ", gradient.sizes());
}

// A tensor that the forward pass of these inputs returned for the backward pass.
template <typename T>
void check_saved(const char* name, const at::Tensor& x, at::IntArrayRef sizes) {
  TORCH_CHECK_VALUE(x.sizes() == sizes && x.is_contiguous() && x.scalar_type() == c10::CppTypeToScalarType<T>::value,
                    name, ": expected what the forward pass returned, of shape ", sizes, ", got ", x.scalar_type(), " ",
                    x.sizes());
}

}  // namespace ssl_fast
