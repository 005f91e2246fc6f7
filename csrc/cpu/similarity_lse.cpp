// The primitive: lse_i = log sum_k exp(s <u_i, v_k>) over the pairs that the mask allows, and its gradient.
// With P the softmax of the rows and Q of the columns, W_ik = g_i P_ik + h_k Q_ik:
//   dU_i = s sum_k W_ik v_k,  dV_k = s sum_i W_ik u_i.
// Where only sums of rows are asked for, h is 0. Where b is not given, the rows of a meet each other: v is u, h is 0,
// and the gradient of row i is dU_i + dV_i. With the fixed shift a tile serves its rows and its columns, and rows that
// meet each other need half the tiles. With a running maximum the sums of rows and those of columns take a pass each.
#include "../operators/checks.h"
#include "engine/input_gradients.h"
#include "engine/loss_rows.h"
#include "engine/weighted_rows.h"
#include "operators.h"

namespace ssl_fast::cpu {
namespace {

// The arguments that forward and backward have in common.
struct Problem {
  const Tensor& a;
  const OptionalTensor &b, &ids_a, &ids_b;
  const int64_t mask;
  const bool normalize_a, normalize_b, columns;
  const Scale scale;

  bool symmetric() const { return !b; }
  int64_t n() const { return a.size(0); }
  int64_t m() const { return b ? b->size(0) : n(); }
  // How many log sums there are: of the rows and, where asked for, of the columns.
  int64_t sum_count() const { return n() + (columns ? m() : 0); }
  // Whether all pairs are computed with the fixed shift. It needs a copy of all columns as unit rows. In one direction
  // that copy does not pay for few rows, since the running maximum reads the columns a block at a time.
  bool fixed_shift() const {
    const bool worth_it = !b || columns || n() >= 32;
    return worth_it && scale.allows_fixed_shift(normalize_a && (!b || normalize_b));
  }

  void check() const {
    TORCH_CHECK_VALUE(a.dim() == 2 && a.numel() > 0, "a: expected the shape (N, D), not empty, got ", a.sizes());
    TORCH_CHECK_VALUE(!b || (b->dim() == 2 && b->size(1) == a.size(1) && b->numel() > 0),
                      "b: expected the shape (M, D) for a ", a.sizes());
    TORCH_CHECK_VALUE(mask >= kAll && mask <= kIdsEqual, "mask: expected 0 to 3, got ", mask);
    TORCH_CHECK_VALUE(b || !columns, "columns: expected b to be given");
    const bool with_ids = mask >= kIdsDiffer;
    TORCH_CHECK_VALUE(ids_fit(ids_a, with_ids, n()) && ids_fit(ids_b, with_ids && b, m()),
                      "ids: expected int64 of as many rows as a and b where the mask has ids, else none");
  }
  // Whether ids are int64 (count) where they are wanted, and not given where they are not.
  static bool ids_fit(const OptionalTensor& ids, bool wanted, int64_t count) {
    if (!ids || !wanted) return !ids && !wanted;
    return ids->dim() == 1 && ids->size(0) == count && ids->scalar_type() == at::kLong;
  }
  // The pairs that follow the sums of a forward pass, if they were kept. With the fixed shift the matrix has a as rows
  // and b as columns; with a running maximum the keys, b, are its rows, and the queries, a, its columns. Where a meets
  // itself, both are n x n.
  template <typename T>
  KeptPairs<T> kept(const Tensor& sums) const {
    return {sums, sum_count(), fixed_shift() ? m() : n()};
  }
  // The mask of rows a and columns b. Tiles of queries and keys have the keys as rows: where b is the keys, they take
  // this mask transposed.
  template <typename T>
  Mask<T> mask_of(const Ids<T>& ids) const {
    const MaskCode code = mask == kIdsEqual && symmetric() ? kIdsEqualNotSelf : MaskCode(mask);
    return Mask<T>::of(code, 0, ids.of_rows(), ids.of_columns());
  }
};

template <typename T>
struct Forward {
  const Problem& problem;
  const Ids<T> ids;
  const Mask<T> mask;
  RankCounts<T> counts;
  std::vector<double> log_sums;  // of the rows, then of the columns
  const Tensor sums;             // what the backward pass gets

  Forward(const Problem& problem, const OptionalTensor& positive, bool keep)
      : problem(problem),
        ids(int64_values(problem.ids_a), int64_values(problem.ids_b)),
        mask(problem.mask_of(ids)),
        counts(positive, problem.scale, problem.n(), problem.columns),
        sums(new_sums<T>(problem.sum_count(), keep ? kept_count<T>(problem.n(), problem.m(), problem.a.size(1)) : 0)) {
    TORCH_CHECK_VALUE(!positive || !problem.columns || problem.n() == problem.m(),
                      "positive: expected as many columns as rows, got ", problem.n(), " and ", problem.m());
    const UnitRows<T> rows(problem.a, problem.normalize_a);
    if (problem.symmetric())
      log_sums = symmetric_log_sums(rows, problem.scale, mask, kept(), counts);
    else if (problem.fixed_shift())
      with_fixed_shift(rows);
    else if (problem.columns)
      both_directions(rows);
    else
      online({rows, *problem.b, problem.normalize_b, problem.scale, mask.transposed(), KeptDots<T>::written(kept())},
             counts.of_rows);
  }

