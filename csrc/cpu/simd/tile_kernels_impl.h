// The vector kernels, compiled once for each SIMD level. BYTES is the width of a vector, ROWS x VECTORS the block of a
// tile that stays in registers, and FUSED says whether the level multiplies and adds with one rounding.
// tile_kernels.h says what each kernel does.
#include "vectors.h"

// Adds to the micro-kernel's accumulators the products of a and b over `steps` values of k: at each step ROWS scalars
// of a with V vectors of b. Scalar r of step k is a[k * a_stride + r] if ByColumn, else a[r * a_stride + k]. Each entry
// is one chain of sums in the order of k.
template <typename T, int V, bool ByColumn>
static inline __attribute__((always_inline)) void multiply(const T* a, int64_t a_stride, const T* b, int64_t b_stride,
                                                           int64_t steps, Vec<T> (&acc)[ROWS][V]) {
  for (int64_t k = 0; k < steps; k++) {
    Vec<T> bv[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) bv[v] = load(b + k * b_stride + v * kLanes<T>);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      const T x = ByColumn ? a[k * a_stride + r] : a[r * a_stride + k];
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) acc[r][v] += x * bv[v];
    }
  }
}

template <typename T>
constexpr int64_t kGroup = VECTORS * kLanes<T>;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

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
static T normalize_backward(const T* u, T* du, int64_t dim, T inverse_norm) {
  const T along = sum_products(u, du, dim);
  const T projected = inverse_norm < T(1 / kEps) ? along : T(0);
  for (int64_t d = 0; d < dim; d++) du[d] = (du[d] - u[d] * projected) * inverse_norm;
  return along;
}

// a * b + c, with one rounding exactly where the compiler contracts the sums of a tile to one. FUSED is set by hand,
// because g++ 12 does not define __FMA__ for a target that a pragma sets.
#if FUSED
static inline float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline double multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
static inline float multiply_add(float a, float b, float c) { return a * b + c; }
static inline double multiply_add(double a, double b, double c) { return a * b + c; }
#endif

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
static void pack(const T* rows, int64_t row_stride, int64_t n, int64_t dim, T* columns) {
  for (int64_t first = 0; first < n; first += kGroup<T>) {
    const int64_t count = least(kGroup<T>, n - first);
    T* group = columns + first * dim;
    // Take one cache line of each row at a time: rows a power of two apart share few cache sets, and those cannot
    // hold a line of every row until all of it is used.
    constexpr int64_t line = 64 / sizeof(T);
    for (int64_t begin = 0; begin < dim; begin += line) {
      const int64_t end = least(begin + line, dim);
      for (int64_t c = 0; c < count; c++) {
        const T* in = rows + (first + c) * row_stride;
        for (int64_t d = begin; d < end; d++) group[d * kGroup<T> + c] = in[d];
      }
      for (int64_t d = begin; d < end; d++)
        for (int64_t c = count; c < kGroup<T>; c++) group[d * kGroup<T> + c] = 0;
    }
  }
}

// A longer dot is a sum of parts of this length, because one chain of 4096 terms would lose three digits.
constexpr int64_t kChain = 256;

template <typename T>
static void dots(const T* a, const T* b, int64_t row_stride, int64_t n, int64_t dim, T* out) {
  for (int64_t i = 0; i < n; i += ROWS) {
    T acc[ROWS] = {};
    int64_t place[ROWS];
    for (int r = 0; r < ROWS; r++) place[r] = least(i + r, n - 1) * row_stride;
    for (int64_t first = 0; first < dim; first += kChain) {
      T part[ROWS] = {};
      for (int64_t d = first; d < least(first + kChain, dim); d++)
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) part[r] = multiply_add(a[place[r] + d], b[place[r] + d], part[r]);
      for (int r = 0; r < ROWS; r++) acc[r] += part[r];
    }
    for (int r = 0; r < ROWS && i + r < n; r++) out[i + r] = acc[r];
  }
}

// Calls use(first row, first column, acc) for each block of ROWS rows and V vectors of columns, acc their dots.
template <typename T, int V, class Use>
static inline __attribute__((always_inline)) void score_group(const TileInput<T>& in, int64_t column, const Use& use) {
  const T* group = in.columns + column / kGroup<T> * kGroup<T> * in.dim + column % kGroup<T>;
  for (int64_t row = 0; row < in.m; row += ROWS) {
    Vec<T> acc[ROWS][V] = {};
    const T* rows = in.rows + row * in.row_stride;
    multiply<T, V, false>(rows, in.row_stride, group, kGroup<T>, least(kChain, in.dim), acc);
    for (int64_t d = kChain; d < in.dim; d += kChain) {
      Vec<T> part[ROWS][V] = {};
      multiply<T, V, false>(rows + d, in.row_stride, group + d * kGroup<T>, kGroup<T>, least(kChain, in.dim - d), part);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) acc[r][v] += part[r][v];
    }
    use(row, column, acc);
  }
}

