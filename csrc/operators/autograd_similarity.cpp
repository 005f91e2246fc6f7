// Autograd of similarity_lse and of the other operators that losses are composed of. What is saved is as in
// autograd_losses.cpp, and a second backward is an error.
#include "autograd.h"

namespace {

using namespace ssl_fast;

struct SimilarityLse : torch::autograd::Function<SimilarityLse> {
  static constexpr const char* name = "ssl_fast::similarity_lse";
  static constexpr size_t kPositive = 10;  // place of the argument: it is counted with, and gets no gradient

  static variable_list forward(AutogradContext* ctx, const Tensor& a, const OptionalTensor& b,
                               const OptionalTensor& ids_a, const OptionalTensor& ids_b, int64_t mask, bool normalize_a,
                               bool normalize_b, bool columns, double scale_number, const OptionalTensor& scale_tensor,
                               const OptionalTensor& positive, bool) {
    auto [lse, column_lse, ranks, sums] = call_below_autograd<cpu::similarity_lse>(
        name, a, b, ids_a, ids_b, mask, normalize_a, normalize_b, columns, scale_number, scale_tensor, positive, kKeep);
    ctx->save_for_backward(
        {a, or_undefined(b), or_undefined(ids_a), or_undefined(ids_b), or_undefined(scale_tensor), sums});
    ctx->saved_data["mask"] = mask;
    ctx->saved_data["normalize_a"] = normalize_a;
    ctx->saved_data["normalize_b"] = normalize_b;
    ctx->saved_data["columns"] = columns;
    ctx->saved_data["scale"] = scale_number;
    ctx->saved_data["a_gradient"] = a.requires_grad();
    ctx->saved_data["b_gradient"] = wants_gradient(b);
    ctx->mark_non_differentiable({ranks, sums});
    return {lse, column_lse, ranks, sums};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const OptionalTensor b = optional(saved[1]), scale_tensor = optional(saved[4]);
    const bool columns = ctx->saved_data["columns"].toBool();
    const bool a_gradient = ctx->saved_data["a_gradient"].toBool(), b_gradient = ctx->saved_data["b_gradient"].toBool();
    auto [da, db, dscale] =
        find<cpu::similarity_lse_backward>("ssl_fast::similarity_lse_backward")
            .call(gradients[0], columns ? OptionalTensor(gradients[1]) : std::nullopt, saved[0], b, optional(saved[2]),
                  optional(saved[3]), ctx->saved_data["mask"].toInt(), ctx->saved_data["normalize_a"].toBool(),
                  ctx->saved_data["normalize_b"].toBool(), ctx->saved_data["scale"].toDouble(), scale_tensor, saved[5],
                  a_gradient, b_gradient);
    return {a_gradient ? da : Tensor(),
            b_gradient ? db : Tensor(),
            {},
            {},
            {},
            {},
            {},
            {},
            {},
            scale_tensor ? dscale : Tensor(),
            {},
            {}};
  }
};

struct PairSimilarity : torch::autograd::Function<PairSimilarity> {
  static constexpr const char* name = "ssl_fast::pair_similarity";

  static Tensor forward(AutogradContext* ctx, const Tensor& a, const Tensor& b, bool normalize_a, bool normalize_b) {
    ctx->save_for_backward({a, b});
    ctx->saved_data["normalize_a"] = normalize_a;
    ctx->saved_data["normalize_b"] = normalize_b;
    ctx->saved_data["a_gradient"] = a.requires_grad();
    ctx->saved_data["b_gradient"] = b.requires_grad();
    return call_below_autograd<cpu::pair_similarity>(name, a, b, normalize_a, normalize_b);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    auto [da, db] = find<cpu::pair_similarity_backward>("ssl_fast::pair_similarity_backward")
                        .call(gradients[0], saved[0], saved[1], ctx->saved_data["normalize_a"].toBool(),
                              ctx->saved_data["normalize_b"].toBool());
    return {ctx->saved_data["a_gradient"].toBool() ? da : Tensor(),
            ctx->saved_data["b_gradient"].toBool() ? db : Tensor(),
            {},
            {}};
  }
};

struct ClassSimilarity : torch::autograd::Function<ClassSimilarity> {
  static constexpr const char* name = "ssl_fast::class_similarity";

  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& labels) {
    auto [similarities, positives] = call_below_autograd<cpu::class_similarity>(name, x, labels);
    ctx->save_for_backward({x, labels});
    ctx->mark_non_differentiable({positives});
    return {similarities, positives};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    return {find<cpu::class_similarity_backward>("ssl_fast::class_similarity_backward")
                .call(gradients[0], saved[0], saved[1]),
            {}};
  }
};

