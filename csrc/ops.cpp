// Every operator of the package: its schema, and the CPU kernels. Those for GPUs are in kernels/ (Triton),
// fake kernels (shapes without data) in ssl_fast/native.py, autograd in autograd.cpp.
//
// temperature: used unless temperature_tensor (0-D) is given. reduction: 0 none, 1 mean, 2 sum.
// stats (4) = top1, top5, mean positive and mean negative similarity; empty unless asked for.
// sums: what the backward pass needs of the denominators; its meaning belongs to the backend.
#include <torch/library.h>

#include "cpu/losses.h"

TORCH_LIBRARY(ssl_fast, m) {
  m.def(
      "nt_xent(Tensor z1, Tensor z2, float temperature, Tensor? temperature_tensor, int reduction, bool return_stats)"
      " -> (Tensor loss, Tensor stats, Tensor sums)");
  m.def(
      "nt_xent_backward(Tensor gradient, Tensor z1, Tensor z2, float temperature, Tensor? temperature_tensor,"
      " int reduction, Tensor sums) -> (Tensor z1, Tensor z2, Tensor temperature)");

  // negatives: none (the other positives), (M, D) shared or (N, M, D) paired. query_gradient: also
  // return key_means (N, D), the softmax mean of the keys, which the gradients of query and
  // temperature need; autograd sets it.
  m.def(
      "info_nce(Tensor query, Tensor positive, Tensor? negatives, bool normalize_negatives, float temperature,"
      " Tensor? temperature_tensor, int reduction, bool return_stats, bool query_gradient=False)"
      " -> (Tensor loss, Tensor stats, Tensor sums, Tensor key_means)");
  // negatives: given only for their gradient, never a queue. negatives_gradient: of those, or in batch
  // of the positives, at two products more; without it that output holds zeros or nothing.
  m.def(
      "info_nce_backward(Tensor gradient, Tensor query, Tensor positive, Tensor? negatives, bool in_batch,"
      " bool normalize_negatives, float temperature, Tensor? temperature_tensor, int reduction, Tensor sums,"
      " Tensor key_means, bool negatives_gradient)"
      " -> (Tensor query, Tensor positive, Tensor negatives, Tensor temperature)");

  // target = momentum * target + (1 - momentum) * source; integers are copied.
  m.def("ema_update_(Tensor(a!)[] target, Tensor[] source, float momentum) -> ()");
  // Row j of keys, normalised where asked, to row (queue_ptr + j) mod K.
  m.def("enqueue_(Tensor(a!) queue, Tensor(b!) queue_ptr, Tensor keys, bool normalize=False) -> ()");
}

TORCH_LIBRARY_IMPL(ssl_fast, CPU, m) {
  m.impl("nt_xent", &ssl_fast::cpu::nt_xent);
  m.impl("nt_xent_backward", &ssl_fast::cpu::nt_xent_backward);
  m.impl("info_nce", &ssl_fast::cpu::info_nce);
  m.impl("info_nce_backward", &ssl_fast::cpu::info_nce_backward);
  m.impl("ema_update_", &ssl_fast::cpu::ema_update_);
  m.impl("enqueue_", &ssl_fast::cpu::enqueue_);
}
