// All queries against all their keys in tiles, once, with a running maximum: right at any temperature and for rows of
// any norm. A pass keeps of each query the maximum score, the sum and, where asked, the weighted sum of the keys.
// Tiles have keys as rows, so that keys are read where they lie, and queries as columns, so that maxima and sums are
// vectors.
#pragma once
#include "kept_pairs.h"
#include "scale.h"
#include "unit_rows.h"

#include <cmath>
#include <vector>

namespace ssl_fast {

// Up to kTile keys as rows of T.
template <typename T>
struct KeyBlock {
  const T* rows;
  int64_t stride;
};

// Keys (count, dim), block by block: in place where they can be read so, else converted (and normalised) into scratch.
template <typename T>
class Keys {
 public:
  Keys(const at::Tensor& x, bool normalize)
      : reader_(x), normalize_(normalize), width(round_up(x.size(1), kernels<T>().lanes)), count(x.size(0)) {}

  static at::Tensor scratch(int64_t width) { return new_zeros<T>({kTile + kTileSlack, width}); }

  // Keys first .. first + n. inverse_norms (n), unless null, gets 1 / max(|x|, eps).
  KeyBlock<T> block(int64_t first, int64_t n, T* scratch, T* inverse_norms = nullptr) const {
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

// The dots of keys (rows) and queries (columns) that are kept, if they are: the first pass writes them, others read
// them, perhaps as those of queries and keys.
template <typename T>
struct KeptDots {
  KeptPairs<T> pairs;
  bool read = false, transposed = false;

  static KeptDots written(const KeptPairs<T>& pairs) { return {pairs, false, false}; }
  static KeptDots read_from(const KeptPairs<T>& pairs, bool transposed = false) {
    return {pairs, bool(pairs), transposed};
  }

  void write(const T* tile, int64_t row, int64_t column, int64_t m, int64_t n) const {
    for (int64_t r = 0; r < m; r++) std::copy_n(tile + r * kTile, n, pairs.tile(row + r, column));
  }
  void read_into(T* tile, int64_t row, int64_t column, int64_t m, int64_t n) const {
    if (!transposed) {
      for (int64_t r = 0; r < m; r++) std::copy_n(pairs.tile(row + r, column), n, tile + r * kTile);
      return;
    }
    constexpr int64_t square = 64 / sizeof(T);  // as many numbers as a cache line has
    for (int64_t c = 0; c < n; c += square)
      for (int64_t first = 0; first < m; first += square)
        for (int64_t k = c; k < std::min(n, c + square); k++)
          for (int64_t r = first; r < std::min(m, first + square); r++)
            tile[r * kTile + k] = *pairs.tile(column + k, row + r);
  }
};

// Queries `first` .. `first + n` of unit rows, packed as the columns of tiles.
template <typename T>
struct QueryBlock {
  const T* columns;
  int64_t first, n, dim;
  T sign, magnitude;  // of log2_scale; tiles hold sign * dot
  Mask<T> mask;       // of all keys (rows) and all queries (columns)
  KeptDots<T> kept;   // as the tiles hold them
};

// Fills the tile (m keys from first_key on, queries) with sign * dot.
template <typename T>
void fill_dots(const QueryBlock<T>& queries, const KeyBlock<T>& keys, int64_t first_key, int64_t m, T* tile) {
  if (queries.kept.read) return queries.kept.read_into(tile, first_key, queries.first, m, queries.n);
  kernels<T>().scores({keys.rows, keys.stride, queries.columns, m, queries.n, queries.dim, queries.sign}, tile);
  if (queries.kept.pairs) queries.kept.write(tile, first_key, queries.first, m, queries.n);
}

// Puts `value` where a pair of the tile does not count.
template <typename T>
void exclude(const Mask<T>& mask, T* tile, int64_t m, int64_t n, T value) {
  for (const int64_t offset : mask.excluded.offsets)
    for (int64_t r = std::max<int64_t>(0, -offset); r < m && r + offset < n; r++) tile[r * kTile + r + offset] = value;
  if (mask.row_ids) kernels<T>().exclude_ids(mask, tile, m, n, value);
}

// The running state of a block of queries. Scores are in powers of two.
template <typename T>
struct OnlineSoftmax {
  T maxima[kTile], tile_sums[kTile], factors[kTile];
  // float64: beside one large term, thousands of tiles of small ones would be rounded away.
  double sums[kTile] = {};

  // Maxima start at the lowest finite number: from -Inf, where no pair has counted so far, a difference would be NaN.
  OnlineSoftmax() { std::fill_n(maxima, kTile, std::numeric_limits<T>::lowest()); }

  // Takes in keys begin .. end. weighted (n, keys.width), unless null, gathers the sum of exp2(score - maximum) * key.
  // counts with thresholds, unless null, count the keys whose sign * dot is above the threshold.
  void add(const QueryBlock<T>& queries, const Keys<T>& keys, int64_t begin, int64_t end, T* tile, T* scratch,
           T* weighted, const T* thresholds, int64_t* counts) {
    const auto& kernel = kernels<T>();
    for (int64_t first = begin; first < end; first += kTile) {
      const int64_t n = std::min(kTile, end - first);
      const KeyBlock<T> block = keys.block(first, n, scratch);
      fill_dots(queries, block, first, n, tile);
      exclude(queries.mask.of_tile(first, queries.first), tile, n, queries.n, -std::numeric_limits<T>::infinity());
      if (counts) kernel.count_columns(tile, n, queries.n, thresholds, counts);
      const bool rose = kernel.online_columns(tile, n, queries.n, queries.magnitude, maxima, tile_sums, factors);
      for (int64_t c = 0; c < queries.n; c++) sums[c] = sums[c] * factors[c] + tile_sums[c];
      if (!weighted) continue;
      if (rose)
        for (int64_t c = 0; c < queries.n; c++)
          for (int64_t d = 0; d < keys.width; d++) weighted[c * keys.width + d] *= factors[c];
      kernel.add_columns(tile, queries.n, n, block.rows, block.stride, keys.width, weighted);
    }
  }
};

// One thread's memory for tiles of queries and keys.
template <typename T>
struct Workspace {
  const at::Tensor tile_, scratch_, columns_;
  T *tile, *scratch, *columns;
  explicit Workspace(const UnitRows<T>& query)
      : tile_(new_empty<T>({kTile + kTileSlack, kTile})),
        scratch_(Keys<T>::scratch(query.width)),
        columns_(new_empty<T>({kTile, query.dim})),
        tile(tile_.template data_ptr<T>()),
        scratch(scratch_.template data_ptr<T>()),
        columns(columns_.template data_ptr<T>()) {}
};

// Where there are few queries, their keys are split into pieces, so that up to so many threads have work. The shapes
// alone decide on the pieces.
constexpr int64_t kPiecesWanted = 32;

// Queries and their keys: shared by all queries, (M, D), or with `paired` a group for each query, (N, M, D).
template <typename T>
struct QueryKeyTiles {
  const UnitRows<T>& query;
  const at::Tensor key_rows;
  const bool paired, normalize_keys;
  const Scale scale;
  const Mask<T> mask;       // of keys (rows) and queries (columns)
  const T sign, magnitude;  // of the scale as the tiles use it
  const KeptDots<T> kept;   // of shared keys

  QueryKeyTiles(const UnitRows<T>& query, const at::Tensor& key_rows, bool normalize_keys, const Scale& scale,
                const Mask<T>& mask, const KeptDots<T>& kept = {})
      : query(query),
        key_rows(key_rows),
        paired(key_rows.defined() && key_rows.dim() == 3),
        normalize_keys(normalize_keys),
        scale(scale),
        mask(mask),
        sign(T(scale.sign())),
        magnitude(sign * T(scale.log2_scale)),
        kept(kept) {
    if (kept.pairs && !kept.read) kept.pairs.clear_padding(key_count(), n());
  }

  // Keys that are unit rows already, or rows to be taken as they are.
  static QueryKeyTiles of_unit_rows(const UnitRows<T>& query, const UnitRows<T>& key, const Scale& scale,
                                    const Mask<T>& mask, const KeptDots<T>& kept) {
    return {query, key.rows.slice(0, 0, key.n), false, scale, mask, kept};
  }

  int64_t n() const { return query.n; }
  int64_t key_count() const { return key_rows.size(-2); }
  int64_t key_blocks() const { return (key_count() + kTile - 1) / kTile; }
  int64_t groups() const { return paired ? n() : 1; }
  Keys<T> keys(int64_t group) const { return {paired ? key_rows.select(0, group) : key_rows, normalize_keys}; }

  // Queries of a block: whole groups of columns where there are several blocks.
  int64_t query_block() const {
    if (paired) return 1;
    const int64_t blocks = (n() + kTile - 1) / kTile;
    return std::min(kTile, round_up((n() + blocks - 1) / blocks, kernels<T>().column_group));
  }
  int64_t query_blocks() const { return (n() + query_block() - 1) / query_block(); }

  // Query block b packed as columns, into `columns` (kTile * dim).
  QueryBlock<T> queries(int64_t b, T* columns) const {
    const int64_t first = b * query_block(), count = std::min(query_block(), n() - first);
    if (!kept.read) kernels<T>().pack(query.row(first), query.width, count, query.dim, columns);
    return {columns, first, count, query.dim, sign, magnitude, mask, kept};
  }

  int64_t pieces() const {
    const int64_t wanted = (kPiecesWanted + query_blocks() - 1) / query_blocks();
    return std::min(wanted, (key_count() + 4 * kTile - 1) / (4 * kTile));
  }

  // Calls use(query block, piece, first key, last key + 1, workspace) for every piece of every query block's keys.
  template <typename Use>
  void each_piece(const Use& use) const {
    const int64_t count = pieces(), keys = key_count(), length = (keys + count - 1) / count;
    at::parallel_for(0, query_blocks() * count, grain(4. * query_block() * length * query.dim),
                     [&](int64_t begin, int64_t end) {
                       Workspace<T> space(query);
                       for (int64_t item = begin; item < end; item++) {
                         const int64_t piece = item % count, first = std::min(piece * length, keys);
                         use(item / count, piece, first, std::min(first + length, keys), space);
                       }
                     });
  }
};

// The online softmax of all queries over their keys, in pieces that are merged in their order.
template <typename T>
struct PartialSums {
  const int64_t n, width, pieces;
  at::Tensor weighted;          // (pieces, n, width): sums of exp2(score - maximum) * key; empty unless asked for
  std::vector<T> maxima;        // (pieces, n)
  std::vector<double> sums;     // (pieces, n): of exp2(score - maximum)
  std::vector<int64_t> counts;  // (pieces, n): of keys above the query's threshold; empty without thresholds

  // thresholds: of each query, sign(s) * its positive's similarity; empty where nothing is counted.
  PartialSums(const QueryKeyTiles<T>& tiles, bool with_weighted, const std::vector<T>& thresholds)
      : n(tiles.n()),
        width(tiles.query.width),
        pieces(tiles.pieces()),
        weighted(new_zeros<T>({with_weighted ? pieces : 0, n, width})),
        maxima(pieces * n),
        sums(pieces * n),
        counts(thresholds.empty() ? 0 : pieces * n) {
    tiles.each_piece([&](int64_t block, int64_t piece, int64_t begin, int64_t end, Workspace<T>& space) {
      const QueryBlock<T> queries = tiles.queries(block, space.columns);
      const int64_t place = piece * n + queries.first;
      T block_thresholds[kTile] = {};
      if (!thresholds.empty()) std::copy_n(thresholds.begin() + queries.first, queries.n, block_thresholds);
      OnlineSoftmax<T> softmax;
      softmax.add(queries, tiles.keys(tiles.paired ? block : 0), begin, end, space.tile, space.scratch,
                  with_weighted ? weighted.template data_ptr<T>() + place * width : nullptr, block_thresholds,
                  counts.empty() ? nullptr : counts.data() + place);
      std::copy_n(softmax.maxima, queries.n, maxima.begin() + place);
      std::copy_n(softmax.sums, queries.n, sums.begin() + place);
    });
  }

  int64_t rank(int64_t i) const {
    int64_t count = 0;
    for (int64_t piece = 0; piece < pieces; piece++) count += counts[piece * n + i];
    return count;
  }

  // log2 of the sum of exp2(score) over the keys of query i; -Inf where the mask leaves it none.
  double log_sum(int64_t i) const {
    double highest = std::numeric_limits<T>::lowest(), sum = 0;
    for (int64_t piece = 0; piece < pieces; piece++) highest = std::max(highest, double(maxima[piece * n + i]));
    for (int64_t piece = 0; piece < pieces; piece++)
      if (sums[piece * n + i] != 0) sum += sums[piece * n + i] * std::exp2(maxima[piece * n + i] - highest);
    // All keys were masked. Our exp2 clamps to the smallest normal number, so the sum is tiny instead of 0.
    if (highest == std::numeric_limits<T>::lowest() && sum < 1) return -std::numeric_limits<double>::infinity();
    return highest + std::log2(sum);
  }

  // The softmax mean (dim) of the keys of query i, by the log2 of the whole sum, its positive's term included.
  void mean(int64_t i, double whole, T* out, int64_t dim) const {
    std::fill_n(out, dim, T(0));
    for (int64_t piece = 0; piece < pieces; piece++) {
      const T factor = T(std::exp2(maxima[piece * n + i] - whole));
      const T* part = weighted.template data_ptr<T>() + (piece * n + i) * width;
      for (int64_t d = 0; d < dim; d++) out[d] += factor * part[d];
    }
  }
};

}  // namespace ssl_fast