struct SimilaritySoftplus : torch::autograd::Function<SimilaritySoftplus> {
  static constexpr const char* name = "ssl_fast::similarity_softplus";
  static constexpr size_t kPositive = 6;  // place of the argument: it is counted with, and gets no gradient

  static variable_list forward(AutogradContext* ctx, const Tensor& a, const Tensor& b, bool normalize,
                               double scale_number, const OptionalTensor& scale_tensor, const Tensor& bias,
                               const OptionalTensor& positive, bool) {
    auto [sums, ranks, kept] = call_below_autograd<cpu::similarity_softplus>(name, a, b, normalize, scale_number,
                                                                             scale_tensor, bias, positive, kKeep);
    ctx->save_for_backward({a, b, or_undefined(scale_tensor), bias, sums, kept});
    ctx->saved_data["normalize"] = normalize;
    ctx->saved_data["scale"] = scale_number;
    ctx->saved_data["a_gradient"] = a.requires_grad();
    ctx->saved_data["b_gradient"] = b.requires_grad();
    ctx->saved_data["bias_gradient"] = bias.requires_grad();
    ctx->mark_non_differentiable({ranks, kept});
    return {sums, ranks, kept};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const OptionalTensor scale_tensor = optional(saved[2]);
    const bool a_gradient = ctx->saved_data["a_gradient"].toBool(), b_gradient = ctx->saved_data["b_gradient"].toBool();
    // The sigmoid's sums are for this function alone: their gradient is not looked at.
    auto [da, db, dscale, dbias] = find<cpu::similarity_softplus_backward>("ssl_fast::similarity_softplus_backward")
                                       .call(gradients[0].select(0, 0), saved[0], saved[1],
                                             ctx->saved_data["normalize"].toBool(), ctx->saved_data["scale"].toDouble(),
                                             scale_tensor, saved[3], saved[4], saved[5], a_gradient, b_gradient);
    return {a_gradient ? da : Tensor(),
            b_gradient ? db : Tensor(),
            {},
            {},
            scale_tensor ? dscale : Tensor(),
            ctx->saved_data["bias_gradient"].toBool() ? dbias : Tensor(),
            {},
            {}};
  }
};

struct PositiveLoss : torch::autograd::Function<PositiveLoss> {
  static constexpr const char* name = "ssl_fast::positive_loss";
  static constexpr size_t kWeights = 2;  // place of the argument, which gets no gradient

  static Tensor forward(AutogradContext* ctx, const Tensor& lse, const Tensor& positive, const OptionalTensor& weights,
                        bool in_denominator, bool mean_in_log, double scale_number, const OptionalTensor& scale_tensor,
                        int64_t reduction) {
    ctx->save_for_backward({lse, positive, or_undefined(weights), or_undefined(scale_tensor)});
    ctx->saved_data["in_denominator"] = in_denominator;
    ctx->saved_data["mean_in_log"] = mean_in_log;
    ctx->saved_data["scale"] = scale_number;
    ctx->saved_data["reduction"] = reduction;
    return call_below_autograd<cpu::positive_loss>(name, lse, positive, weights, in_denominator, mean_in_log,
                                                   scale_number, scale_tensor, reduction);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const OptionalTensor scale_tensor = optional(saved[3]);
    auto [dlse, dpositive, dscale] =
        find<cpu::positive_loss_backward>("ssl_fast::positive_loss_backward")
            .call(gradients[0], saved[0], saved[1], optional(saved[2]), ctx->saved_data["in_denominator"].toBool(),
                  ctx->saved_data["mean_in_log"].toBool(), ctx->saved_data["scale"].toDouble(), scale_tensor,
                  ctx->saved_data["reduction"].toInt());
    return {dlse, dpositive, {}, {}, {}, {}, scale_tensor ? dscale : Tensor(), {}};
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(ssl_fast, Autograd, m) {
  m.impl("similarity_lse", &WithAutograd<cpu::similarity_lse, SimilarityLse, SimilarityLse::kPositive>::call);
  m.impl("pair_similarity", &WithAutograd<cpu::pair_similarity, PairSimilarity>::call);
  m.impl("class_similarity", &WithAutograd<cpu::class_similarity, ClassSimilarity>::call);
  m.impl("similarity_softplus",
         &WithAutograd<cpu::similarity_softplus, SimilaritySoftplus, SimilaritySoftplus::kPositive>::call);
  m.impl("positive_loss", &WithAutograd<cpu::positive_loss, PositiveLoss, PositiveLoss::kWeights>::call);
  for (const char* backward : {"similarity_lse_backward", "pair_similarity_backward", "class_similarity_backward",
                               "similarity_softplus_backward", "positive_loss_backward"})
    m.impl(backward, torch::autograd::autogradNotImplementedFallback());
}
