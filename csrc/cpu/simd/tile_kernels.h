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
  int64_t lanes;         // numbers in a vector; the width of rows is a multiple of it
  int64_t column_group;  // columns are packed in groups of this many: [group][dim][column]

  // u = x / max(|x|, eps) for one row (dim); returns 1 / max(|x|, eps). u may be x.
  T (*normalize)(const T* x, T* u, int64_t dim);
  // Whether a row holds neither NaN nor Inf.
  bool (*finite)(const T* x, int64_t dim);
  // With du = factor * d (dim), the gradient of a unit row: dx = (du - u <u, du>) * inverse_norm, or where the norm was
  // clamped to eps, du * inverse_norm. dx may be d. Returns <u, du>, of which the scale's gradient is made.
  T (*normalize_backward)(const T* u, const T* d, T factor, int64_t dim, T inverse_norm, T* dx);
  // t = momentum * t + rest * s for n entries.
  void (*average)(T* t, const T* s, int64_t n, T momentum, T rest);
  // Packs rows (n, dim) as columns, in groups; the rest of the last group is zero.
  void (*pack)(const T* rows, int64_t row_stride, int64_t n, int64_t dim, T* columns);
  // out[i] = <a_i, b_i> for n rows, bit for bit as in a tile: a key equal to the positive has the same similarity.
  void (*dots)(const T* a, const T* b, int64_t row_stride, int64_t n, int64_t dim, T* out);

  // tile[r][c] = scale * dot, of excluded pairs too.
  void (*scores)(const TileInput<T>& in, T* tile);
  // E = exp2(score - shift), zero where the mask excludes a pair. Adds E to row_sums (m) and, unless null, to
  // column_sums (n). With ranks it also counts the sign(scale) * dot that are not <= the positive's: NaN counts.
  // Unless kept is null, E goes there too, with rows kept_stride apart, up to whole vectors and groups of rows.
  void (*exp_sums)(const TileInput<T>& in, T shift, T* row_sums, T* column_sums, const Ranks<T>* ranks, T* kept,
                   int64_t kept_stride);
  // tile[r][c] = E * (row_weights[r] + column_weights[c]), zero where excluded.
  void (*exp_weights)(const TileInput<T>& in, T shift, const T* row_weights, const T* column_weights, T* tile);
  // The same of kept pairs (m, n).
  void (*weigh_kept)(const T* kept, int64_t kept_stride, int64_t m, int64_t n, const T* row_weights,
                     const T* column_weights, T* tile);
  // With x = score + bias: adds log2(1 + 2^x) to softplus (m) and 1 / (1 + 2^-x) to sigmoid (m) where the mask does
  // not exclude the pair; ranks and kept, which gets the sigmoids, as above. sigmoid_weights: tile[r][c] =
  // row_weights[r] / (1 + 2^-x), zero where excluded.
  void (*softplus_sums)(const TileInput<T>& in, T bias, T* softplus, T* sigmoid, const Ranks<T>* ranks, T* kept,
                        int64_t kept_stride);
  void (*sigmoid_weights)(const TileInput<T>& in, T bias, const T* row_weights, T* tile);

  // add_rows: out (m, width) += tile (m, k) * b (k, width). add_columns: out (n, width) += transposed tile (k, n) * b.
  // width is a multiple of the lanes of a vector.
  void (*add_rows)(const T* tile, int64_t m, int64_t k, const T* b, int64_t b_stride, int64_t width, T* out);
  void (*add_columns)(const T* tile, int64_t n, int64_t k, const T* b, int64_t b_stride, int64_t width, T* out);

  // Online softmax down the columns of a tile of dots (m, n), with score = magnitude * dot. Raises maxima (n) to the
  // largest scores and overwrites each dot with exp2(score - maximum). sums (n) gets the sums of this tile, and
  // factors (n) exp2(old maximum - new maximum): what was summed before must be multiplied by it.
  // Returns whether any maximum rose, that is, whether any factor is not 1.
  bool (*online_columns)(T* tile, int64_t m, int64_t n, T magnitude, T* maxima, T* sums, T* factors);
  // Overwrites each dot with exp2(score - log_sums[c]) * weights[c]. Unless row_weights is null, adds
  // exp2(score - row_log_sums[r]) * row_weights[r] to it.
  void (*softmax_weights)(T* tile, int64_t m, int64_t n, T magnitude, const T* log_sums, const T* weights,
                          const T* row_log_sums, const T* row_weights);
  // tile[r][c] = value where the mask's ids exclude a pair.
  void (*exclude_ids)(const Mask<T>& mask, T* tile, int64_t m, int64_t n, T value);
  // Adds to counts[c] how many dots of column c are not <= thresholds[c]: NaN counts.
  void (*count_columns)(const T* tile, int64_t m, int64_t n, const T* thresholds, int64_t* counts);
};

template <typename T>
const Kernels<T>& kernels();

// The names of the level in use and of all levels that this processor can run.
const char* simd_level();
const char* simd_available();

}  // namespace ssl_fast
