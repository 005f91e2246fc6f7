// A tile: the products of one block of rows with one block of columns, at most kTile of each.
#pragma once
#include "mask.h"

namespace ssl_fast {

// The most rows or columns that a tile has, and its leading dimension in memory. It is a multiple of every SIMD level's
// column group (48, 24, 12). It is no power of two, because rows a power of two apart share few cache sets.
constexpr int64_t kTile = 192;
// Rows of slack behind a tile and behind blocks of rows: the last group of rows is computed whole.
constexpr int64_t kTileSlack = 8;

// What a tile is computed of: scores[r][c] = scale * <row r, column c>.
template <typename T>
struct TileInput {
  const T* rows;  // (m, dim)
  int64_t row_stride;
  const T* columns;  // (n, dim), packed by Kernels::pack
  int64_t m, n, dim;
  T scale;  // s * log2(e): scores are in powers of two
  Mask<T> mask{};
};

// Counts of the candidates that are more similar than a positive. For each row (m) and column (n) of a tile: the
// positive's similarity times sign(s), and the count. Those of the columns may be null: negatives have no positive.
template <typename T>
struct Ranks {
  const T *row_positives, *column_positives;
  int64_t *row_counts, *column_counts;
};

}  // namespace ssl_fast
