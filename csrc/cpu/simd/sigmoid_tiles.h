// What SigLIP needs of a tile, softplus and sigmoid of scores; part of tile_kernels_impl.h.

// log2(1 + y) = 2 atanh(z) / ln 2 for y in [0, 1], with z = y / (2 + y) <= 1/3. It is exact to the last digits for a
// small y too. The series of atanh in z^2 <= 1/9 needs kAtanhTerms terms.
template <typename T>
constexpr int kAtanhTerms = sizeof(T) == 4 ? 7 : 16;

template <typename T>
static inline Vec<T> log2_of_1_plus(Vec<T> y, Vec<T> z) {
  const Vec<T> square = z * z;
  Vec<T> p = splat<T>(T(1) / (2 * kAtanhTerms<T> + 1));
#pragma GCC unroll 16
  for (int k = kAtanhTerms<T> - 1; k >= 0; k--) p = p * square + T(1) / (2 * k + 1);
  return z * p * T(2.8853900817779268147);  // 2 / ln 2
}

// Turns x into log2(1 + 2^x) and returns 1 / (1 + 2^-x). Both are made of y = 2^-|x|, which cannot overflow.
template <typename T>
static inline Vec<T> softplus_and_sigmoid(Vec<T>& x) {
  const Vec<T> y = exp2v<T>(x > 0 ? -x : x);
  const Vec<T> both = T(1) / ((y + T(1)) * (y + T(2)));  // one division serves both
  const Vec<T> sigmoid = both * (y + T(2)) * (x > 0 ? splat<T>(1) : y);
  x = (x > 0 ? x : splat<T>(0)) + log2_of_1_plus<T>(y, y * both * (y + T(1)));
  return sigmoid;
}

template <typename T>
static void softplus_sums(const TileInput<T>& in, T bias, T* softplus, T* sigmoid, const Ranks<T>* ranks, T* kept,
                          int64_t kept_stride) {
  Vec<T> softplus_rows[kTile + ROWS] = {}, sigmoid_rows[kTile + ROWS] = {};
  each_block<T>(in, [&](int64_t row, int64_t column, auto& acc) {
    constexpr int V = sizeof(acc[0]) / sizeof(acc[0][0]);
    count_above<T, V>(in, ranks, row, column, acc);
    const bool whole = is_whole<T, V>(in, row, column);
    for (int r = 0; r < ROWS; r++)
      for (int v = 0; v < V; v++) {
        Vec<T> x = acc[r][v] * in.scale + bias, s = softplus_and_sigmoid<T>(x);
        if (!whole) {
          const IntVec<T> lanes = kept_lanes(in, row + r, column + v * kLanes<T>);
          x = keep<T>(lanes, x), s = keep<T>(lanes, s);
        }
        if (kept) store<T>(kept + (row + r) * kept_stride + column + v * kLanes<T>, s);
        softplus_rows[row + r] += x;
        sigmoid_rows[row + r] += s;
      }
  });
  for (int64_t r = 0; r < in.m; r++) {
    softplus[r] += sum_lanes<T>(softplus_rows[r]);
    sigmoid[r] += sum_lanes<T>(sigmoid_rows[r]);
  }
}

template <typename T>
static void sigmoid_weights(const TileInput<T>& in, T bias, const T* row_weights, T* tile) {
  each_block<T>(in, [&](int64_t row, int64_t column, auto& acc) {
    constexpr int V = sizeof(acc[0]) / sizeof(acc[0][0]);
    const bool whole = is_whole<T, V>(in, row, column);
    for (int r = 0; r < ROWS; r++)
      for (int v = 0; v < V; v++) {
        const Vec<T> x = acc[r][v] * in.scale + bias, y = exp2v<T>(x > 0 ? -x : x);
        Vec<T> s = (x > 0 ? splat<T>(1) : y) / (y + T(1));
        if (!whole) s = keep<T>(kept_lanes(in, row + r, column + v * kLanes<T>), s);
        store<T>(tile + (row + r) * kTile + column + v * kLanes<T>, s * (row + r < in.m ? row_weights[row + r] : T(0)));
      }
  });
}
