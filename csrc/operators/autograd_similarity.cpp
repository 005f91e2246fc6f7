// Autograd of similarity_lse and of the other operators that losses are composed of. As in autograd_losses.cpp, only
// inputs and sums are saved, and a second backward is an error.
#include "autograd.h"

namespace {

using namespace ssl_fast;

using LseSignature = Four(const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, int64_t,
                          bool, bool, bool, double, const OptionalTensor&, const OptionalTensor&);
using LseBackwardSignature = Three(const Tensor&, const OptionalTensor&, const Tensor&, const OptionalTensor&,
                                   const OptionalTensor&, const OptionalTensor&, int64_t, bool, bool, double,
                                   const OptionalTensor&, const Tensor&, bool, bool);

Four call_lse(const Tensor& a, const OptionalTensor& b, const OptionalTensor& ids_a, const OptionalTensor& ids_b,
              int64_t mask, bool normalize_a, bool normalize_b, bool columns, double temperature,
              const OptionalTensor& temperature_tensor, const OptionalTensor& positive) {
  at::AutoDispatchBelowADInplaceOrView below;
  return find<LseSignature>("ssl_fast::similarity_lse")
      .call(a, b, ids_a, ids_b, mask, normalize_a, normalize_b, columns, temperature, temperature_tensor, positive);
}

struct SimilarityLse : torch::autograd::Function<SimilarityLse> {
  static variable_list forward(AutogradContext* ctx, const Tensor& a, const OptionalTensor& b,
                               const OptionalTensor& ids_a, const OptionalTensor& ids_b, int64_t mask, bool normalize_a,
                               bool normalize_b, bool columns, double temperature,
                               const OptionalTensor& temperature_tensor, const OptionalTensor& positive) {
    auto [lse, column_lse, ranks, sums] = call_lse(a, b, ids_a, ids_b, mask, normalize_a, normalize_b, columns,
                                                   temperature, temperature_tensor, positive);
    ctx->save_for_backward(
        {a, or_undefined(b), or_undefined(ids_a), or_undefined(ids_b), or_undefined(temperature_tensor), sums});
    ctx->saved_data["mask"] = mask;
    ctx->saved_data["normalize_a"] = normalize_a;
    ctx->saved_data["normalize_b"] = normalize_b;
    ctx->saved_data["columns"] = columns;
    ctx->saved_data["temperature"] = temperature;
    ctx->saved_data["a_gradient"] = a.requires_grad();
    ctx->saved_data["b_gradient"] = wants_gradient(b);
    ctx->mark_non_differentiable({ranks, sums});
    return {lse, column_lse, ranks, sums};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const OptionalTensor b = optional(saved[1]), temperature_tensor = optional(saved[4]);
    const bool columns = ctx->saved_data["columns"].toBool();
    const bool a_gradient = ctx->saved_data["a_gradient"].toBool(), b_gradient = ctx->saved_data["b_gradient"].toBool();
    auto [da, db, dtemperature] =
        find<LseBackwardSignature>("ssl_fast::similarity_lse_backward")
            .call(gradients[0], columns ? OptionalTensor(gradients[1]) : std::nullopt, saved[0], b, optional(saved[2]),
                  optional(saved[3]), ctx->saved_data["mask"].toInt(), ctx->saved_data["normalize_a"].toBool(),
                  ctx->saved_data["normalize_b"].toBool(), ctx->saved_data["temperature"].toDouble(),
                  temperature_tensor, saved[5], a_gradient, b_gradient);
    return {a_gradient ? da : Tensor(),
            b_gradient ? db : Tensor(),
            {},
            {},
            {},
            {},
            {},
            {},
            {},
            temperature_tensor ? dtemperature : Tensor(),
            {}};
  }
};

Four similarity_lse(const Tensor& a, const OptionalTensor& b, const OptionalTensor& ids_a, const OptionalTensor& ids_b,
                    int64_t mask, bool normalize_a, bool normalize_b, bool columns, double temperature,
                    const OptionalTensor& temperature_tensor, const OptionalTensor& positive) {
  if (!tracked(a) && !tracked(b) && !tracked(temperature_tensor))
    return call_lse(a, b, ids_a, ids_b, mask, normalize_a, normalize_b, columns, temperature, temperature_tensor,
                    positive);
  const variable_list out = SimilarityLse::apply(a, b, ids_a, ids_b, mask, normalize_a, normalize_b, columns,
                                                 temperature, temperature_tensor, positive);
  return {out[0], out[1], out[2], out[3]};
}

using PairSignature = Tensor(const Tensor&, const Tensor&, bool, bool);
using PairBackwardSignature = Two(const Tensor&, const Tensor&, const Tensor&, bool, bool);

Tensor call_pair(const Tensor& a, const Tensor& b, bool normalize_a, bool normalize_b) {
  at::AutoDispatchBelowADInplaceOrView below;
  return find<PairSignature>("ssl_fast::pair_similarity").call(a, b, normalize_a, normalize_b);
}

struct PairSimilarity : torch::autograd::Function<PairSimilarity> {
  static Tensor forward(AutogradContext* ctx, const Tensor& a, const Tensor& b, bool normalize_a, bool normalize_b) {
    ctx->save_for_backward({a, b});
    ctx->saved_data["normalize_a"] = normalize_a;
    ctx->saved_data["normalize_b"] = normalize_b;
    ctx->saved_data["a_gradient"] = a.requires_grad();
    ctx->saved_data["b_gradient"] = b.requires_grad();
    return call_pair(a, b, normalize_a, normalize_b);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    auto [da, db] = find<PairBackwardSignature>("ssl_fast::pair_similarity_backward")
                        .call(gradients[0], saved[0], saved[1], ctx->saved_data["normalize_a"].toBool(),
                              ctx->saved_data["normalize_b"].toBool());
    return {ctx->saved_data["a_gradient"].toBool() ? da : Tensor(),
            ctx->saved_data["b_gradient"].toBool() ? db : Tensor(),
            {},
            {}};
  }
};

Tensor pair_similarity(const Tensor& a, const Tensor& b, bool normalize_a, bool normalize_b) {
  if (!tracked(a) && !tracked(b)) return call_pair(a, b, normalize_a, normalize_b);
  return PairSimilarity::apply(a, b, normalize_a, normalize_b);
}

using ClassSignature = Two(const Tensor&, const Tensor&);
using ClassBackwardSignature = Tensor(const Tensor&, const Tensor&, const Tensor&);

Two call_class(const Tensor& x, const Tensor& labels) {
  at::AutoDispatchBelowADInplaceOrView below;
  return find<ClassSignature>("ssl_fast::class_similarity").call(x, labels);
}

struct ClassSimilarity : torch::autograd::Function<ClassSimilarity> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& labels) {
    auto [similarities, positives] = call_class(x, labels);
    ctx->save_for_backward({x, labels});
    ctx->mark_non_differentiable({positives});
    return {similarities, positives};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    return {find<ClassBackwardSignature>("ssl_fast::class_similarity_backward").call(gradients[0], saved[0], saved[1]),
            {}};
  }
};

