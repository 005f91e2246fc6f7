// The vector kernels, compiled once for each SIMD level. BYTES is the width of a vector, ROWS x VECTORS the block of a
// tile that stays in registers, and FUSED says whether the level multiplies and adds with one rounding.
// tile_kernels.h says what each kernel does.
#include "vectors.h"

#include "products.h"

template <typename T>
static T max_abs(const T* x, int64_t dim) {
  T largest = 0;
  for (int64_t d = 0; d < dim; d++) {
    const T size = x[d] < 0 ? -x[d] : x[d];
    largest = size > largest ? size : largest;
  }
  return largest;
}

template <typename T>
static T sum_products(const T* a, const T* b, int64_t dim) {
  Vec<T> acc[4] = {};
  int64_t d = 0;
  for (; d + 4 * kLanes<T> <= dim; d += 4 * kLanes<T>)
    for (int v = 0; v < 4; v++) acc[v] += load(a + d + v * kLanes<T>) * load(b + d + v * kLanes<T>);
  for (; d + kLanes<T> <= dim; d += kLanes<T>) acc[0] += load(a + d) * load(b + d);
  T sum = sum_lanes<T>((acc[0] + acc[1]) + (acc[2] + acc[3]));
  for (; d < dim; d++) sum += a[d] * b[d];
  return sum;
}

template <typename T>
static void multiply_row(const T* x, T factor, T* out, int64_t dim) {
  int64_t d = 0;
  for (; d + kLanes<T> <= dim; d += kLanes<T>) store<T>(out + d, load(x + d) * factor);
  for (; d < dim; d++) out[d] = x[d] * factor;
}

static inline float root(float x) { return __builtin_sqrtf(x); }
static inline double root(double x) { return __builtin_sqrt(x); }

template <typename T>
static bool finite(const T* x, int64_t dim) {
  // 0 * NaN and 0 * Inf are NaN, and every other product is 0.
  Vec<T> acc[2] = {};
  int64_t d = 0;
  for (; d + 2 * kLanes<T> <= dim; d += 2 * kLanes<T>)
    for (int v = 0; v < 2; v++) acc[v] += load(x + d + v * kLanes<T>) * T(0);
  T zero = sum_lanes<T>(acc[0] + acc[1]);
  for (; d < dim; d++) zero += x[d] * T(0);
  return zero == 0;
}

template <typename T>
static T normalize(const T* x, T* u, int64_t dim) {
  const T squares = sum_products(x, x, dim);
  const T huge = sizeof(T) == 4 ? T(1e38) : T(1e300);
  if (squares < huge) {
    const T norm = root(squares);
    const T inverse = norm > T(kEps) ? T(1) / norm : T(1 / kEps);
    multiply_row(x, inverse, u, dim);
    return inverse;
  }
  // The squares overflow, or the row holds Inf or NaN. In the second case the row becomes NaN with low bits of zero,
  // as exp2v needs it.
  if (!finite(x, dim)) {
    for (int64_t d = 0; d < dim; d++) u[d] = T(__builtin_nanf(""));
    return T(__builtin_nanf(""));
  }
  const T largest = max_abs(x, dim);
  for (int64_t d = 0; d < dim; d++) u[d] = x[d] / largest;
  const T inverse = T(1) / root(sum_products(u, u, dim));
  multiply_row(u, inverse, u, dim);
  return inverse / largest;
}

template <typename T>
static T normalize_backward(const T* u, const T* d, T factor, int64_t dim, T inverse_norm, T* dx) {
  const T along = factor * sum_products(u, d, dim);
  const T projected = inverse_norm < T(1 / kEps) ? along : T(0);
  int64_t k = 0;
  for (; k + kLanes<T> <= dim; k += kLanes<T>)
    store<T>(dx + k, (load(d + k) * factor - load(u + k) * projected) * inverse_norm);
  for (; k < dim; k++) dx[k] = (d[k] * factor - u[k] * projected) * inverse_norm;
  return along;
}

