// The vector kernels of the tile engine, as one table of functions for each SIMD level.
//
// The level is chosen once, at load, from what the processor has; SSL_FAST_SIMD=plain|avx2|avx512 forces a lower one,
// and tests run each. Everything here runs on one thread: the caller decides on threads, and lets the shapes alone fix
// the order of sums.
#pragma once
#include "../engine/tile.h"

namespace ssl_fast {

template <typename T>
struct Kernels {
  int64_t lanes;         // of a vector: widths are multiples of it
  int64_t column_group;  // columns are packed in groups of this many: [group][dim][column]

  // u = x / max(|x|, eps) for one row of `dim`; returns 1 / max(|x|, eps). In place is allowed.
  T (*normalize)(const T* x, T* u, int64_t dim);
  // Whether a row holds neither NaN nor Inf.
  bool (*finite)(const T* x, int64_t dim);
  // dx = (du - u <u, du>) * inverse_norm, without the projection where the norm was clamped;
  // du is overwritten with dx. Returns <u, du>, which the temperature's gradient needs.
  T (*normalize_backward)(const T* u, T* du, int64_t dim, T inverse_norm);
  // t = momentum * t + rest * s, n entries.
  void (*average)(T* t, const T* s, int64_t n, T momentum, T rest);
  // Rows (n, dim) into column groups; the rest of the last group is zero.
  void (*pack)(const T* rows, int64_t row_stride, int64_t n, int64_t dim, T* columns);
  // out[i] = <a_i, b_i> for n rows, bit for bit as in a tile, so that equal rows tie.
  void (*dots)(const T* a, const T* b, int64_t row_stride, int64_t n, int64_t dim, T* out);

  // tile[r][c] = scale * dot, of excluded pairs too.
  void (*scores)(const TileInput<T>& in, T* tile);
  // E = exp2(score - shift), zero where excluded: adds E to row_sums (m) and, unless null, to
  // column_sums (n). With ranks it also counts the sign(scale) * dot that are not <= the positive's.
  void (*exp_sums)(const TileInput<T>& in, T shift, T* row_sums, T* column_sums, const Ranks<T>* ranks);
  // tile[r][c] = E * (row_weights[r] + column_weights[c]), zero where excluded.
  void (*exp_weights)(const TileInput<T>& in, T shift, const T* row_weights, const T* column_weights, T* tile);
  // With x = score + bias: adds log2(1 + 2^x) to softplus (m) and 1 / (1 + 2^-x) to sigmoid (m), nothing where
  // excluded; ranks as above. tile[r][c] = 1 / (1 + 2^-x) * row_weights[r], zero where excluded.
  void (*softplus_sums)(const TileInput<T>& in, T bias, T* softplus, T* sigmoid, const Ranks<T>* ranks);
  void (*sigmoid_weights)(const TileInput<T>& in, T bias, const T* row_weights, T* tile);

  // out (m, width) += tile (m, k) * b (k, width); out (n, width) += tile (k, n) transposed * b.
  // width is a multiple of the lanes of a vector.
  void (*add_rows)(const T* tile, int64_t m, int64_t k, const T* b, int64_t b_stride, int64_t width, T* out);
  void (*add_columns)(const T* tile, int64_t n, int64_t k, const T* b, int64_t b_stride, int64_t width, T* out);

  // Online softmax down the columns of a tile of dots (m, n), score = magnitude * dot: raises maxima
  // (n) of scores, makes each dot exp2(score - maximum); sums (n) gets the tile's own sums and
  // factors (n) exp2(old - new maximum), by which what was summed before must be multiplied.
  // Returns whether any maximum rose, and with it a factor other than 1.
  bool (*online_columns)(T* tile, int64_t m, int64_t n, T magnitude, T* maxima, T* sums, T* factors);
  // dot -> exp2(score - log_sums[c]) * weights[c], and, unless row_weights is null,
  // + exp2(score - row_log_sums[r]) * row_weights[r].
  void (*softmax_weights)(T* tile, int64_t m, int64_t n, T magnitude, const T* log_sums, const T* weights,
                          const T* row_log_sums, const T* row_weights);
  // tile[r][c] = value where the mask's ids exclude a pair.
  void (*exclude_ids)(const Mask<T>& mask, T* tile, int64_t m, int64_t n, T value);
  // counts[c] += rows r of column c whose dot is not <= thresholds[c] (NaN counts).
  void (*count_columns)(const T* tile, int64_t m, int64_t n, const T* thresholds, int64_t* counts);
};

template <typename T>
const Kernels<T>& kernels();

// Names of the level in use and of all that this processor could run.
const char* simd_level();
const char* simd_available();

}  // namespace ssl_fast
