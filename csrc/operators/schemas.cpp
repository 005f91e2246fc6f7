// The schema of every operator, on one page, and the CPU's implementations. An operator's other parts: CUDA and Triton
// implementations in cuda/ and kernels/, fake kernels (shapes without data) in Python, autograd in autograd_*.cpp.
//
// What the arguments mean everywhere:
//   N, M, D            rows of one side, rows of the other, and numbers of a row
//   rows               any of float32, float64, bfloat16 and float16, with any strides
//   scale              s = 1 / temperature, a number; it is not used where scale_tensor () is given
//   reduction          0 none, 1 mean, 2 sum
//   loss, gradient     () where the loss is reduced, else one number a row
//   stats              (4): top1, top5, mean similarity of positives, of negatives; (0) unless asked for
//   sums               what the backward pass needs of the denominators: its shape and meaning belong to the backend
//   keep               which autograd sets: on the CPU, sums also holds every pair where these are few
//                      (cpu/engine/kept_pairs.h)
//   x_gradient         whether the gradient of x is wanted; without it, x's output is empty or zero
#include <string>

#include <torch/library.h>

#include "../cpu/operators.h"

TORCH_LIBRARY(ssl_fast, m) {
  // NT-Xent of two views z1, z2 (N, D) of the same images. The loss has 2 N rows: those of z1, then those of z2.
  m.def(
      "nt_xent(Tensor z1, Tensor z2, float scale, Tensor? scale_tensor, int reduction, bool return_stats,"
      " bool keep=False) -> (Tensor loss, Tensor stats, Tensor sums)");
  // Returns the gradients of z1 (N, D), z2 (N, D) and the scale ().
  m.def(
      "nt_xent_backward(Tensor gradient, Tensor z1, Tensor z2, float scale, Tensor? scale_tensor,"
      " int reduction, Tensor sums) -> (Tensor z1, Tensor z2, Tensor scale)");

  // InfoNCE of query and positive (N, D). negatives: (M, D) for all queries, (N, M, D) for each its own, or none: then
  // the other positives are a query's negatives. query_gradient, which autograd sets: also return key_means (N, D), the
  // mean of a query's keys by the softmax, of which the gradients of query and scale are made; else (0, D).
  m.def(
      "info_nce(Tensor query, Tensor positive, Tensor? negatives, bool normalize_negatives, float scale,"
      " Tensor? scale_tensor, int reduction, bool return_stats, bool query_gradient=False, bool keep=False)"
      " -> (Tensor loss, Tensor stats, Tensor sums, Tensor key_means)");
  // negatives: as above, but given only where negatives_gradient asks for their gradient: a queue is not kept for the
  // backward pass. in_batch: whether there were none. Then negatives_gradient is about the positives in their second
  // role. It costs two products more. Returns the gradients of query and positive (N, D), of negatives in their shape
  // or (0), and of the scale ().
  m.def(
      "info_nce_backward(Tensor gradient, Tensor query, Tensor positive, Tensor? negatives, bool in_batch,"
      " bool normalize_negatives, float scale, Tensor? scale_tensor, int reduction, Tensor sums,"
      " Tensor key_means, bool negatives_gradient)"
      " -> (Tensor query, Tensor positive, Tensor negatives, Tensor scale)");

  // The primitive. u, v are the unit rows of a (N, D) and b (M, D), or where normalize_a or normalize_b is false the
  // rows as they are. lse (N): lse_i = log of the sum of exp(s <u_i, v_k>) over the k that mask allows; -Inf where
  // it allows none. It is float64, because losses subtract a score from it and both are as large as s.
  //   mask (common/constants.h)  0 all k, 1 k != i, 2 ids differ, 3 ids are equal
  //   b none                     b is a, ids_a serve both sides, mask 3 leaves out k = i too; half the products suffice
  //   ids_a, ids_b               int64 (N) and (M) where the mask has ids, else none
  //   columns                    also column_lse (M) over each column; else (0)
  //   positive                   (N), similarities, or none
  //   ranks                      int64 (1, N), with columns (2, N): how many allowed k are more similar than positive,
  //                              by the sign of s; (0, N) without positive
  m.def(
      "similarity_lse(Tensor a, Tensor? b, Tensor? ids_a, Tensor? ids_b, int mask, bool normalize_a, bool normalize_b,"
      " bool columns, float scale, Tensor? scale_tensor, Tensor? positive, bool keep=False)"
      " -> (Tensor lse, Tensor column_lse, Tensor ranks, Tensor sums)");
  // gradient (N) is of lse, column_gradient (M) of column_lse. Returns the gradients of a (N, D), b (M, D) and the
  // scale ().
  m.def(
      "similarity_lse_backward(Tensor gradient, Tensor? column_gradient, Tensor a, Tensor? b, Tensor? ids_a,"
      " Tensor? ids_b, int mask, bool normalize_a, bool normalize_b, float scale, Tensor? scale_tensor,"
      " Tensor sums, bool a_gradient, bool b_gradient) -> (Tensor a, Tensor b, Tensor scale)");

  // <u_i, v_i> (N) of the rows of a and b (N, D) that belong together, rounded as in similarity_lse: where two rows are
  // equal, so are their similarities.
  m.def("pair_similarity(Tensor a, Tensor b, bool normalize_a, bool normalize_b) -> Tensor");
  // gradient (N). Returns the gradients of a and b (N, D).
  m.def(
      "pair_similarity_backward(Tensor gradient, Tensor a, Tensor b, bool normalize_a, bool normalize_b)"
      " -> (Tensor a, Tensor b)");

  // x (N, D), labels int64 (N). similarities (N): the sum of <u_i, u_p> over the other rows p with the label of row i.
  // positives, int64 (N): how many those are.
  m.def("class_similarity(Tensor x, Tensor labels) -> (Tensor similarities, Tensor positives)");
  // gradient (N), of similarities. Returns the gradient of x (N, D).
  m.def("class_similarity_backward(Tensor gradient, Tensor x, Tensor labels) -> Tensor");

  // a, b (N, D), bias (), positive (N) or none. With x_ik = s <u_i, v_k> + bias, sums (2, N) are over k != i of
  // softplus(x_ik) and of sigmoid(x_ik). ranks (2, N) or (0, N) as in similarity_lse. kept: every sigmoid, or (0);
  // not in sums, which has a gradient.
  m.def(
      "similarity_softplus(Tensor a, Tensor b, bool normalize, float scale, Tensor? scale_tensor,"
      " Tensor bias, Tensor? positive, bool keep=False) -> (Tensor sums, Tensor ranks, Tensor kept)");
  // gradient (N), of sums[0]. Returns the gradients of a and b (N, D), the scale () and the bias ().
  m.def(
      "similarity_softplus_backward(Tensor gradient, Tensor a, Tensor b, bool normalize, float scale,"
      " Tensor? scale_tensor, Tensor bias, Tensor sums, Tensor kept, bool a_gradient, bool b_gradient)"
      " -> (Tensor a, Tensor b, Tensor scale, Tensor bias)");

  // The loss of rows from lse (R N), float64, and the similarities of their positives, positive (N). weights (N), or
  // none for 1, get no gradient. Row i has the positive k = i mod N, and x_i = lse_i - s weights_k positive_k. Its loss
  // is x_i, or where the positive is in the denominator too, softplus(x_i). Rows with P positives each, (N, P), have
  // A_k = log sum_p exp(s positive_kp) in the place of the one logit, and their loss grows by A_k - mean_p
  // s positive_kp, or with mean_in_log by log P. On the CPU alone: elsewhere positive_loss in
  // ssl_fast/operators/calls.py is plain PyTorch.
  m.def(
      "positive_loss(Tensor lse, Tensor positive, Tensor? weights, bool in_denominator, bool mean_in_log, float scale,"
      " Tensor? scale_tensor, int reduction) -> Tensor");
  // Returns the gradients of lse (R N), positive and the scale ().
  m.def(
      "positive_loss_backward(Tensor gradient, Tensor lse, Tensor positive, Tensor? weights, bool in_denominator,"
      " bool mean_in_log, float scale, Tensor? scale_tensor, int reduction)"
      " -> (Tensor lse, Tensor positive, Tensor scale)");

  // target = momentum * target + (1 - momentum) * source, tensors of any shapes; integers are copied. momentum is not
  // used where momentum_tensor, one float32 or float64, is given. With seed, one int64, bfloat16 targets are rounded at
  // random. An operator named triton does the same work by a Triton kernel, beside the one in C++.
  const std::string ema_arguments =
      "(Tensor(a!)[] target, Tensor[] source, float momentum, Tensor? momentum_tensor=None, Tensor? seed=None) -> ()";
  m.def(("ema_update_" + ema_arguments).c_str());
  m.def(("triton_ema_update_" + ema_arguments).c_str());
  // Row j of keys (B, D), normalised where asked, goes to row (queue_ptr + j) mod K of queue (K, D); queue_ptr, one
  // int64, advances.
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
