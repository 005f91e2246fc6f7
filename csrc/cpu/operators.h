// The operators on the CPU. These declarations are also the signatures by which autograd calls the operators on any
// device. What the arguments mean: ../operators/schemas.cpp. Shapes: N and M rows, D numbers a row.
#pragma once
#include <optional>
#include <tuple>

#include <ATen/core/Tensor.h>

namespace ssl_fast::cpu {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Returns loss () or (2 N), stats (4) or (0), and sums.
std::tuple<Tensor, Tensor, Tensor> nt_xent(const Tensor& z1,  // (N, D)
                                           const Tensor& z2,  // (N, D)
                                           double scale_number,
                                           const OptionalTensor& scale_tensor,  // ()
                                           int64_t reduction, bool return_stats, bool keep);
// Returns the gradients of z1 (N, D), z2 (N, D) and the scale ().
std::tuple<Tensor, Tensor, Tensor> nt_xent_backward(const Tensor& gradient,  // () or (2 N)
                                                    const Tensor& z1,        // (N, D)
                                                    const Tensor& z2,        // (N, D)
                                                    double scale_number,
                                                    const OptionalTensor& scale_tensor,  // ()
                                                    int64_t reduction, const Tensor& sums);

// Returns loss () or (N), stats (4) or (0), sums (2, N), key_means (N, D) or (0, D).
std::tuple<Tensor, Tensor, Tensor, Tensor> info_nce(const Tensor& query,              // (N, D)
                                                    const Tensor& positive,           // (N, D)
                                                    const OptionalTensor& negatives,  // (M, D) or (N, M, D)
                                                    bool normalize_negatives, double scale_number,
                                                    const OptionalTensor& scale_tensor,  // ()
                                                    int64_t reduction, bool return_stats, bool query_gradient,
                                                    bool keep);
// Returns the gradients of query (N, D), positive (N, D), negatives in their shape or (0), and the scale ().
std::tuple<Tensor, Tensor, Tensor, Tensor> info_nce_backward(const Tensor& gradient,           // () or (N)
                                                             const Tensor& query,              // (N, D)
                                                             const Tensor& positive,           // (N, D)
                                                             const OptionalTensor& negatives,  // (M, D) or (N, M, D)
                                                             bool in_batch, bool normalize_negatives,
                                                             double scale_number,
                                                             const OptionalTensor& scale_tensor,  // ()
                                                             int64_t reduction,
                                                             const Tensor& sums,       // (2, N)
                                                             const Tensor& key_means,  // (N, D) or (0, D)
                                                             bool negatives_gradient);

// Returns lse (N) and column_lse (M) or (0), both float64; ranks (0, 1 or 2, N), int64; sums (2, N) or (2, N + M).
std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_lse(const Tensor& a,              // (N, D)
                                                          const OptionalTensor& b,      // (M, D)
                                                          const OptionalTensor& ids_a,  // (N), int64
                                                          const OptionalTensor& ids_b,  // (M), int64
                                                          int64_t mask, bool normalize_a, bool normalize_b,
                                                          bool columns, double scale_number,
                                                          const OptionalTensor& scale_tensor,  // ()
                                                          const OptionalTensor& positive,      // (N)
                                                          bool keep);
// Returns the gradients of a (N, D) and b (M, D), each (0) where it is not wanted, and the scale ().
std::tuple<Tensor, Tensor, Tensor> similarity_lse_backward(const Tensor& gradient,                 // (N)
                                                           const OptionalTensor& column_gradient,  // (M)
                                                           const Tensor& a,                        // (N, D)
                                                           const OptionalTensor& b,                // (M, D)
                                                           const OptionalTensor& ids_a,            // (N), int64
                                                           const OptionalTensor& ids_b,            // (M), int64
                                                           int64_t mask, bool normalize_a, bool normalize_b,
                                                           double scale_number,
                                                           const OptionalTensor& scale_tensor,  // ()
                                                           const Tensor& sums,                  // (2, N) or (2, N + M)
                                                           bool a_gradient, bool b_gradient);

// Returns the similarities (N).
Tensor pair_similarity(const Tensor& a,  // (N, D)
                       const Tensor& b,  // (N, D)
                       bool normalize_a, bool normalize_b);
// Returns the gradients of a and b (N, D).
std::tuple<Tensor, Tensor> pair_similarity_backward(const Tensor& gradient,  // (N)
                                                    const Tensor& a,         // (N, D)
                                                    const Tensor& b,         // (N, D)
                                                    bool normalize_a, bool normalize_b);

// Returns the similarities (N) and how many rows they are summed over (N), int64.
std::tuple<Tensor, Tensor> class_similarity(const Tensor& x,        // (N, D)
                                            const Tensor& labels);  // (N), int64
// Returns the gradient of x (N, D).
Tensor class_similarity_backward(const Tensor& gradient,  // (N)
                                 const Tensor& x,         // (N, D)
                                 const Tensor& labels);   // (N), int64

// Returns sums (2, N), ranks (0 or 2, N), int64, and kept.
std::tuple<Tensor, Tensor, Tensor> similarity_softplus(const Tensor& a,  // (N, D)
                                                       const Tensor& b,  // (N, D)
                                                       bool normalize, double scale_number,
                                                       const OptionalTensor& scale_tensor,  // ()
                                                       const Tensor& bias,                  // ()
                                                       const OptionalTensor& positive,      // (N)
                                                       bool keep);
// Returns the gradients of a and b (N, D), each (0) where it is not wanted, the scale () and the bias ().
std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_softplus_backward(const Tensor& gradient,  // (N)
                                                                        const Tensor& a,         // (N, D)
                                                                        const Tensor& b,         // (N, D)
                                                                        bool normalize, double scale_number,
                                                                        const OptionalTensor& scale_tensor,  // ()
                                                                        const Tensor& bias,                  // ()
                                                                        const Tensor& sums,                  // (2, N)
                                                                        const Tensor& kept, bool a_gradient,
                                                                        bool b_gradient);

// Returns the loss, () or (R N).
Tensor positive_loss(const Tensor& lse,              // (R N), float64
                     const Tensor& positive,         // (N) or (N, P)
                     const OptionalTensor& weights,  // (N)
                     bool in_denominator, bool mean_in_log, double scale_number,
                     const OptionalTensor& scale_tensor,  // ()
                     int64_t reduction);
// Returns the gradients of lse (R N), positive and the scale ().
std::tuple<Tensor, Tensor, Tensor> positive_loss_backward(const Tensor& gradient,         // () or (R N)
                                                          const Tensor& lse,              // (R N), float64
                                                          const Tensor& positive,         // (N) or (N, P)
                                                          const OptionalTensor& weights,  // (N)
                                                          bool in_denominator, bool mean_in_log, double scale_number,
                                                          const OptionalTensor& scale_tensor,  // ()
                                                          int64_t reduction);

void ema_update_(at::TensorList target,  // of any shapes
                 at::TensorList source,  // of the same shapes
                 double momentum,
                 const OptionalTensor& momentum_tensor,  // one float32 or float64
                 const OptionalTensor& seed);            // one int64
void enqueue_(const Tensor& queue,                       // (K, D)
              const Tensor& queue_ptr,                   // one int64
              const Tensor& keys,                        // (B, D)
              bool normalize);

}  // namespace ssl_fast::cpu
