// The walk of all queries over all their keys, in pieces where there are few queries.
#pragma once
#include "walk.h"

namespace ssl_fast {

constexpr int64_t kUnitsWanted = 32;  // pieces of work, by the shapes alone, for up to that many threads

// Queries and the keys that they meet: shared by all, (M, D), or with `paired` (N, M, D) a group for each.
template <typename T>
struct Meeting {
  const UnitRows<T>& query;
  const at::Tensor key_rows;
  const bool paired, normalize_keys;
  const Scale scale;
  const Mask<T> mask;       // of keys (rows) and queries (columns)
  const T sign, magnitude;  // of the scale as the tiles use it

  Meeting(const UnitRows<T>& query, const at::Tensor& key_rows, bool normalize_keys, const Scale& scale,
          const Mask<T>& mask = {})
      : query(query),
        key_rows(key_rows),
        paired(key_rows.defined() && key_rows.dim() == 3),
        normalize_keys(normalize_keys),
        scale(scale),
        mask(mask),
        sign(T(scale.sign())),
        magnitude(sign * T(scale.log2_scale)) {}

  int64_t n() const { return query.n; }
  int64_t key_count() const { return key_rows.size(-2); }
  int64_t key_blocks() const { return (key_count() + kTile - 1) / kTile; }
  int64_t groups() const { return paired ? n() : 1; }
  Keys<T> keys(int64_t group) const { return {paired ? key_rows.select(0, group) : key_rows, normalize_keys}; }

  // Queries that walk together, whole groups of columns where there are several blocks.
  int64_t query_block() const {
    if (paired) return 1;
    const int64_t blocks = (n() + kTile - 1) / kTile;
    return std::min(kTile, round_up((n() + blocks - 1) / blocks, kernels<T>().column_group));
  }
  int64_t query_blocks() const { return (n() + query_block() - 1) / query_block(); }

  // Query block b packed as columns, into `columns` (kTile * dim).
  Queries<T> queries(int64_t b, T* columns) const {
    const int64_t first = b * query_block(), count = std::min(query_block(), n() - first);
    kernels<T>().pack(query.row(first), query.width, count, query.dim, columns);
    return {columns, first, count, query.dim, sign, magnitude, mask};
  }

  int64_t pieces() const {
    const int64_t wanted = (kUnitsWanted + query_blocks() - 1) / query_blocks();
    return std::min(wanted, (key_count() + 4 * kTile - 1) / (4 * kTile));
  }

  // Calls use(query block, piece, first key, last key + 1, workspace) for every piece of every block's keys.
  template <typename Use>
  void each_piece(const Use& use) const;
};

// One thread's memory.
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

template <typename T>
template <typename Use>
void Meeting<T>::each_piece(const Use& use) const {
  const int64_t count = pieces(), keys = key_count(), length = (keys + count - 1) / count;
  at::parallel_for(0, query_blocks() * count, grain(4. * query_block() * length * query.dim),
                   [&](int64_t begin, int64_t end) {
                     Workspace<T> space(query);
                     for (int64_t unit = begin; unit < end; unit++) {
                       const int64_t piece = unit % count, first = std::min(piece * length, keys);
                       use(unit / count, piece, first, std::min(first + length, keys), space);
                     }
                   });
}

// What the pieces of the walk found, to be merged in their order.
template <typename T>
struct Walked {
  const int64_t n, width, pieces;
  at::Tensor weighted;  // (pieces, n, width), the sums of keys; empty unless asked for
  std::vector<T> maxima;
  std::vector<double> sums;
  std::vector<int64_t> counts;

  // thresholds: of each query, sign * its positive's similarity; empty where nothing is counted.
  Walked(const Meeting<T>& meeting, bool with_weighted, const std::vector<T>& thresholds)
      : n(meeting.n()),
        width(meeting.query.width),
        pieces(meeting.pieces()),
        weighted(new_zeros<T>({with_weighted ? pieces : 0, n, width})),
        maxima(pieces * n),
        sums(pieces * n),
        counts(thresholds.empty() ? 0 : pieces * n) {
    meeting.each_piece([&](int64_t block, int64_t piece, int64_t begin, int64_t end, Workspace<T>& space) {
      const Queries<T> queries = meeting.queries(block, space.columns);
      const int64_t place = piece * n + queries.first;
      T own[kTile] = {};
      if (!thresholds.empty()) std::copy_n(thresholds.begin() + queries.first, queries.n, own);
      Softmax<T> softmax;
      walk<T>(queries, meeting.keys(meeting.paired ? block : 0), begin, end, space.tile, space.scratch, softmax,
              with_weighted ? weighted.template data_ptr<T>() + place * width : nullptr, own,
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

  // Merges the pieces of query i: log2 of the sum over the keys that it met.
  double log_sum(int64_t i) const {
    double highest = std::numeric_limits<T>::lowest(), sum = 0;
    for (int64_t piece = 0; piece < pieces; piece++) highest = std::max(highest, double(maxima[piece * n + i]));
    for (int64_t piece = 0; piece < pieces; piece++)
      if (sums[piece * n + i] != 0) sum += sums[piece * n + i] * std::exp2(maxima[piece * n + i] - highest);
    // It met none: the sums are of masked entries, each the smallest normal number.
    if (highest == std::numeric_limits<T>::lowest() && sum < 1) return -std::numeric_limits<double>::infinity();
    return highest + std::log2(sum);
  }

  // The softmax mean (dim) of the keys of query i, with the log2 of the whole sum.
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
