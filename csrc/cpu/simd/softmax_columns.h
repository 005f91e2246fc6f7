// What the online softmax does to a tile of dots, column by column; part of tile_kernels_impl.h. A score is
// magnitude * dot. It is not rounded on its own but together with what is subtracted from it.
// Columns from n on, up to a whole vector, are computed too and not used: the tile and the caller's arrays of kTile
// entries have room for them.

template <typename T>
static bool online_columns(T* tile, int64_t m, int64_t n, T magnitude, T* maxima, T* sums, T* factors) {
  bool rose = false;
  for (int64_t c = 0; c < n; c += kLanes<T>) {
    const Vec<T> before = load(maxima + c);
    Vec<T> largest = load(tile + c);
    for (int64_t r = 1; r < m; r++) {
      const Vec<T> x = load(tile + r * kTile + c);
      largest = x > largest ? x : largest;
    }
    const Vec<T> score = largest * magnitude, highest = score > before ? score : before;
    const IntVec<T> higher = highest > before;
    const Vec<T> factor = higher ? exp2v<T>(before - highest) : splat<T>(1);
    Vec<T> sum{};
    for (int64_t r = 0; r < m; r++) {
      T* place = tile + r * kTile + c;
      const Vec<T> e = exp2v<T>(load(place) * magnitude - highest);
      store<T>(place, e);
      sum += e;
    }
    store<T>(maxima + c, highest);
    store<T>(sums + c, sum);
    store<T>(factors + c, factor);
    for (int i = 0; i < kLanes<T> && c + i < n; i++) rose |= higher[i] != 0;
  }
  return rose;
}

template <typename T>
static void softmax_weights(T* tile, int64_t m, int64_t n, T magnitude, const T* log_sums, const T* weights,
                            const T* row_log_sums, const T* row_weights) {
  for (int64_t c = 0; c < n; c += kLanes<T>) {
    const Vec<T> log_sum = load(log_sums + c), weight = load(weights + c);
    for (int64_t r = 0; r < m; r++) {
      T* place = tile + r * kTile + c;
      const Vec<T> dot = load(place);
      Vec<T> w = exp2v<T>(dot * magnitude - log_sum) * weight;
      // Without `hidden` the compiler would round the product once for both differences, and not as online_columns
      // does: each weight would be off by the rounding of a score, which may be as large as 1000.
      if (row_weights) w += exp2v<T>(hidden<T>(dot) * magnitude - row_log_sums[r]) * row_weights[r];
      store<T>(place, w);
    }
  }
}

template <typename T>
static void exclude_ids(const Mask<T>& mask, T* tile, int64_t m, int64_t n, T value) {
  for (int64_t c = 0; c < n; c += kLanes<T>) {
    const IntVec<T> column_ids = load_ids<T>(mask.column_ids + c);
    for (int64_t r = 0; r < m; r++) {
      T* place = tile + r * kTile + c;
      const IntVec<T> equal = column_ids == mask.row_ids[r];
      store<T>(place, (mask.equal_ids ? equal : ~equal) ? load(place) : splat(value));
    }
  }
}

template <typename T>
static void count_columns(const T* tile, int64_t m, int64_t n, const T* thresholds, int64_t* counts) {
  for (int64_t c = 0; c < n; c += kLanes<T>) {
    const Vec<T> threshold = load(thresholds + c);
    IntVec<T> above{};
    // Where a comparison holds, its lane is -1.
    for (int64_t r = 0; r < m; r++) above += ~(load(tile + r * kTile + c) <= threshold);
    for (int i = 0; i < kLanes<T> && c + i < n; i++) counts[c + i] -= above[i];
  }
}
