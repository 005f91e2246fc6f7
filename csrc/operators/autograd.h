// What the autograd of all operators shares. Only autograd_*.cpp include it.
#pragma once
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace ssl_fast {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;
using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

// An operator by name, found once.
template <typename Signature>
const c10::TypedOperatorHandle<Signature>& find(const char* name) {
  static const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
  return handle;
}

// Whether autograd must see this call: a tangent of forward mode too, which is an error there.
inline bool tracked(const Tensor& x) {
  return x.defined() && ((at::GradMode::is_enabled() && x.requires_grad()) || x._fw_grad(0).defined());
}
inline bool tracked(const OptionalTensor& x) { return x && tracked(*x); }
inline bool wants_gradient(const OptionalTensor& x) { return x && x->requires_grad(); }
inline Tensor or_undefined(const OptionalTensor& x) { return x ? *x : Tensor(); }
inline OptionalTensor optional(const Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; }

}  // namespace ssl_fast
