// Calls code that is compiled for one element type.
#pragma once
#include "kernels.h"

namespace ssl_fast::cuda {

// Calls use(null pointer of the float type).
template <typename Use>
cudaError_t with_float(Element type, const Use& use) {
  switch (type) {
    case Element::kFloat: return use(static_cast<float*>(nullptr));
    case Element::kDouble: return use(static_cast<double*>(nullptr));
    case Element::kBfloat16: return use(static_cast<Bfloat16*>(nullptr));
    case Element::kHalf: return use(static_cast<Half*>(nullptr));
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace ssl_fast::cuda