  KeptPairs<T> kept() const { return problem.kept<T>(sums); }

  void with_fixed_shift(const UnitRows<T>& rows) {
    const UnitRows<T> columns(*problem.b, problem.normalize_b);
    log_sums =
        fixed_shift_log_sums(SymmetricTiles<T>(rows, columns, problem.scale, mask, kept()), problem.columns, counts);
  }

  void both_directions(const UnitRows<T>& rows) {
    const UnitRows<T> columns(*problem.b, problem.normalize_b);
    online(
        QueryKeyTiles<T>::of_unit_rows(rows, columns, problem.scale, mask.transposed(), KeptDots<T>::written(kept())),
        counts.of_rows);
    online(QueryKeyTiles<T>::of_unit_rows(columns, rows, problem.scale, mask,
                                          KeptDots<T>::read_from(kept(), /*transposed=*/true)),
           counts.of_columns);
  }

  // With a running maximum: appends the log sums of the queries, and counts into ranks.
  void online(const QueryKeyTiles<T>& tiles, std::vector<int64_t>& ranks) {
    const PartialSums<T> partial(tiles, false, counts.positives);
    for (int64_t i = 0; i < tiles.n(); i++) {
      log_sums.push_back(partial.log_sum(i));
      if (!counts.positives.empty()) ranks[i] = partial.rank(i);
    }
  }

  std::tuple<Tensor, Tensor, Tensor, Tensor> results() const {
    const int64_t n = problem.n(), count = problem.sum_count();
    Tensor lse = new_empty<double>({n}), column_lse = new_empty<double>({count - n});
    // Each log sum is saved as two numbers: rounded to T, and what rounding took from it.
    T *high = sums.template data_ptr<T>(), *low = high + count;
    for (int64_t i = 0; i < count; i++) {
      const double log_sum = log_sums[i];
      (i < n ? lse : column_lse).template data_ptr<double>()[i < n ? i : i - n] = log_sum * kLn2;
      // The log sum of a row without pairs is -Inf; it is saved as 0, because the row has no weights and any finite
      // number will do. A log sum is about as large as |s|, for example 1000, and the error of its rounding would be in
      // all weights of the row: hence the second number.
      const double whole = std::isinf(log_sum) ? 0 : log_sum;
      high[i] = T(whole);
      low[i] = T(whole - high[i]);
    }
    return {lse, column_lse, counts.tensor(n), sums};
  }
};

template <typename T>
struct Backward {
  const Problem& problem;
  const Ids<T> ids;
  const Mask<T> mask;
  const bool a_gradient, b_gradient;
  const KeptPairs<T> kept;
  const T *high, *low;     // log sums of rows, then of columns, as the forward pass saved them
  std::vector<T> weights;  // upstream gradients of rows, then of columns, corrected by what rounding took from log sums
  Tensor da, db;
  double s_dL_ds = 0;

  Backward(const Problem& problem, const Tensor& gradient, const OptionalTensor& column_gradient, const Tensor& sums,
           bool a_gradient, bool b_gradient, bool scale_gradient)
      : problem(problem),
        ids(int64_values(problem.ids_a), int64_values(problem.ids_b)),
        mask(problem.mask_of(ids)),
        a_gradient(a_gradient),
        b_gradient(b_gradient && problem.b),
        kept(problem.kept<T>(sums)),
        high(sums.template data_ptr<T>()),
        low(high + problem.sum_count()),
        weights(row_gradients<T>(gradient, kNone, problem.n())),
        da(at::empty({0}, problem.a.options())),
        db(at::empty({0}, (problem.b ? *problem.b : problem.a).options())) {
    if (problem.columns) {
      const std::vector<T> h = row_gradients<T>(*column_gradient, kNone, problem.m());
      weights.insert(weights.end(), h.begin(), h.end());
    }
    for (size_t i = 0; i < weights.size(); i++) weights[i] *= T(std::exp2(-double(low[i])));
    if (a_gradient) da = at::empty(problem.a.sizes(), problem.a.options());
    if (this->b_gradient) db = at::empty(problem.b->sizes(), problem.b->options());
    const UnitRows<T> rows(problem.a, problem.normalize_a);
    const bool for_rows = a_gradient || scale_gradient;
    if (problem.symmetric()) {
      const Tensor du = new_zeros<T>({rows.n, rows.width});
      const T g_unit =
          add_symmetric_weighted_rows(rows, problem.scale, mask, kept, weights, high, du.template data_ptr<T>());
      s_dL_ds = rows_backward(rows, du, T(problem.scale.s) * g_unit, da) / 2;  // du holds each pair from both sides
    } else if (problem.columns || problem.fixed_shift()) {
      both_sides(rows, for_rows);
    } else {
      one_direction(rows, for_rows);
    }
  }

