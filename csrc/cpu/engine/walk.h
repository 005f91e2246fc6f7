// A block of queries walks once over many keys and keeps an online softmax: the running maximum,
// the sum Z and, when asked, the weighted sum of the keys (flash style). Tiles have keys as rows, so
// that keys are read where they lie, and queries as columns, so that maxima and sums are vectors.
#pragma once
#include "unit_rows.h"

#include <cmath>
#include <vector>

namespace ssl_fast {

// Keys as rows of T, block by block: in place where they can be read so, else converted (and
// normalised) into a scratch block.
template <typename T>
class Keys {
 public:
  Keys(const at::Tensor& x, bool normalize)
      : reader_(x), normalize_(normalize), width(round_up(x.size(1), kernels<T>().lanes)), count(x.size(0)) {}

  struct Block {
    const T* rows;
    int64_t stride;
  };

  static at::Tensor scratch(int64_t width) { return new_zeros<T>({kTile + kTileSlack, width}); }

  // Keys first .. first + n. inverse_norms (n), unless null, gets 1 / max(|x|, eps).
  Block block(int64_t first, int64_t n, T* scratch, T* inverse_norms = nullptr) const {
    // Whole vectors and whole groups of rows are read: in place only where those exist.
    const bool whole = reader_.dim == width && n % kTileSlack == 0;
    if (!normalize_ && whole && reader_.direct() && all_finite(first, n))
      return {reader_.pointer(first), reader_.row_stride()};
    for (int64_t i = 0; i < n; i++) {
      T* out = scratch + i * width;
      const T* row = reader_.row(first + i, out);
      if (normalize_) {
        const T inverse = kernels<T>().normalize(row, out, reader_.dim);
        if (inverse_norms) inverse_norms[i] = inverse;
      } else {
        copy_finite(row, out, reader_.dim);
      }
    }
    return {scratch, width};
  }

 private:
  bool all_finite(int64_t first, int64_t n) const {
    for (int64_t i = first; i < first + n; i++)
      if (!kernels<T>().finite(reader_.pointer(i), reader_.dim)) return false;
    return true;
  }

  const RowReader<T> reader_;
  const bool normalize_;

 public:
  const int64_t width, count;
};

// log2(1 + 2^x): the loss of a row, in powers of two, where x is the log2 of the sum over its
// negatives less its positive's score. Exact to the last digits for losses near 0.
inline double softplus2(double x) {
  return x > 0 ? x + std::log1p(std::exp2(-x)) * kLog2E : std::log1p(std::exp2(x)) * kLog2E;
}
// The negatives' share of the whole sum, 1 - P(positive), without the subtraction.
inline double negatives_share(double x) { return 1 / (1 + std::exp2(-x)); }

// The state of up to kTile queries on their walk. Scores are in powers of two. Maxima start at the
// lowest finite number: from -Inf, where all so far was left out, a difference would be NaN. Sums are
// float64: beside one large term, thousands of tiles of small ones would be rounded away.
template <typename T>
struct Softmax {
  T maxima[kTile], tile_sums[kTile], factors[kTile];
  double sums[kTile] = {};
  Softmax() { std::fill_n(maxima, kTile, std::numeric_limits<T>::lowest()); }
};

// Puts `value` where a tile's row and column leave each other out.
template <typename T>
void leave_out(const Mask<T>& mask, T* tile, int64_t m, int64_t n, T value) {
  for (const int64_t offset : mask.left_out.offsets)
    for (int64_t r = std::max<int64_t>(0, -offset); r < m && r + offset < n; r++) tile[r * kTile + r + offset] = value;
  if (mask.row_ids) kernels<T>().leave_out_ids(mask, tile, m, n, value);
}

// What a walk is over: queries `first` .. `first + n` of unit rows packed as columns.
template <typename T>
struct Queries {
  const T* columns;
  int64_t first, n, dim;
  T sign, magnitude;  // of log2_scale; tiles hold sign * dot
  Mask<T> mask;     // of keys (rows) and queries (columns)
};

// Walks keys begin .. end. weighted (n, keys.width), unless null, gathers the sum of
// exp2(score - maximum) * key. counts with thresholds, unless null, count the keys whose sign * dot is
// above the positive's.
template <typename T>
void walk(const Queries<T>& queries, const Keys<T>& keys, int64_t begin, int64_t end, T* tile, T* scratch,
          Softmax<T>& softmax, T* weighted, const T* thresholds, int64_t* counts) {
  const auto& kernel = kernels<T>();
  for (int64_t first = begin; first < end; first += kTile) {
    const int64_t n = std::min(kTile, end - first);
    const auto block = keys.block(first, n, scratch);
    kernel.scores({block.rows, block.stride, queries.columns, n, queries.n, queries.dim, queries.sign}, tile);
    leave_out(queries.mask.seen_from(first, queries.first), tile, n, queries.n, -std::numeric_limits<T>::infinity());
    if (counts) kernel.count_columns(tile, n, queries.n, thresholds, counts);
    const bool rose = kernel.online_columns(tile, n, queries.n, queries.magnitude, softmax.maxima, softmax.tile_sums,
                                            softmax.factors);
    for (int64_t c = 0; c < queries.n; c++)
      softmax.sums[c] = softmax.sums[c] * softmax.factors[c] + softmax.tile_sums[c];
    if (!weighted) continue;
    if (rose)
      for (int64_t c = 0; c < queries.n; c++)
        for (int64_t d = 0; d < keys.width; d++) weighted[c * keys.width + d] *= softmax.factors[c];
    kernel.add_columns(tile, queries.n, n, block.rows, block.stride, keys.width, weighted);
  }
}

}  // namespace ssl_fast
