// What a forward pass leaves to its backward pass: numbers of each row, and of every pair its exponential, its sigmoid
// or its dot, so that rows need not be multiplied again. That saves a quarter of the operations of both passes, and up
// to a half where dots are kept (docs/cpu-engine.md). Pairs are kept where all of them fit a budget, which the shapes
// and the dtype fix unless SSL_FAST_KEPT_MB does; else the backward pass computes them again.
#pragma once
#include "tensors.h"

#include <algorithm>
#include <cstdlib>

#include <c10/util/Exception.h>

namespace ssl_fast {

// The budget in bytes that SSL_FAST_KEPT_MB sets, 0 for keeping nothing; -1 where it is not set.
inline int64_t kept_bytes_wanted() {
  static const int64_t bytes = [] {
    const char* wanted = std::getenv("SSL_FAST_KEPT_MB");
    if (!wanted) return int64_t(-1);
    char* end = nullptr;
    const long long megabytes = std::strtoll(wanted, &end, 10);
    TORCH_CHECK_VALUE(end != wanted && *end == 0 && megabytes >= 0 && megabytes < 1 << 20,
                      "SSL_FAST_KEPT_MB: expected a number of megabytes, 0 or more, got ", wanted);
    return int64_t(megabytes) << 20;
  }();
  return bytes;
}

// Unless that is set, pairs may take 24 MB, which the last-level cache of many processors holds, or a few times the
// memory of their rows, so that memory stays O(N D).
constexpr int64_t kKeptBytes = int64_t(24) << 20, kKeptTimesRows = 4;

// A kept matrix is padded, so that the vector kernels write whole vectors and whole groups of rows. A pair of rows
// shorter than kKeptLeastDim is computed again as fast as it is written and read.
constexpr int64_t kKeptRowGroup = 8, kKeptColumnGroup = 48, kKeptLeastDim = 96;
// The sums that lie before the pairs are padded to a multiple of this, so that the pairs begin at a whole cache line.
constexpr int64_t kKeptSumsGroup = 64;

// How many numbers of type T keep all pairs of `rows` rows and `columns` columns of width dim, enough for a matrix with
// its rows and columns exchanged too; 0 where pairs are not kept. The fake kernels (ssl_fast/operators/fake_kernels.py)
// compute the same.
template <typename T>
int64_t kept_count(int64_t rows, int64_t columns, int64_t dim) {
  if (dim < kKeptLeastDim) return 0;
  const auto padded = [](int64_t r, int64_t c) { return round_up(r, kKeptRowGroup) * round_up(c, kKeptColumnGroup); };
  const int64_t count = std::max(padded(rows, columns), padded(columns, rows));
  const int64_t budget =
      kept_bytes_wanted() >= 0
          ? kept_bytes_wanted()
          : std::max<int64_t>(kKeptBytes, kKeptTimesRows * (rows + columns) * dim * int64_t(sizeof(T)));
  return count * int64_t(sizeof(T)) <= budget ? count : 0;
}

// A matrix of kept pairs: its first number, null where nothing is kept, how far apart its rows lie, and how many
// numbers it has, its padding included.
template <typename T>
struct KeptPairs {
  T* first = nullptr;
  int64_t stride = 0, count = 0;

  KeptPairs() = default;
  KeptPairs(T* first, int64_t columns, int64_t count)
      : first(first), stride(round_up(columns, kKeptColumnGroup)), count(count) {}
  // The matrix that follows the sums in the tensor of new_sums, if there is one.
  KeptPairs(const at::Tensor& sums, int64_t sum_count, int64_t columns) {
    const int64_t before = sums_before_pairs(sum_count);
    if (sums.dim() == 1) *this = {sums.template data_ptr<T>() + before, columns, sums.size(0) - before};
  }
  // The matrix that is a tensor of its own, which may be empty.
  static KeptPairs of(const at::Tensor& kept, int64_t columns) {
    return kept.numel() ? KeptPairs(kept.template data_ptr<T>(), columns, kept.numel()) : KeptPairs();
  }
  explicit operator bool() const { return first; }
  T* tile(int64_t row, int64_t column) const { return first ? first + row * stride + column : nullptr; }

  // Zeros beyond the matrix of so many rows and columns, because an operator returns no undefined numbers.
  void clear_padding(int64_t rows, int64_t columns) const {
    for (int64_t i = 0; i < rows; i++) std::fill(tile(i, columns), tile(i, stride), T(0));
    std::fill(tile(rows, 0), first + count, T(0));
  }

  // How many numbers lie before the matrix: the sums and their padding.
  static int64_t sums_before_pairs(int64_t sum_count) { return round_up(2 * sum_count, kKeptSumsGroup); }
};

// The `sums` of a forward pass: two numbers for each row and, where columns have sums too, for each column; sum_count
// counts those rows and columns together. First come all log sums, log2 of the sum over a row's pairs, then all second
// numbers: nt_xent and info_nce, whose log sums include the positive, save r = 1 - P(positive), and similarity_lse what
// rounding took from the log sum. The tensor is (2, sum_count). Where pairs are kept, in kept_numbers numbers, it has
// one dimension instead and holds the sums, their padding and the matrix of pairs.
template <typename T>
at::Tensor new_sums(int64_t sum_count, int64_t kept_numbers) {
  if (!kept_numbers) return new_empty<T>({2, sum_count});
  const int64_t before = KeptPairs<T>::sums_before_pairs(sum_count);
  const at::Tensor sums = new_empty<T>({before + kept_numbers});
  T* first = sums.template data_ptr<T>();
  std::fill(first + 2 * sum_count, first + before, T(0));
  return sums;
}

// Checks that sums may be what the forward pass of the same inputs returned: with pairs, in kept_numbers numbers, or
// without, because a forward pass is told whether to keep them.
template <typename T>
void check_sums(const at::Tensor& sums, int64_t sum_count, int64_t kept_numbers) {
  const bool fits = sums.dim() == 1
                        ? kept_numbers && sums.size(0) == KeptPairs<T>::sums_before_pairs(sum_count) + kept_numbers
                        : sums.sizes() == at::IntArrayRef({2, sum_count});
  TORCH_CHECK_VALUE(fits && sums.is_contiguous() && sums.scalar_type() == c10::CppTypeToScalarType<T>::value,
                    "sums: expected what the forward pass returned of ", sum_count, " sums, got ", sums.scalar_type(),
                    " ", sums.sizes());
}

}  // namespace ssl_fast
