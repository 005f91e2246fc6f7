// Autograd of the losses that have operators of their own, in C++ because at small N the call is the cost. Inputs and
// O(N) sums are saved, for InfoNCE the softmax's mean of the keys (N, D), and on the CPU the pairs where they are few:
// beyond a budget they are computed again in the backward pass, so that memory stays O(N D). A second backward pass is
// an error that says so, never a silent zero.
#include "autograd.h"

namespace {

using namespace ssl_fast;

struct NtXent : torch::autograd::Function<NtXent> {
  static constexpr const char* name = "ssl_fast::nt_xent";

  static variable_list forward(AutogradContext* ctx, const Tensor& z1, const Tensor& z2, double scale_number,
                               const OptionalTensor& scale_tensor, int64_t reduction, bool return_stats, bool) {
    auto [loss, stats, sums] =
        call_below_autograd<cpu::nt_xent>(name, z1, z2, scale_number, scale_tensor, reduction, return_stats, kKeep);
    ctx->save_for_backward({z1, z2, or_undefined(scale_tensor), sums});
    ctx->saved_data["scale"] = scale_number;
    ctx->saved_data["reduction"] = reduction;
    ctx->mark_non_differentiable({stats, sums});
    return {loss, stats, sums};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const OptionalTensor scale_tensor = optional(saved[2]);
    auto [dz1, dz2, dscale] = find<cpu::nt_xent_backward>("ssl_fast::nt_xent_backward")
                                  .call(gradients[0], saved[0], saved[1], ctx->saved_data["scale"].toDouble(),
                                        scale_tensor, ctx->saved_data["reduction"].toInt(), saved[3]);
    return {dz1, dz2, {}, scale_tensor ? dscale : Tensor(), {}, {}, {}};
  }
};

struct InfoNce : torch::autograd::Function<InfoNce> {
  static constexpr const char* name = "ssl_fast::info_nce";

  // The last arguments, query_gradient and keep, are for calls without a graph: here they follow from that there is
  // one.
  static variable_list forward(AutogradContext* ctx, const Tensor& query, const Tensor& positive,
                               const OptionalTensor& negatives, bool normalize_negatives, double scale_number,
                               const OptionalTensor& scale_tensor, int64_t reduction, bool return_stats, bool, bool) {
    const bool query_gradient = query.requires_grad() || wants_gradient(scale_tensor);
    const bool negatives_gradient = negatives ? negatives->requires_grad() : positive.requires_grad();
    // The gradient of the query is made of key_means: pairs are kept for that of the negatives.
    auto [loss, stats, sums, key_means] = call_below_autograd<cpu::info_nce>(
        name, query, positive, negatives, normalize_negatives, scale_number, scale_tensor, reduction, return_stats,
        query_gradient, /*keep=*/negatives_gradient);
    // A queue that needs no gradient is not saved: MoCo writes to it before the backward pass.
    const Tensor saved_negatives = negatives_gradient ? or_undefined(negatives) : Tensor();
    ctx->save_for_backward({query, positive, saved_negatives, or_undefined(scale_tensor), sums, key_means});
    ctx->saved_data["in_batch"] = !negatives;
    ctx->saved_data["normalize_negatives"] = normalize_negatives;
    ctx->saved_data["scale"] = scale_number;
    ctx->saved_data["reduction"] = reduction;
    ctx->saved_data["negatives_gradient"] = negatives_gradient;
    ctx->mark_non_differentiable({stats, sums, key_means});
    return {loss, stats, sums, key_means};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const OptionalTensor negatives = optional(saved[2]), scale_tensor = optional(saved[3]);
    auto [dquery, dpositive, dnegatives, dscale] =
        find<cpu::info_nce_backward>("ssl_fast::info_nce_backward")
            .call(gradients[0], saved[0], saved[1], negatives, ctx->saved_data["in_batch"].toBool(),
                  ctx->saved_data["normalize_negatives"].toBool(), ctx->saved_data["scale"].toDouble(), scale_tensor,
                  ctx->saved_data["reduction"].toInt(), saved[4], saved[5],
                  ctx->saved_data["negatives_gradient"].toBool());
    return {dquery, dpositive, negatives ? dnegatives : Tensor(), {}, {}, scale_tensor ? dscale : Tensor(), {}, {},
            {},     {}};
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(ssl_fast, Autograd, m) {
  m.impl("nt_xent", &WithAutograd<cpu::nt_xent, NtXent>::call);
  m.impl("info_nce", &WithAutograd<cpu::info_nce, InfoNce>::call);
  m.impl("nt_xent_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("info_nce_backward", torch::autograd::autogradNotImplementedFallback());
}