template <typename T>
static void average(T* t, const T* s, int64_t n, T momentum, T rest) {
  constexpr int64_t step = 4 * kLanes<T>;
  int64_t i = 0;
  for (; i + step <= n; i += step) {
    // The hardware's prefetcher starts anew in each stretch, so these lines would come late.
    __builtin_prefetch(t + i + 16 * step, 1);
    __builtin_prefetch(s + i + 16 * step);
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) {
      T* place = t + i + v * kLanes<T>;
      store<T>(place, load(place) * momentum + load(s + i + v * kLanes<T>) * rest);
    }
  }
  for (; i < n; i++) t[i] = multiply_add(t[i], momentum, s[i] * rest);
}

template <typename T>
static void scores(const TileInput<T>& in, T* tile) {
  each_block<T>(in, [&](int64_t row, int64_t column, auto& acc) {
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
      for (int v = 0; v < int(sizeof(acc[0]) / sizeof(acc[0][0])); v++)
        store<T>(tile + (row + r) * kTile + column + v * kLanes<T>, acc[r][v] * in.scale);
  });
}

// Whether a block lies inside the tile and holds no excluded pair: then nothing in it is masked.
template <typename T, int V>
static inline bool is_whole(const TileInput<T>& in, int64_t row, int64_t column) {
  bool whole = row + ROWS <= in.m && column + V * kLanes<T> <= in.n && !in.mask.row_ids;
  for (const int64_t offset : in.mask.excluded.offsets)
    whole &= row + offset + ROWS <= column || row + offset >= column + V * kLanes<T>;
  return whole;
}

// The lanes of a row from this column on that are inside the tile and not excluded. Few blocks need them: inlined, this
// would take registers from the sums of all.
template <typename T>
static __attribute__((noinline)) IntVec<T> kept_lanes(const TileInput<T>& in, int64_t row, int64_t column) {
  const int64_t end = row < in.m ? in.n - column : 0;
  IntVec<T> kept = iota<T>() < Int<T>(end);
  for (const int64_t offset : in.mask.excluded.offsets) {
    const int64_t out = row + offset - column;
    if (out >= 0 && out < kLanes<T>) kept &= iota<T>() != Int<T>(out);
  }
  if (in.mask.row_ids && row < in.m) {
    const IntVec<T> equal = load_ids<T>(in.mask.column_ids + column) == in.mask.row_ids[row];
    kept &= in.mask.equal_ids ? equal : ~equal;
  }
  return kept;
}

// Turns acc into E = exp2(score - shift), zero beyond the edges and where excluded.
template <typename T, int V>
static inline __attribute__((always_inline)) void exponentials(const TileInput<T>& in, T shift, int64_t row,
                                                               int64_t column, Vec<T> (&acc)[ROWS][V]) {
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) acc[r][v] = exp2v<T>(acc[r][v] * in.scale - shift);
  if (is_whole<T, V>(in, row, column)) return;
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) acc[r][v] = keep<T>(kept_lanes(in, row + r, column + v * kLanes<T>), acc[r][v]);
}

// Counts, for the rows and the columns of one block of dots, those that are not <= the positive's: NaN counts.
template <typename T, int V>
static __attribute__((noinline)) void count_block(const TileInput<T>& in, const Ranks<T>& ranks, int64_t row,
                                                  int64_t column, const Vec<T> (&dots)[ROWS][V]) {
  const T sign = in.scale < 0 ? T(-1) : T(1);
  for (int v = 0; v < V; v++) {
    const int64_t first = column + v * kLanes<T>;
    T thresholds[kLanes<T>] = {};
    if (ranks.column_counts)
      for (int i = 0; i < kLanes<T> && first + i < in.n; i++) thresholds[i] = ranks.column_positives[first + i];
    IntVec<T> down{};
    for (int r = 0; r < ROWS && row + r < in.m; r++) {
      const IntVec<T> kept = kept_lanes(in, row + r, first);
      const Vec<T> dot = dots[r][v] * sign;
      const IntVec<T> above = kept & ~(dot <= splat<T>(ranks.row_positives[row + r]));
      for (int i = 0; i < kLanes<T>; i++) ranks.row_counts[row + r] -= above[i];  // a lane that is true is -1
      down += kept & ~(dot <= load(thresholds));
    }
    if (!ranks.column_counts) continue;
    for (int i = 0; i < kLanes<T> && first + i < in.n; i++) ranks.column_counts[first + i] -= down[i];
  }
}