  void both_sides(const UnitRows<T>& rows, bool for_rows) {
    const UnitRows<T> columns(*problem.b, problem.normalize_b);
    const Tensor du = new_zeros<T>({for_rows ? rows.n : 0, rows.width});
    const Tensor dv = new_zeros<T>({b_gradient ? columns.n : 0, rows.width});
    T *d_rows = for_rows ? du.template data_ptr<T>() : nullptr,
      *d_columns = b_gradient ? dv.template data_ptr<T>() : nullptr;
    const T* g = weights.data();
    T g_unit = 1;
    if (problem.fixed_shift()) {
      const SymmetricTiles<T> tiles(rows, columns, problem.scale, mask, kept);
      g_unit = gradient_unit(weights);
      std::vector<T> w = fixed_shift_weights(tiles, g, g_unit, high, problem.sum_count());
      w.resize(rows.n + columns.n);  // in one direction columns have no weights of their own
      add_exp_weighted_rows(tiles, d_rows, d_columns, w.data(), w.data() + rows.n);
    } else {
      const SavedSums<T> of_rows{high, g}, of_columns{high + rows.n, g + rows.n};
      const auto column_keys =
          QueryKeyTiles<T>::of_unit_rows(rows, columns, problem.scale, mask.transposed(), KeptDots<T>::read_from(kept));
      const auto row_keys = QueryKeyTiles<T>::of_unit_rows(columns, rows, problem.scale, mask,
                                                           KeptDots<T>::read_from(kept, /*transposed=*/true));
      if (d_rows) add_weighted_keys(column_keys, of_rows, of_columns, d_rows);
      if (d_columns) add_weighted_keys(row_keys, of_columns, of_rows, d_columns);
    }
    const T s = T(problem.scale.s) * g_unit;
    if (for_rows) s_dL_ds = rows_backward(rows, du, s, da);
    if (b_gradient) rows_backward(columns, dv, s, db);
  }

  void one_direction(const UnitRows<T>& rows, bool for_rows) {
    const QueryKeyTiles<T> tiles(rows, *problem.b, problem.normalize_b, problem.scale, mask.transposed(),
                                 KeptDots<T>::read_from(kept));
    const SavedSums<T> of_rows{high, weights.data()};
    if (for_rows) {
      const Tensor du = new_zeros<T>({rows.n, rows.width});
      add_weighted_keys(tiles, of_rows, {}, du.template data_ptr<T>());
      s_dL_ds = rows_backward(rows, du, T(problem.scale.s), da);
    }
    if (b_gradient) keys_backward<T>(tiles, of_rows, db, [](int64_t, T*) {});
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> similarity_lse(const Tensor& a, const OptionalTensor& b,
                                                          const OptionalTensor& ids_a, const OptionalTensor& ids_b,
                                                          int64_t mask, bool normalize_a, bool normalize_b,
                                                          bool columns, double scale_number,
                                                          const OptionalTensor& scale_tensor,
                                                          const OptionalTensor& positive, bool keep) {
  const Problem problem{a, b, ids_a, ids_b, mask, normalize_a, normalize_b, columns, Scale(scale_number, scale_tensor)};
  problem.check();
  return in_compute_type(a, [&]<typename T>() { return Forward<T>(problem, positive, keep).results(); });
}

std::tuple<Tensor, Tensor, Tensor> similarity_lse_backward(
    const Tensor& gradient, const OptionalTensor& column_gradient, const Tensor& a, const OptionalTensor& b,
    const OptionalTensor& ids_a, const OptionalTensor& ids_b, int64_t mask, bool normalize_a, bool normalize_b,
    double scale_number, const OptionalTensor& scale_tensor, const Tensor& sums, bool a_gradient, bool b_gradient) {
  const Problem problem{a,
                        b,
                        ids_a,
                        ids_b,
                        mask,
                        normalize_a,
                        normalize_b,
                        column_gradient.has_value(),
                        Scale(scale_number, scale_tensor)};
  problem.check();
  check_upstream(gradient, kNone, problem.n());
  if (column_gradient) check_upstream(*column_gradient, kNone, problem.m());
  return in_compute_type(a, [&]<typename T>() -> std::tuple<Tensor, Tensor, Tensor> {
    check_sums<T>(sums, problem.sum_count(), kept_count<T>(problem.n(), problem.m(), problem.a.size(1)));
    const Backward<T> result(problem, gradient, column_gradient, sums, a_gradient, b_gradient,
                             scale_tensor.has_value());
    return {result.da, result.db, scale_gradient<T>(result.s_dL_ds, problem.scale, scale_tensor)};
  });
}

}  // namespace ssl_fast::cpu
