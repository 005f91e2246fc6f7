// The vector kernels of the tile engine, one table of functions for each SIMD level.
//
// The level is chosen once, at load, from what the processor has; SSL_FAST_SIMD=plain|avx2|avx512
// forces a lower one (tests run each). Everything here is single threaded: who calls decides on
// threads, and fixes the order of sums by the shapes alone.
#pragma once
#include <cstdint>
#include <type_traits>

namespace ssl_fast {

constexpr double kEps = 1e-12;  // rows.EPS

// Leading dimension of a tile of scores, and the most rows or columns one may have. A multiple of
// every level's column group (48, 24, 12); not a power of two, which would crowd few cache sets.
constexpr int64_t kTile = 192;
// Rows of slack behind a tile: the last group of rows is computed whole.
constexpr int64_t kTileSlack = 8;

// Row i leaves out column i + offset, for each of these: itself and its partner. In no tile: kNowhere.
constexpr int64_t kNowhere = INT64_MIN / 2;
struct LeftOut {
  int64_t offsets[3] = {kNowhere, kNowhere, kNowhere};
  // The same as seen from rows and columns that begin at these.
  LeftOut seen_from(int64_t row, int64_t column) const {
    LeftOut out;
    for (int k = 0; k < 3; k++) out.offsets[k] = offsets[k] == kNowhere ? kNowhere : offsets[k] + row - column;
    return out;
  }
};

// What ids are to the vectors: integers as wide as T.
template <typename T>
using Id = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// The pairs of a matrix that count: those that are not left out and, where there are ids, whose ids
// differ (or with `same` are equal). Ids of columns are readable up to a whole group beyond the last.
template <typename T>
struct Mask {
  LeftOut left_out{};
  const Id<T>*row_ids = nullptr, *column_ids = nullptr;
  bool same = false;
  Mask seen_from(int64_t row, int64_t column) const {
    return {left_out.seen_from(row, column), row_ids ? row_ids + row : nullptr,
            column_ids ? column_ids + column : nullptr, same};
  }
};

// Rows (m, dim) against columns (n, dim) packed by pack(): scores = scale * <row, column>.
template <typename T>
struct TileInput {
  const T* rows;
  int64_t row_stride;
  const T* columns;
  int64_t m, n, dim;
  T scale;  // s * log2(e): scores are in powers of two
  Mask<T> mask{};
};

// For each row and, unless null, column: sign(scale) * its positive's dot, and the count of those above.
template <typename T>
struct Ranks {
  const T *row_positives, *column_positives;
  int64_t *row_counts, *column_counts;
};

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

  // tile[r][c] = scale * dot, whatever is left out.
  void (*scores)(const TileInput<T>& in, T* tile);
  // E = exp2(score - shift), zero where left out: adds E to row_sums (m) and, unless null, to
  // column_sums (n). With ranks it also counts the sign(scale) * dot that are not <= the positive's.
  void (*exp_sums)(const TileInput<T>& in, T shift, T* row_sums, T* column_sums, const Ranks<T>* ranks);
  // tile[r][c] = E * (row_weights[r] + column_weights[c]), zero where left out.
  void (*exp_weights)(const TileInput<T>& in, T shift, const T* row_weights, const T* column_weights, T* tile);
  // With x = score + bias: adds log2(1 + 2^x) to softplus (m) and 1 / (1 + 2^-x) to sigmoid (m), nothing where
  // left out; ranks as above. tile[r][c] = 1 / (1 + 2^-x) * row_weights[r], zero where left out.
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
  // tile[r][c] = value where the mask's ids leave a pair out.
  void (*leave_out_ids)(const Mask<T>& mask, T* tile, int64_t m, int64_t n, T value);
  // counts[c] += rows r of column c whose dot is not <= thresholds[c] (NaN counts).
  void (*count_columns)(const T* tile, int64_t m, int64_t n, const T* thresholds, int64_t* counts);
};

template <typename T>
const Kernels<T>& kernels();

// Names of the level in use and of all that this processor could run.
const char* simd_level();
const char* simd_available();

}  // namespace ssl_fast
