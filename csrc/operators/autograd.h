// What the autograd of all operators shares. Only autograd_*.cpp include it.
//
// Of `cpu::nt_xent` in `find<cpu::nt_xent>(name)` only the type is used: it is the operator's signature, which is
// written in cpu/operators.h and nowhere else. The call goes through the dispatcher to the implementation of the
// tensors' device.
#pragma once
#include "../cpu/operators.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace ssl_fast {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using OptionalTensor = std::optional<Tensor>;

// The operator of this name with the signature of `function`, looked up once.
template <auto function>
const auto& find(const char* name) {
  using Signature = std::remove_pointer_t<decltype(function)>;
  static const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
  return handle;
}

// Calls the operator below autograd: what the forward pass computes gets no graph of its own.
template <auto function, typename... Arguments>
auto call_below_autograd(const char* name, const Arguments&... arguments) {
  at::AutoDispatchBelowADInplaceOrView below;
  return find<function>(name).call(arguments...);
}

// Whether autograd must see this argument: one that requires a gradient, or, to raise an error, one with a tangent of
// forward mode.
inline bool is_tracked(const Tensor& x) {
  return x.defined() && ((at::GradMode::is_enabled() && x.requires_grad()) || x._fw_grad(0).defined());
}
inline bool is_tracked(const OptionalTensor& x) { return x && is_tracked(*x); }
inline bool is_tracked(double) { return false; }  // numbers and flags

// The operator as it is registered for autograd. Node is its torch::autograd::Function, whose forward takes the
// operator's arguments; it is applied only where autograd must see one of them, because it costs as much as a small
// batch. without_gradient: the places of tensor arguments that get no gradient.
template <auto function, typename Node, size_t... without_gradient>
struct WithAutograd;

template <typename Result, typename... Arguments, Result (*function)(Arguments...), typename Node,
          size_t... without_gradient>
struct WithAutograd<function, Node, without_gradient...> {
  static Result call(Arguments... arguments) {
    if (!any_tracked(std::index_sequence_for<Arguments...>(), arguments...))
      return call_below_autograd<function>(Node::name, arguments...);
    if constexpr (std::is_same_v<Result, Tensor>)
      return Node::apply(arguments...);
    else
      return results(std::make_index_sequence<std::tuple_size_v<Result>>(), Node::apply(arguments...));
  }

 private:
  template <size_t... place>
  static bool any_tracked(std::index_sequence<place...>, const Arguments&... arguments) {
    return ((has_gradient(place) && is_tracked(arguments)) || ...);
  }
  static constexpr bool has_gradient(size_t place) { return ((place != without_gradient) && ...); }

  template <size_t... place>
  static Result results(std::index_sequence<place...>, variable_list&& out) {
    return {std::move(out[place])...};
  }
};

// What the argument `keep` is where there is a graph.
constexpr bool kKeep = true;

inline bool wants_gradient(const OptionalTensor& x) { return x && x->requires_grad(); }
inline Tensor or_undefined(const OptionalTensor& x) { return x ? *x : Tensor(); }
inline OptionalTensor optional(const Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; }

}  // namespace ssl_fast
