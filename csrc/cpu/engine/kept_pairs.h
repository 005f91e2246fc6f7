// What a forward pass keeps of every pair, its exponential or its sigmoid, for a backward pass that then needs no
// product to have it again: a quarter of the products less. It is kept where all pairs fit a budget, a constant; else
// memory stays O(N D), and the backward pass computes the pairs again.
#pragma once
#include "tensors.h"

#include <algorithm>
#include <cstdlib>

#include <c10/util/Exception.h>

namespace ssl_fast {

// The budget in bytes: 24 MB, which the last-level cache of many processors holds, or SSL_FAST_KEPT_MB; 0 keeps
// nothing.
inline int64_t kept_bytes() {
  static const int64_t bytes = [] {
    const char* wanted = std::getenv("SSL_FAST_KEPT_MB");
    if (!wanted) return int64_t(24) << 20;
    char* end = nullptr;
    const long long megabytes = std::strtoll(wanted, &end, 10);
    TORCH_CHECK_VALUE(end != wanted && *end == 0 && megabytes >= 0 && megabytes < 1 << 20,
                      "SSL_FAST_KEPT_MB: expected a number of megabytes, 0 or more, got ", wanted);
    return int64_t(megabytes) << 20;
  }();
  return bytes;
}

// Numbers of type T that keep all pairs of `rows` rows and `columns` columns of width dim; 0 where they are beyond the
// budget, or a pair is computed again as fast as it is written and read.
// The padding lets the vector kernels write whole vectors and whole groups of rows. The fake kernels
// (ssl_fast/operators/fake_kernels.py) compute the same.
constexpr int64_t kKeptRowGroup = 8, kKeptColumnGroup = 48, kKeptLeastDim = 96;
// The sums before the pairs are padded to this many numbers, a whole cache line.
constexpr int64_t kKeptSumsGroup = 64;
template <typename T>
int64_t kept_count(int64_t rows, int64_t columns, int64_t dim) {
  const int64_t count = round_up(rows, kKeptRowGroup) * round_up(columns, kKeptColumnGroup);
  return dim >= kKeptLeastDim && count * int64_t(sizeof(T)) <= kept_bytes() ? count : 0;
}

// A matrix of kept pairs. A null pointer keeps nothing.
template <typename T>
struct KeptPairs {
  T* first = nullptr;
  int64_t stride = 0;

  KeptPairs() = default;
  KeptPairs(T* first, int64_t columns) : first(first), stride(round_up(columns, kKeptColumnGroup)) {}
  // The matrix behind the 2 * count sums of a forward pass, if there is one.
  KeptPairs(const at::Tensor& sums, int64_t count, int64_t columns) {
    if (sums.dim() == 1) *this = {sums.template data_ptr<T>() + sums_before_pairs(count), columns};
  }
  // The matrix that is a tensor of its own, which may be empty.
  static KeptPairs of(const at::Tensor& kept, int64_t columns) {
    return kept.numel() ? KeptPairs(kept.template data_ptr<T>(), columns) : KeptPairs();
  }
  explicit operator bool() const { return first; }
  T* tile(int64_t row, int64_t column) const { return first ? first + row * stride + column : nullptr; }

  // Two sums for each of `count` rows, padded.
  static int64_t sums_before_pairs(int64_t count) { return round_up(2 * count, kKeptSumsGroup); }
};

// What a forward pass leaves to its backward pass: sums (2, count), or where pairs are kept, one row of numbers: the
// sums, then the matrix. `written` says whether the pairs will be written: an operator returns no undefined numbers.
template <typename T>
at::Tensor new_sums(int64_t count, int64_t kept, bool written) {
  if (!kept) return new_empty<T>({2, count});
  const int64_t before = KeptPairs<T>::sums_before_pairs(count);
  const at::Tensor sums = new_empty<T>({before + kept});
  T* first = sums.template data_ptr<T>();
  std::fill(first + 2 * count, first + (written ? before : before + kept), T(0));
  return sums;
}

// Checks what a forward pass of these inputs has left. kept: as it was for new_sums, had the pairs been kept.
template <typename T>
void check_sums(const at::Tensor& sums, int64_t count, int64_t kept) {
  const bool fits = sums.dim() == 1 ? kept && sums.size(0) == KeptPairs<T>::sums_before_pairs(count) + kept
                                    : sums.sizes() == at::IntArrayRef({2, count});
  TORCH_CHECK_VALUE(fits && sums.is_contiguous() && sums.scalar_type() == c10::CppTypeToScalarType<T>::value,
                    "sums: expected what the forward pass returned of ", count, " sums, got ", sums.scalar_type(), " ",
                    sums.sizes());
}

}  // namespace ssl_fast