Two class_similarity(const Tensor& x, const Tensor& labels) {
  if (!tracked(x)) return call_class(x, labels);
  const variable_list out = ClassSimilarity::apply(x, labels);
  return {out[0], out[1]};
}

using SoftplusSignature = Two(const Tensor&, const Tensor&, bool, double, const OptionalTensor&, const Tensor&,
                              const OptionalTensor&);
using SoftplusBackwardSignature = Four(const Tensor&, const Tensor&, const Tensor&, bool, double, const OptionalTensor&,
                                       const Tensor&, const Tensor&, bool, bool);

Two call_softplus(const Tensor& a, const Tensor& b, bool normalize, double temperature,
                  const OptionalTensor& temperature_tensor, const Tensor& bias, const OptionalTensor& positive) {
  at::AutoDispatchBelowADInplaceOrView below;
  return find<SoftplusSignature>("ssl_fast::similarity_softplus")
      .call(a, b, normalize, temperature, temperature_tensor, bias, positive);
}

struct SimilaritySoftplus : torch::autograd::Function<SimilaritySoftplus> {
  static variable_list forward(AutogradContext* ctx, const Tensor& a, const Tensor& b, bool normalize,
                               double temperature, const OptionalTensor& temperature_tensor, const Tensor& bias,
                               const OptionalTensor& positive) {
    auto [sums, ranks] = call_softplus(a, b, normalize, temperature, temperature_tensor, bias, positive);
    ctx->save_for_backward({a, b, or_undefined(temperature_tensor), bias, sums});
    ctx->saved_data["normalize"] = normalize;
    ctx->saved_data["temperature"] = temperature;
    ctx->saved_data["a_gradient"] = a.requires_grad();
    ctx->saved_data["b_gradient"] = b.requires_grad();
    ctx->saved_data["bias_gradient"] = bias.requires_grad();
    ctx->mark_non_differentiable({ranks});
    return {sums, ranks};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const OptionalTensor temperature_tensor = optional(saved[2]);
    const bool a_gradient = ctx->saved_data["a_gradient"].toBool(), b_gradient = ctx->saved_data["b_gradient"].toBool();
    // The sigmoid's sums are for this function alone: their gradient is not looked at.
    auto [da, db, dtemperature, dbias] =
        find<SoftplusBackwardSignature>("ssl_fast::similarity_softplus_backward")
            .call(gradients[0].select(0, 0), saved[0], saved[1], ctx->saved_data["normalize"].toBool(),
                  ctx->saved_data["temperature"].toDouble(), temperature_tensor, saved[3], saved[4], a_gradient,
                  b_gradient);
    return {a_gradient ? da : Tensor(),
            b_gradient ? db : Tensor(),
            {},
            {},
            temperature_tensor ? dtemperature : Tensor(),
            ctx->saved_data["bias_gradient"].toBool() ? dbias : Tensor(),
            {}};
  }
};

