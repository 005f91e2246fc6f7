// NT-Xent where exp(-2 |s|) underflows (temperature below 0.025): every row walks over all its
// negatives with an online maximum. Twice the products of the fixed shift; right at any temperature.
#pragma once
#include "walk.h"

namespace ssl_fast {

// log2 of the sum of exp2(score_ik) over row i's negatives, for all rows. counts, unless null: the
// negatives above the positive.
template <typename T>
void online_log_sums(const UnitRows<T>& unit, const Scale& scale, const LeftOut& left_out,
                     const std::vector<T>& similarities, std::vector<double>& log_sums, std::vector<int64_t>* counts) {
  const at::Tensor packed = unit.packed();
  const Keys<T> keys(unit.rows.slice(0, 0, unit.n), false);
  const int64_t blocks = (unit.n + kTile - 1) / kTile;
  const T sign = T(scale.sign()), magnitude = sign * T(scale.log2_scale);
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    const at::Tensor tile = new_empty<T>({kTile + kTileSlack, kTile}), scratch = Keys<T>::scratch(keys.width);
    for (int64_t b = begin; b < end; b++) {
      const int64_t first = b * kTile, n = std::min(kTile, unit.n - first);
      Softmax<T> softmax;
      T thresholds[kTile] = {};
      for (int64_t c = 0; c < n; c++) thresholds[c] = similarities[(first + c) % (unit.n / 2)] * sign;
      walk<T>({packed.template data_ptr<T>() + first * unit.dim, first, n, unit.dim, sign, magnitude, left_out}, keys,
              0, unit.n, tile.template data_ptr<T>(), scratch.template data_ptr<T>(), softmax, nullptr, thresholds,
              counts ? counts->data() + first : nullptr);
      for (int64_t c = 0; c < n; c++) log_sums[first + c] = softmax.maxima[c] + std::log2(softmax.sums[c]);
    }
  });
}

// Sum over row i's negatives of (g_i P_ik + g_k P_ki) u_k with P_ik = exp2(score_ik - log_sum_i), the
// log_sum over negatives and positive; a row for each row.
template <typename T>
void online_attractions(const UnitRows<T>& unit, const Scale& scale, const LeftOut& left_out, const std::vector<T>& g,
                        const T* log_sums, T* du) {
  const at::Tensor packed = unit.packed();
  const int64_t blocks = (unit.n + kTile - 1) / kTile;
  const T sign = T(scale.sign()), magnitude = sign * T(scale.log2_scale);
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    const auto& kernel = kernels<T>();
    const at::Tensor tiles = new_empty<T>({kTile + kTileSlack, kTile});
    T* tile = tiles.template data_ptr<T>();
    for (int64_t i = begin; i < end; i++)
      for (int64_t j = 0; j < blocks; j++) {
        const int64_t r = i * kTile, m = std::min(kTile, unit.n - r), c = j * kTile, n = std::min(kTile, unit.n - c);
        kernel.scores({unit.row(r), unit.width, packed.template data_ptr<T>() + c * unit.dim, m, n, unit.dim, sign},
                      tile);
        T column_sums[kTile] = {}, column_weights[kTile] = {};
        std::copy_n(log_sums + c, n, column_sums);
        std::copy_n(g.data() + c, n, column_weights);
        kernel.softmax_weights(tile, m, n, magnitude, column_sums, column_weights, log_sums + r, g.data() + r);
        leave_out(left_out.seen_from(r, c), tile, m, n, T(0));
        kernel.add_rows(tile, m, n, unit.row(c), unit.width, unit.width, du + r * unit.width);
      }
  });
}

}  // namespace ssl_fast
