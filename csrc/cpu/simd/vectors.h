// Vectors of BYTES bytes through the compiler's vector extension, transposing squares of them, and exp2 on them.
// tile_kernels_impl.h includes this inside a namespace and under the target options of one SIMD level. Nothing here may
// call an inline function of the standard library: the linker keeps one copy of such a function for the whole program,
// and that could be the one compiled for this level.

template <typename T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float V __attribute__((vector_size(BYTES)));
  typedef float Loose __attribute__((vector_size(BYTES), aligned(4), may_alias));
  typedef int32_t I __attribute__((vector_size(BYTES)));
  typedef int32_t LooseI __attribute__((vector_size(BYTES), aligned(4), may_alias));
  typedef uint32_t Bits __attribute__((vector_size(BYTES)));
  typedef int32_t Int;
};
template <>
struct VecOf<double> {
  typedef double V __attribute__((vector_size(BYTES)));
  typedef double Loose __attribute__((vector_size(BYTES), aligned(8), may_alias));
  typedef int64_t I __attribute__((vector_size(BYTES)));
  typedef int64_t LooseI __attribute__((vector_size(BYTES), aligned(8), may_alias));
  typedef uint64_t Bits __attribute__((vector_size(BYTES)));
  typedef int64_t Int;
};
template <typename T>
using Vec = typename VecOf<T>::V;
template <typename T>
using IntVec = typename VecOf<T>::I;
template <typename T>
using BitVec = typename VecOf<T>::Bits;
template <typename T>
using Int = typename VecOf<T>::Int;
template <typename T>
constexpr int kLanes = BYTES / sizeof(T);

template <typename T>
static inline Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VecOf<T>::Loose*>(p);
}
template <typename T>
static inline void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VecOf<T>::Loose*>(p) = v;
}
template <typename T>
static inline IntVec<T> load_ids(const Int<T>* p) {
  return *reinterpret_cast<const typename VecOf<T>::LooseI*>(p);
}
template <typename T>
static inline Vec<T> splat(T x) {
  return Vec<T>{} + x;
}
// x, as a value of which the compiler does not know that it is x, so that it shares no results with those of x.
template <typename T>
static inline Vec<T> hidden(Vec<T> x) {
#if defined(__x86_64__)
  asm("" : "+x"(x));
#else
  asm("" : "+w"(x));
#endif
  return x;
}
// The integers 0, 1, 2, ...
template <typename T>
static inline IntVec<T> iota() {
  IntVec<T> v{};
  for (int i = 0; i < kLanes<T>; i++) v[i] = i;
  return v;
}
// x where the mask is set, +0 elsewhere.
template <typename T>
static inline Vec<T> keep(IntVec<T> mask, Vec<T> x) {
  return (Vec<T>)((IntVec<T>)x & mask);
}
// The sum of the lanes in a fixed order: halves are added to each other until one number is left.
template <typename T>
static inline T sum_lanes(Vec<T> v) {
  T part[kLanes<T>];
  store<T>(part, v);
  for (int width = kLanes<T> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) part[i] += part[i + width];
  return part[0];
}

// A vector whose lanes are entries Index... of a and b, which are numbered one behind the other.
template <typename T, int... Index>
static inline Vec<T> choose(Vec<T> a, Vec<T> b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, Index...);
#else
  return __builtin_shuffle(a, b, IntVec<T>{Index...});
#endif
}
// Makes rows columns in a square of vectors: first its quarters of 1 x 1, then those of 2 x 2, and so on, exchange
// their upper right and their lower left.
template <typename T, int Width, int... Lane>
static inline __attribute__((always_inline)) void transpose(Vec<T> (&rows)[kLanes<T>],
                                                            std::integer_sequence<int, Lane...> lanes) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; i++) {
    if (i & Width) continue;
    const Vec<T> a = rows[i], b = rows[i + Width];
    rows[i] = choose<T, (Lane & Width ? Lane - Width + kLanes<T> : Lane)...>(a, b);
    rows[i + Width] = choose<T, (Lane & Width ? Lane + kLanes<T> : Lane + Width)...>(a, b);
  }
  if constexpr (2 * Width < kLanes<T>) transpose<T, 2 * Width>(rows, lanes);
}

// What exp2 needs of each type. `shifter` is 1.5 * 2^(mantissa bits): adding it to a number rounds that to an integer,
// which then stands in the low bits. The polynomial, highest power first, is the relative minimax approximation of 2^f
// on |f| <= 1/2 with constant term 1; its error is 2e-9 for float and 3.4e-18 for double.
template <typename T>
struct Exp2;
template <>
struct Exp2<float> {
  static constexpr float lowest = -126, shifter = 12582912;
  static constexpr int mantissa_bits = 23, degree = 6;
  static constexpr float polynomial[] = {0.00015353362068858489f, 0.0013398873394381390f, 0.0096184373569574206f,
                                         0.055503324711908572f,   0.24022647913636853f,   0.69314720285503165f};
};
template <>
struct Exp2<double> {
  static constexpr double lowest = -1022, shifter = 6755399441055744;
  static constexpr int mantissa_bits = 52, degree = 11;
  static constexpr double polynomial[] = {4.4347712982003767083e-10, 7.0737832485031332991e-9, 1.0178199571842137974e-7,
                                          1.3215435282308487999e-6,  1.5252733493127489e-5,    1.5403530457112091e-4,
                                          0.0013333558146774620517,  0.0096181291075941201,    0.055504108664820083227,
                                          0.2402265069591013126,     0.69314718055994532581};
};

// exp2(t) for t up to 127 (double: 1023). With t = n + f, |f| <= 1/2, it is the polynomial in f with n added to its
// exponent. Where exp2(t) is below the smallest normal number the result is that number instead of 0, which is at most
// 1e-38 of a sum that holds exp2(0). A NaN stays NaN if its low bits are zero, since then nothing is added to its bits;
// normalize() and every operation on a NaN give such a NaN.
template <typename T>
static inline Vec<T> exp2v(Vec<T> t) {
  typedef Exp2<T> E;
  const Vec<T> lowest = splat<T>(E::lowest);
  t = t < lowest ? lowest : t;
  const Vec<T> shifted = t + E::shifter;
  const Vec<T> f = t - (shifted - E::shifter);
  Vec<T> p = splat<T>(E::polynomial[0]);
#pragma GCC unroll 16
  for (int i = 1; i < E::degree; i++) p = p * f + E::polynomial[i];
  p = p * f + T(1);
  return (Vec<T>)((BitVec<T>)p + ((BitVec<T>)shifted << E::mantissa_bits));
}