Two similarity_softplus(const Tensor& a, const Tensor& b, bool normalize, double temperature,
                        const OptionalTensor& temperature_tensor, const Tensor& bias, const OptionalTensor& positive) {
  if (!tracked(a) && !tracked(b) && !tracked(temperature_tensor) && !tracked(bias))
    return call_softplus(a, b, normalize, temperature, temperature_tensor, bias, positive);
  const variable_list out = SimilaritySoftplus::apply(a, b, normalize, temperature, temperature_tensor, bias, positive);
  return {out[0], out[1]};
}

using PositiveSignature = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, bool, double,
                                 const OptionalTensor&, int64_t);
using PositiveBackwardSignature = Three(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&, bool,
                                        double, const OptionalTensor&, int64_t);

Tensor call_positive(const Tensor& lse, const Tensor& positive, const OptionalTensor& weights, bool in_denominator,
                     double temperature, const OptionalTensor& temperature_tensor, int64_t reduction) {
  at::AutoDispatchBelowADInplaceOrView below;
  return find<PositiveSignature>("ssl_fast::positive_loss")
      .call(lse, positive, weights, in_denominator, temperature, temperature_tensor, reduction);
}

struct PositiveLoss : torch::autograd::Function<PositiveLoss> {
  static Tensor forward(AutogradContext* ctx, const Tensor& lse, const Tensor& positive, const OptionalTensor& weights,
                        bool in_denominator, double temperature, const OptionalTensor& temperature_tensor,
                        int64_t reduction) {
    ctx->save_for_backward({lse, positive, or_undefined(weights), or_undefined(temperature_tensor)});
    ctx->saved_data["in_denominator"] = in_denominator;
    ctx->saved_data["temperature"] = temperature;
    ctx->saved_data["reduction"] = reduction;
    return call_positive(lse, positive, weights, in_denominator, temperature, temperature_tensor, reduction);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const auto saved = ctx->get_saved_variables();
    const OptionalTensor temperature_tensor = optional(saved[3]);
    auto [dlse, dpositive, dtemperature] =
        find<PositiveBackwardSignature>("ssl_fast::positive_loss_backward")
            .call(gradients[0], saved[0], saved[1], optional(saved[2]), ctx->saved_data["in_denominator"].toBool(),
                  ctx->saved_data["temperature"].toDouble(), temperature_tensor, ctx->saved_data["reduction"].toInt());
    return {dlse, dpositive, {}, {}, {}, temperature_tensor ? dtemperature : Tensor(), {}};
  }
};

Tensor positive_loss(const Tensor& lse, const Tensor& positive, const OptionalTensor& weights, bool in_denominator,
                     double temperature, const OptionalTensor& temperature_tensor, int64_t reduction) {
  if (!tracked(lse) && !tracked(positive) && !tracked(temperature_tensor))
    return call_positive(lse, positive, weights, in_denominator, temperature, temperature_tensor, reduction);
  return PositiveLoss::apply(lse, positive, weights, in_denominator, temperature, temperature_tensor, reduction);
}

}  // namespace

TORCH_LIBRARY_IMPL(ssl_fast, Autograd, m) {
  m.impl("similarity_lse", &similarity_lse);
  m.impl("pair_similarity", &pair_similarity);
  m.impl("class_similarity", &class_similarity);
  m.impl("similarity_softplus", &similarity_softplus);
  m.impl("positive_loss", &positive_loss);
  for (const char* backward : {"similarity_lse_backward", "pair_similarity_backward", "class_similarity_backward",
                               "similarity_softplus_backward", "positive_loss_backward"})
    m.impl(backward, torch::autograd::autogradNotImplementedFallback());
}
