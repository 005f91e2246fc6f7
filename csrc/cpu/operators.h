// The operators on the CPU. Schemas and what the arguments mean: ../operators/schemas.cpp.
#pragma once
#include <optional>
#include <tuple>

#include <ATen/core/Tensor.h>

namespace ssl_fast::cpu {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

std::tuple<Tensor, Tensor, Tensor> nt_xent(const Tensor& z1, const Tensor& z2, double temperature,
                                           const OptionalTensor& temperature_tensor, int64_t reduction,
                                           bool return_stats);
std::tuple<Tensor, Tensor, Tensor> nt_xent_backward(const Tensor& gradient, const Tensor& z1, const Tensor& z2,
                                                    double temperature, const OptionalTensor& temperature_tensor,
                                                    int64_t reduction, const Tensor& sums);

std::tuple<Tensor, Tensor, Tensor, Tensor> info_nce(const Tensor& query, const Tensor& positive,
                                                    const OptionalTensor& negatives, bool normalize_negatives,
                                                    double temperature, const OptionalTensor& temperature_tensor,
                                                    int64_t reduction, bool return_stats, bool query_gradient);
std::tuple<Tensor, Tensor, Tensor, Tensor> info_nce_backward(
    const Tensor& gradient, const Tensor& query, const Tensor& positive, const OptionalTensor& negatives, bool in_batch,
    bool normalize_negatives, double temperature, const OptionalTensor& temperature_tensor, int64_t reduction,
    const Tensor& sums, const Tensor& key_means, bool negatives_gradient);

std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_lse(const Tensor& a, const OptionalTensor& b,
                                                          const OptionalTensor& ids_a, const OptionalTensor& ids_b,
                                                          int64_t mask, bool normalize_a, bool normalize_b,
                                                          bool columns, double temperature,
                                                          const OptionalTensor& temperature_tensor,
                                                          const OptionalTensor& positive);
std::tuple<Tensor, Tensor, Tensor> similarity_lse_backward(
    const Tensor& gradient, const OptionalTensor& column_gradient, const Tensor& a, const OptionalTensor& b,
    const OptionalTensor& ids_a, const OptionalTensor& ids_b, int64_t mask, bool normalize_a, bool normalize_b,
    double temperature, const OptionalTensor& temperature_tensor, const Tensor& sums, bool a_gradient, bool b_gradient);

Tensor pair_similarity(const Tensor& a, const Tensor& b, bool normalize_a, bool normalize_b);
std::tuple<Tensor, Tensor> pair_similarity_backward(const Tensor& gradient, const Tensor& a, const Tensor& b,
                                                    bool normalize_a, bool normalize_b);

std::tuple<Tensor, Tensor> class_similarity(const Tensor& x, const Tensor& labels);
Tensor class_similarity_backward(const Tensor& gradient, const Tensor& x, const Tensor& labels);

std::tuple<Tensor, Tensor> similarity_softplus(const Tensor& a, const Tensor& b, bool normalize, double temperature,
                                               const OptionalTensor& temperature_tensor, const Tensor& bias,
                                               const OptionalTensor& positive);
std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_softplus_backward(
    const Tensor& gradient, const Tensor& a, const Tensor& b, bool normalize, double temperature,
    const OptionalTensor& temperature_tensor, const Tensor& bias, const Tensor& sums, bool a_gradient, bool b_gradient);

Tensor positive_loss(const Tensor& lse, const Tensor& positive, const OptionalTensor& weights, bool in_denominator,
                     double temperature, const OptionalTensor& temperature_tensor, int64_t reduction);
std::tuple<Tensor, Tensor, Tensor> positive_loss_backward(const Tensor& gradient, const Tensor& lse,
                                                          const Tensor& positive, const OptionalTensor& weights,
                                                          bool in_denominator, double temperature,
                                                          const OptionalTensor& temperature_tensor, int64_t reduction);

void ema_update_(at::TensorList target, at::TensorList source, double momentum, const OptionalTensor& momentum_tensor,
                 const OptionalTensor& seed);
void enqueue_(const Tensor& queue, const Tensor& queue_ptr, const Tensor& keys, bool normalize);

}  // namespace ssl_fast::cpu
