// Every operator of the package: its schema, and the CPU kernels. Those for GPUs are in kernels/ (Triton) and, for
// the last two, cuda/; fake kernels (shapes without data) in ssl_fast/native.py, autograd in autograd_*.cpp.
//
// temperature: used unless temperature_tensor (0-D) is given. reduction: 0 none, 1 mean, 2 sum.
// stats (4) = top1, top5, mean positive and mean negative similarity; empty unless asked for.
// sums: what the backward pass needs of the denominators; its meaning belongs to the backend.
#include <string>

#include <torch/library.h>

#include "../cpu/operators.h"

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

  // u, v: unit rows of a (N, D) and b (M, D), or the rows as they are. lse_i = log of the sum over the k that mask
  // allows of exp(s <u_i, v_k>), s = 1 / temperature; -inf where it allows none. In float64: losses subtract a
  // score from it, and both are as large as s. mask: 0 all, 1 k != i, 2 ids differ,
  // 3 ids equal, and k != i where b is none: then b is a, ids_a serve both and half the products do.
  // columns: also column_lse (M) over each column. positive (N), cosine similarities: ranks (1, N), with columns
  // (2, N), count the allowed k more similar, by the sign of s; else (0, N).
  m.def(
      "similarity_lse(Tensor a, Tensor? b, Tensor? ids_a, Tensor? ids_b, int mask, bool normalize_a, bool normalize_b,"
      " bool columns, float temperature, Tensor? temperature_tensor, Tensor? positive)"
      " -> (Tensor lse, Tensor column_lse, Tensor ranks, Tensor sums)");
  m.def(
      "similarity_lse_backward(Tensor gradient, Tensor? column_gradient, Tensor a, Tensor? b, Tensor? ids_a,"
      " Tensor? ids_b, int mask, bool normalize_a, bool normalize_b, float temperature, Tensor? temperature_tensor,"
      " Tensor sums, bool a_gradient, bool b_gradient) -> (Tensor a, Tensor b, Tensor temperature)");
  // <u_i, v_i> of the rows that belong together, rounded as in similarity_lse: equal rows tie.
  m.def("pair_similarity(Tensor a, Tensor b, bool normalize_a, bool normalize_b) -> Tensor");
  m.def(
      "pair_similarity_backward(Tensor gradient, Tensor a, Tensor b, bool normalize_a, bool normalize_b)"
      " -> (Tensor a, Tensor b)");
  // similarities (N): the sum of <u_i, u_p> over the other rows p with i's label, int64 (N); positives (N): how many.
  m.def("class_similarity(Tensor x, Tensor labels) -> (Tensor similarities, Tensor positives)");
  m.def("class_similarity_backward(Tensor gradient, Tensor x, Tensor labels) -> Tensor");
  // sums (2, N): over k != i of softplus(x_ik) and of sigmoid(x_ik), x_ik = s <u_i, v_k> + bias (0-D). ranks as above.
  m.def(
      "similarity_softplus(Tensor a, Tensor b, bool normalize, float temperature, Tensor? temperature_tensor,"
      " Tensor bias, Tensor? positive) -> (Tensor sums, Tensor ranks)");
  m.def(
      "similarity_softplus_backward(Tensor gradient, Tensor a, Tensor b, bool normalize, float temperature,"
      " Tensor? temperature_tensor, Tensor bias, Tensor sums, bool a_gradient, bool b_gradient)"
      " -> (Tensor a, Tensor b, Tensor temperature, Tensor bias)");

  // Of x = lse - s w p, rows below one another as often as lse (R N) is longer than positive (N), p, and weights (N),
  // w, which get no gradient: x, or where the positive is in the denominator softplus(x). Reduced. For the CPU alone:
  // elsewhere similarity.positive_loss is plain PyTorch.
  m.def(
      "positive_loss(Tensor lse, Tensor positive, Tensor? weights, bool in_denominator, float temperature,"
      " Tensor? temperature_tensor, int reduction) -> Tensor");
  m.def(
      "positive_loss_backward(Tensor gradient, Tensor lse, Tensor positive, Tensor? weights, bool in_denominator,"
      " float temperature, Tensor? temperature_tensor, int reduction)"
      " -> (Tensor lse, Tensor positive, Tensor temperature)");

  // target = momentum * target + (1 - momentum) * source; integers are copied. momentum: used unless
  // momentum_tensor (one float) is given. seed (one int64): bfloat16 targets are rounded at random.
  // Those named triton are the same work by the Triton kernels, beside those in C++ (backends.py).
  const std::string ema_arguments =
      "(Tensor(a!)[] target, Tensor[] source, float momentum, Tensor? momentum_tensor=None, Tensor? seed=None) -> ()";
  m.def(("ema_update_" + ema_arguments).c_str());
  m.def(("triton_ema_update_" + ema_arguments).c_str());
  // Row j of keys, normalised where asked, to row (queue_ptr + j) mod K.
  const std::string enqueue_arguments =
      "(Tensor(a!) queue, Tensor(b!) queue_ptr, Tensor keys, bool normalize=False) -> ()";
  m.def(("enqueue_" + enqueue_arguments).c_str());
  m.def(("triton_enqueue_" + enqueue_arguments).c_str());
}

TORCH_LIBRARY_IMPL(ssl_fast, CPU, m) {
  m.impl("nt_xent", &ssl_fast::cpu::nt_xent);
  m.impl("nt_xent_backward", &ssl_fast::cpu::nt_xent_backward);
  m.impl("info_nce", &ssl_fast::cpu::info_nce);
  m.impl("info_nce_backward", &ssl_fast::cpu::info_nce_backward);
  m.impl("similarity_lse", &ssl_fast::cpu::similarity_lse);
  m.impl("similarity_lse_backward", &ssl_fast::cpu::similarity_lse_backward);
  m.impl("pair_similarity", &ssl_fast::cpu::pair_similarity);
  m.impl("pair_similarity_backward", &ssl_fast::cpu::pair_similarity_backward);
  m.impl("class_similarity", &ssl_fast::cpu::class_similarity);
  m.impl("class_similarity_backward", &ssl_fast::cpu::class_similarity_backward);
  m.impl("similarity_softplus", &ssl_fast::cpu::similarity_softplus);
  m.impl("similarity_softplus_backward", &ssl_fast::cpu::similarity_softplus_backward);
  m.impl("positive_loss", &ssl_fast::cpu::positive_loss);
  m.impl("positive_loss_backward", &ssl_fast::cpu::positive_loss_backward);
  m.impl("ema_update_", &ssl_fast::cpu::ema_update_);
  m.impl("enqueue_", &ssl_fast::cpu::enqueue_);
}
