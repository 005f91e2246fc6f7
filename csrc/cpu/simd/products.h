// The products of the tile engine: the micro-kernel, the packing that it needs, dots rounded as it rounds them, and the
// loops over a tile; part of tile_kernels_impl.h.

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// a * b + c, with one rounding exactly where the compiler contracts the sums of a tile to one. FUSED is set by hand,
// because g++ 12 does not define __FMA__ for a target that a pragma sets.
#if FUSED
static inline float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline double multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
static inline float multiply_add(float a, float b, float c) { return a * b + c; }
static inline double multiply_add(double a, double b, double c) { return a * b + c; }
#endif

// Adds to the micro-kernel's accumulators the products of a and b over `steps` values of k: at each step ROWS scalars
// of a with V vectors of b. Scalar r of step k is a[k * a_stride + r] if ByColumn, else a[r * a_stride + k]. Each entry
// is one chain of sums in the order of k. With Copies, the vectors of b are written to `copy` too, one behind the
// other.
template <typename T, int V, bool ByColumn, bool Copies = false>
static inline __attribute__((always_inline)) void multiply(const T* a, int64_t a_stride, const T* b, int64_t b_stride,
                                                           int64_t steps, Vec<T> (&acc)[ROWS][V], T* copy = nullptr) {
  for (int64_t k = 0; k < steps; k++) {
    Vec<T> bv[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      bv[v] = load(b + k * b_stride + v * kLanes<T>);
      if constexpr (Copies) store<T>(copy + (k * V + v) * kLanes<T>, bv[v]);
    }
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

// Packs a square of at most kLanes rows (count) and numbers of each (steps) as columns, Group numbers apart; columns
// from count on are zero.
template <typename T, int64_t Group = kGroup<T>>
static inline void pack_square(const T* rows, int64_t row_stride, int64_t count, int64_t steps, T* columns) {
  constexpr int L = kLanes<T>;
  if (count < L || steps < L) {
    for (int64_t k = 0; k < steps; k++)
      for (int64_t c = 0; c < L; c++) columns[k * Group + c] = c < count ? rows[c * row_stride + k] : T(0);
    return;
  }
  Vec<T> square[L];
#pragma GCC unroll 16
  for (int c = 0; c < L; c++) square[c] = load(rows + c * row_stride);
  transpose<T, 1>(square, std::make_integer_sequence<int, L>());
#pragma GCC unroll 16
  for (int k = 0; k < L; k++) store<T>(columns + k * Group, square[k]);
}

template <typename T>
static void pack(const T* rows, int64_t row_stride, int64_t n, int64_t dim, T* columns) {
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t first = 0; first < n; first += kGroup<T>)
    // Take one cache line of each row at a time: rows a power of two apart share few cache sets, and those cannot
    // hold a line of every row until all of it is used.
    for (int64_t begin = 0; begin < dim; begin += line)
      for (int64_t c = first; c < first + kGroup<T>; c += kLanes<T>)
        for (int64_t d = begin; d < least(begin + line, dim); d += kLanes<T>)
          pack_square(rows + c * row_stride + d, row_stride, n - c, least(kLanes<T>, dim - d),
                      columns + first * dim + d * kGroup<T> + c - first);
}

// A longer dot is a sum of parts of this length, because one chain of 4096 terms would lose three digits.
constexpr int64_t kChain = 256;

// The dots of as many pairs of rows as a vector has lanes. Squares of both are transposed, so that each lane is the
// chain of one pair.
template <typename T>
static void dots_of_lanes(const T* a, const T* b, int64_t row_stride, int64_t dim, T* out) {
  constexpr int L = kLanes<T>;
  Vec<T> sum = {};
  for (int64_t first = 0; first < dim; first += kChain) {
    const int64_t last = least(first + kChain, dim);
    Vec<T> part = {};
    T left[L * L], right[L * L];
    for (int64_t d = first; d < last; d += L) {
      const int64_t steps = least(L, last - d);
      pack_square<T, L>(a + d, row_stride, L, steps, left);
      pack_square<T, L>(b + d, row_stride, L, steps, right);
      for (int64_t k = 0; k < steps; k++) part += load(left + k * L) * load(right + k * L);
    }
    sum += part;
  }
  store<T>(out, sum);
}

template <typename T>
static void dots(const T* a, const T* b, int64_t row_stride, int64_t n, int64_t dim, T* out) {
  int64_t whole = 0;
  for (; whole + kLanes<T> <= n; whole += kLanes<T>)
    dots_of_lanes(a + whole * row_stride, b + whole * row_stride, row_stride, dim, out + whole);
  for (int64_t i = whole; i < n; i += ROWS) {
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

// Asks for V vectors, which may begin in any line, to be brought into the second-level cache. Not into the first: it
// holds what the micro-kernel reads at each step, and rows a power of two apart would share few of its sets.
template <typename T, int V>
static inline __attribute__((always_inline)) void prefetch(const T* p) {
#pragma GCC unroll 8
  for (int64_t d = 0; d < V * kLanes<T>; d += 64 / sizeof(T)) __builtin_prefetch(p + d, 0, 2);
}

// out (count, V vectors of width) += A (count, steps) * b (steps, V vectors), where A is the tile or, ByColumn, its
// transpose.
template <typename T, int V, bool ByColumn>
static void add_block(const T* tile, int64_t count, int64_t steps, const T* b, int64_t b_stride, int64_t width,
                      T* out) {
  // The vectors of b lie `b_stride` apart: each may take a page of its own, and all of them few cache sets. So the
  // first ROWS rows, whose products hide the wait for these vectors, copy them to where the other rows find them side
  // by side.
  alignas(64) T copy[kTile * V * kLanes<T>];
  for (int64_t row = 0; row < count; row += ROWS) {
    const T* a = ByColumn ? tile + row : tile + row * kTile;
    Vec<T> acc[ROWS][V] = {};
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      prefetch<T, V>(out + (row + r) * width);
      prefetch<T, V>(b + (row + r) * b_stride + V * kLanes<T>);  // for the next call
    }
    if (row == 0)
      multiply<T, V, ByColumn, true>(a, kTile, b, b_stride, steps, acc, copy);
    else
      multiply<T, V, ByColumn>(a, kTile, copy, V * kLanes<T>, steps, acc);
    // Unrolled in full: a row's number that is not a constant would keep acc in memory.
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      if (row + r == count) break;
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) {
        T* place = out + (row + r) * width + v * kLanes<T>;
        store<T>(place, load(place) + acc[r][v]);
      }
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
