// How the engine allocates tensors, reads them by their type and shares work among threads.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

namespace ssl_fast {

inline int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

template <typename T>
at::Tensor new_zeros(at::IntArrayRef sizes) {
  return at::zeros(sizes, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
}
template <typename T>
at::Tensor new_empty(at::IntArrayRef sizes) {
  return at::empty(sizes, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
}

// The grain of at::parallel_for, the fewest items for which a thread is started, where each item takes so many
// floating-point operations: about five microseconds of work.
inline int64_t grain(double flops_each) { return int64_t(5e5 / (flops_each + 1)) + 1; }

// Calls run.operator()<T>() with the type T in which x is computed: float64 for float64, else float32.
template <typename Run>
auto in_compute_type(const at::Tensor& x, const Run& run) {
  return x.scalar_type() == at::kDouble ? run.template operator()<double>() : run.template operator()<float>();
}

// Calls use(pointer to the first element of type S) for the float type S of x.
template <typename Use>
void with_type(const at::Tensor& x, const Use& use) {
  switch (x.scalar_type()) {
    case at::kFloat: return use(x.data_ptr<float>());
    case at::kDouble: return use(x.data_ptr<double>());
    case at::kBFloat16: return use(x.data_ptr<at::BFloat16>());
    case at::kHalf: return use(x.data_ptr<at::Half>());
    default: TORCH_CHECK_TYPE(false, "expected float32, float64, bfloat16 or float16, got ", x.scalar_type());
  }
}

// The values of an int64 tensor (N); none of no tensor.
inline std::vector<int64_t> int64_values(const std::optional<at::Tensor>& x) {
  if (!x) return {};
  const at::Tensor contiguous = x->contiguous();
  const int64_t* first = contiguous.data_ptr<int64_t>();
  return {first, first + x->size(0)};
}

}  // namespace ssl_fast
