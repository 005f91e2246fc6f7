// The losses on the CPU. Schemas and what the arguments mean: ../ops.cpp.
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
    const Tensor& gradient, const Tensor& query, const Tensor& positive, const OptionalTensor& negatives,
    bool in_batch, bool normalize_negatives, double temperature, const OptionalTensor& temperature_tensor,
    int64_t reduction, const Tensor& sums, const Tensor& key_means, bool negatives_gradient);

void ema_update_(at::TensorList target, at::TensorList source, double momentum);
void enqueue_(const Tensor& queue, const Tensor& queue_ptr, const Tensor& keys, bool normalize);

}  // namespace ssl_fast::cpu