// The same unless ranks is null, on a copy: acc itself would have to be in memory for a function to see it.
template <typename T, int V>
static inline __attribute__((always_inline)) void count_above(const TileInput<T>& in, const Ranks<T>* ranks,
                                                              int64_t row, int64_t column,
                                                              const Vec<T> (&acc)[ROWS][V]) {
  if (!ranks) return;
  Vec<T> dots[ROWS][V];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) dots[r][v] = acc[r][v];
  count_block<T, V>(in, *ranks, row, column, dots);
}

// Stores a block with its rows `stride` apart.
template <typename T, int V>
static inline __attribute__((always_inline)) void store_block(const Vec<T> (&acc)[ROWS][V], T* out, int64_t stride) {
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) store<T>(out + r * stride + v * kLanes<T>, acc[r][v]);
}

template <typename T>
static void exp_sums(const TileInput<T>& in, T shift, T* row_sums, T* column_sums, const Ranks<T>* ranks, T* kept,
                     int64_t kept_stride) {
  Vec<T> rows[kTile + ROWS] = {};
  T columns[kTile + VECTORS * kLanes<T>] = {};
  each_block<T>(in, [&](int64_t row, int64_t column, auto& acc) {
    constexpr int V = sizeof(acc[0]) / sizeof(acc[0][0]);
    count_above<T, V>(in, ranks, row, column, acc);
    exponentials<T, V>(in, shift, row, column, acc);
    if (kept) store_block<T, V>(acc, kept + row * kept_stride + column, kept_stride);
    Vec<T> down[V] = {};
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      Vec<T> across{};
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) {
        across += acc[r][v];
        down[v] += acc[r][v];
      }
      rows[row + r] += across;
    }
    for (int v = 0; v < V; v++) {
      T* place = columns + column + v * kLanes<T>;
      store<T>(place, load(place) + down[v]);
    }
  });
  for (int64_t r = 0; r < in.m; r++) row_sums[r] += sum_lanes<T>(rows[r]);
  if (column_sums)
    for (int64_t c = 0; c < in.n; c++) column_sums[c] += columns[c];
}

template <typename T>
static void exp_weights(const TileInput<T>& in, T shift, const T* row_weights, const T* column_weights, T* tile) {
  T padded[kTile + VECTORS * kLanes<T>] = {};
  T rows[kTile + ROWS] = {};
  for (int64_t c = 0; c < in.n; c++) padded[c] = column_weights[c];
  for (int64_t r = 0; r < in.m; r++) rows[r] = row_weights[r];
  each_block<T>(in, [&](int64_t row, int64_t column, auto& acc) {
    constexpr int V = sizeof(acc[0]) / sizeof(acc[0][0]);
    exponentials<T, V>(in, shift, row, column, acc);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
      for (int v = 0; v < V; v++)
        store<T>(tile + (row + r) * kTile + column + v * kLanes<T>,
                 acc[r][v] * (load(padded + column + v * kLanes<T>) + rows[row + r]));
  });
}

template <typename T>
static void weigh_kept(const T* kept, int64_t kept_stride, int64_t m, int64_t n, const T* row_weights,
                       const T* column_weights, T* tile) {
  T padded[kTile + kLanes<T>] = {};
  for (int64_t c = 0; c < n; c++) padded[c] = column_weights[c];
  for (int64_t r = 0; r < m; r++)
    for (int64_t c = 0; c < n; c += kLanes<T>)
      store<T>(tile + r * kTile + c, load(kept + r * kept_stride + c) * (load(padded + c) + row_weights[r]));
}

#include "sigmoid_tiles.h"
#include "softmax_columns.h"

template <typename T>
static constexpr Kernels<T> kTable = {kLanes<T>,
                                      kGroup<T>,
                                      normalize<T>,
                                      finite<T>,
                                      normalize_backward<T>,
                                      average<T>,
                                      pack<T>,
                                      dots<T>,
                                      scores<T>,
                                      exp_sums<T>,
                                      exp_weights<T>,
                                      weigh_kept<T>,
                                      softplus_sums<T>,
                                      sigmoid_weights<T>,
                                      add_rows<T>,
                                      add_columns<T>,
                                      online_columns<T>,
                                      softmax_weights<T>,
                                      exclude_ids<T>,
                                      count_columns<T>};
