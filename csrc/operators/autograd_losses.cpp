// Autograd of the losses, in C++ because at small N the call is the cost. Only inputs and the sums
// of the denominators are saved; the similarities are computed again in the backward pass.
// A second backward is an error that says so, never a silent zero.
#include "autograd.h"

namespace {

using namespace ssl_fast;

using NtXentSignature = Three(const Tensor&, const Tensor&, double, const OptionalTensor&, int64_t, bool);
using NtXentBackwardSignature = Three(const Tensor&, const Tensor&, const Tensor&, double, const OptionalTensor&,
                                      int64_t, const Tensor&);
using InfoNceSignature = Four(const Tensor&, const Tensor&, const OptionalTensor&, bool, double, const OptionalTensor&,
                              int64_t, bool, bool);
using InfoNceBackwardSignature = Four(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, bool, bool,
                                      double, const OptionalTensor&, int64_t, const Tensor&, const Tensor&, bool);

Three call_nt_xent(const Tensor& z1, const Tensor& z2, double temperature, const OptionalTensor& temperature_tensor,
                   int64_t reduction, bool return_stats) {
  at::AutoDispatchBelowADInplaceOrView below;
  return find<NtXentSignature>("ssl_fast::nt_xent")
      .call(z1, z2, temperature, temperature_tensor, reduction, return_stats);
}

struct NtXent : torch::autograd::Function<NtXent> {
  static variable_list forward(AutogradContext* ctx, const Tensor& z1, const Tensor& z2, double temperature,
                               const OptionalTensor& temperature_tensor, int64_t reduction, bool return_stats) {
    auto [loss, stats, sums] = call_nt_xent(z1, z2, temperature, temperature_tensor, reduction, return_stats);
    ctx->save_for_backward({z1, z2, or_undefined(temperature_tensor), sums});
    ctx->saved_data["temperature"] = temperature;
    ctx->saved_data["reduction"] = reduction;
    ctx->mark_non_differentiable({stats, sums});
    return {loss, stats, sums};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const OptionalTensor temperature_tensor = optional(saved[2]);
    auto [dz1, dz2, dtemperature] =
        find<NtXentBackwardSignature>("ssl_fast::nt_xent_backward")
            .call(gradients[0], saved[0], saved[1], ctx->saved_data["temperature"].toDouble(), temperature_tensor,
                  ctx->saved_data["reduction"].toInt(), saved[3]);
    return {dz1, dz2, {}, temperature_tensor ? dtemperature : Tensor(), {}, {}};
  }
};

Three nt_xent(const Tensor& z1, const Tensor& z2, double temperature, const OptionalTensor& temperature_tensor,
              int64_t reduction, bool return_stats) {
  if (!tracked(z1) && !tracked(z2) && !tracked(temperature_tensor))
    return call_nt_xent(z1, z2, temperature, temperature_tensor, reduction, return_stats);
  const variable_list out = NtXent::apply(z1, z2, temperature, temperature_tensor, reduction, return_stats);
  return {out[0], out[1], out[2]};
}

Four call_info_nce(const Tensor& query, const Tensor& positive, const OptionalTensor& negatives,
                   bool normalize_negatives, double temperature, const OptionalTensor& temperature_tensor,
                   int64_t reduction, bool return_stats, bool query_gradient) {
  at::AutoDispatchBelowADInplaceOrView below;
  return find<InfoNceSignature>("ssl_fast::info_nce")
      .call(query, positive, negatives, normalize_negatives, temperature, temperature_tensor, reduction, return_stats,
            query_gradient);
}

struct InfoNce : torch::autograd::Function<InfoNce> {
  static variable_list forward(AutogradContext* ctx, const Tensor& query, const Tensor& positive,
                               const OptionalTensor& negatives, bool normalize_negatives, double temperature,
                               const OptionalTensor& temperature_tensor, int64_t reduction, bool return_stats) {
    const bool query_gradient = query.requires_grad() || wants_gradient(temperature_tensor);
    auto [loss, stats, sums, key_means] = call_info_nce(query, positive, negatives, normalize_negatives, temperature,
                                                        temperature_tensor, reduction, return_stats, query_gradient);
    // A queue that needs no gradient is not kept: MoCo writes to it before the backward pass.
    const bool negatives_gradient = negatives ? negatives->requires_grad() : positive.requires_grad();
    const Tensor kept = negatives_gradient ? or_undefined(negatives) : Tensor();
    ctx->save_for_backward({query, positive, kept, or_undefined(temperature_tensor), sums, key_means});
    ctx->saved_data["in_batch"] = !negatives;
    ctx->saved_data["normalize_negatives"] = normalize_negatives;
    ctx->saved_data["temperature"] = temperature;
    ctx->saved_data["reduction"] = reduction;
    ctx->saved_data["negatives_gradient"] = negatives_gradient;
    ctx->mark_non_differentiable({stats, sums, key_means});
    return {loss, stats, sums, key_means};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const OptionalTensor negatives = optional(saved[2]), temperature_tensor = optional(saved[3]);
    const bool negatives_gradient = ctx->saved_data["negatives_gradient"].toBool();
    auto [dq, dk, dn, dtemperature] =
        find<InfoNceBackwardSignature>("ssl_fast::info_nce_backward")
            .call(gradients[0], saved[0], saved[1], negatives, ctx->saved_data["in_batch"].toBool(),
                  ctx->saved_data["normalize_negatives"].toBool(), ctx->saved_data["temperature"].toDouble(),
                  temperature_tensor, ctx->saved_data["reduction"].toInt(), saved[4], saved[5], negatives_gradient);
    return {dq, dk, negatives ? dn : Tensor(), {}, {}, temperature_tensor ? dtemperature : Tensor(), {}, {}};
  }
};

Four info_nce(const Tensor& query, const Tensor& positive, const OptionalTensor& negatives, bool normalize_negatives,
              double temperature, const OptionalTensor& temperature_tensor, int64_t reduction, bool return_stats,
              bool query_gradient) {
  if (!tracked(query) && !tracked(positive) && !tracked(negatives) && !tracked(temperature_tensor))
    return call_info_nce(query, positive, negatives, normalize_negatives, temperature, temperature_tensor, reduction,
                         return_stats, query_gradient);
  const variable_list out = InfoNce::apply(query, positive, negatives, normalize_negatives, temperature,
                                           temperature_tensor, reduction, return_stats);
  return {out[0], out[1], out[2], out[3]};
}

}  // namespace

TORCH_LIBRARY_IMPL(ssl_fast, Autograd, m) {
  m.impl("nt_xent", &nt_xent);
  m.impl("info_nce", &info_nce);
  m.impl("nt_xent_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("info_nce_backward", torch::autograd::autogradNotImplementedFallback());
}