// The same for all blocks of a tile: full groups of columns, then the last ones with as few vectors as hold them.
template <typename T, class Use>
static inline __attribute__((always_inline)) void each_block(const TileInput<T>& in, const Use& use) {
  int64_t column = 0;
  for (; column + kGroup<T> <= in.n; column += kGroup<T>) score_group<T, VECTORS>(in, column, use);
  const int64_t vectors = (in.n - column + kLanes<T> - 1) / kLanes<T>;
  if (vectors == 1) score_group<T, 1>(in, column, use);
  if (vectors == 2) score_group<T, 2>(in, column, use);
  if (vectors >= 3) score_group<T, VECTORS>(in, column, use);
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

// The lanes of a row from this column on that are inside the tile and not excluded.
template <typename T>
static inline IntVec<T> kept_lanes(const TileInput<T>& in, int64_t row, int64_t column) {
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
  for (int r = 0; r < ROWS; r++)
    for (int v = 0; v < V; v++) acc[r][v] = keep<T>(kept_lanes(in, row + r, column + v * kLanes<T>), acc[r][v]);
}

// Counts, for the rows and the columns of one block of dots, those that are not <= the positive's: NaN counts.
template <typename T, int V>
static inline void count_above(const TileInput<T>& in, const Ranks<T>& ranks, int64_t row, int64_t column,
                               const Vec<T> (&dots)[ROWS][V]) {
  const T sign = in.scale < 0 ? T(-1) : T(1);
  for (int v = 0; v < V; v++) {
    const int64_t first = column + v * kLanes<T>;
    T thresholds[kLanes<T>] = {};
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

template <typename T>
static void exp_sums(const TileInput<T>& in, T shift, T* row_sums, T* column_sums, const Ranks<T>* ranks) {
  Vec<T> rows[kTile + ROWS] = {};
  T columns[kTile + VECTORS * kLanes<T>] = {};
  each_block<T>(in, [&](int64_t row, int64_t column, auto& acc) {
    constexpr int V = sizeof(acc[0]) / sizeof(acc[0][0]);
    if (ranks) count_above<T, V>(in, *ranks, row, column, acc);
    exponentials<T, V>(in, shift, row, column, acc);
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

// out (count, V vectors of width) += A (count, steps) * b (steps, width), where A is the tile or, ByColumn, its
// transpose.
template <typename T, int V, bool ByColumn>
static void add_block(const T* tile, int64_t count, int64_t steps, const T* b, int64_t b_stride, int64_t width,
                      T* out) {
  for (int64_t row = 0; row < count; row += ROWS) {
    Vec<T> acc[ROWS][V] = {};
    multiply<T, V, ByColumn>(ByColumn ? tile + row : tile + row * kTile, kTile, b, b_stride, steps, acc);
    const int rows = int(least(ROWS, count - row));
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) {
        T* place = out + (row + r) * width + v * kLanes<T>;
        store<T>(place, load(place) + acc[r][v]);
      }
  }
}

template <typename T, bool ByColumn>
static void add_product(const T* tile, int64_t count, int64_t steps, const T* b, int64_t b_stride, int64_t width,
                        T* out) {
  int64_t left = width / kLanes<T>;
  int64_t d = 0;
  while (left > 0) {
    // Of four vectors take 2 and 2: with 3 and 1 the second block would leave registers unused.
    const int64_t take = left >= VECTORS && left != VECTORS + 1 ? VECTORS : least(left, 2);
    if (take == 1) add_block<T, 1, ByColumn>(tile, count, steps, b + d, b_stride, width, out + d);
    if (take == 2) add_block<T, 2, ByColumn>(tile, count, steps, b + d, b_stride, width, out + d);
    if (take == VECTORS) add_block<T, VECTORS, ByColumn>(tile, count, steps, b + d, b_stride, width, out + d);
    left -= take;
    d += take * kLanes<T>;
  }
}

template <typename T>
static void add_rows(const T* tile, int64_t m, int64_t k, const T* b, int64_t b_stride, int64_t width, T* out) {
  add_product<T, false>(tile, m, k, b, b_stride, width, out);
}

template <typename T>
static void add_columns(const T* tile, int64_t n, int64_t k, const T* b, int64_t b_stride, int64_t width, T* out) {
  add_product<T, true>(tile, n, k, b, b_stride, width, out);
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
                                      softplus_sums<T>,
                                      sigmoid_weights<T>,
                                      add_rows<T>,
                                      add_columns<T>,
                                      online_columns<T>,
                                      softmax_weights<T>,
                                      exclude_ids<T>,
                                      count_columns<T>};
