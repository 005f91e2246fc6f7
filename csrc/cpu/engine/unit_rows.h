// Rows of any float dtype and strides -> rows of norm 1 and their inverse norms; and gradients back into any dtype.
#pragma once
#include "../simd/tile_kernels.h"
#include "tensors.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <ATen/Parallel.h>

namespace ssl_fast {

// Reads the rows of a tensor (rows, dim) as numbers of type T. It holds no reference: the tensor must outlive it.
template <typename T>
class RowReader {
 public:
  explicit RowReader(const at::Tensor& x)
      : dtype_(x.scalar_type()), row_stride_(x.stride(0)), stride_(x.stride(1)), rows(x.size(0)), dim(x.size(1)) {
    with_type(x, [&](auto* data) { data_ = data; });
  }

  bool direct() const { return dtype_ == c10::CppTypeToScalarType<T>::value && (stride_ == 1 || dim == 1); }
  int64_t row_stride() const { return row_stride_; }
  const T* pointer(int64_t row) const { return static_cast<const T*>(data_) + row * row_stride_; }

  // Row i: in place if its numbers are of type T and contiguous, else converted into scratch (dim).
  const T* row(int64_t i, T* scratch) const {
    if (direct()) return pointer(i);
    switch (dtype_) {
      case at::kFloat: convert<float>(i, scratch); break;
      case at::kDouble: convert<double>(i, scratch); break;
      case at::kBFloat16: convert<at::BFloat16>(i, scratch); break;
      default: convert<at::Half>(i, scratch);
    }
    return scratch;
  }

 private:
  template <typename S>
  void convert(int64_t i, T* out) const {
    const S* in = static_cast<const S*>(data_) + i * row_stride_;
    for (int64_t d = 0; d < dim; d++) out[d] = static_cast<T>(in[d * stride_]);
  }

  const void* data_ = nullptr;
  at::ScalarType dtype_;
  int64_t row_stride_, stride_;

 public:
  const int64_t rows, dim;
};

// x, or if it is finite and too large for float16, the largest float16 of its sign.
template <typename T>
T saturated(T x) {
  const T largest = 65504;
  return std::abs(x) <= std::numeric_limits<T>::max() ? std::clamp(x, -largest, largest) : x;
}

// Writes gradients of rows, computed as T, to a contiguous tensor (rows, dim) of any float type.
template <typename T>
class RowWriter {
 public:
  explicit RowWriter(const at::Tensor& x) : dtype_(x.scalar_type()), dim_(x.size(1)) {
    with_type(x, [&](auto* data) { data_ = data; });
  }

  // Where row i is to be computed, for `write`: in the tensor itself if it holds numbers of type T, else in scratch
  // (dim).
  T* place(int64_t i, T* scratch) const { return direct() ? static_cast<T*>(data_) + i * dim_ : scratch; }

  // Writes row (dim) as row i. inverse_norm: 1 / max(|x|, eps) of the input row, or 1 where it was not normalised.
  void write(int64_t i, T* row, T inverse_norm) const {
    if (direct() && row == place(i, nullptr)) return;
    switch (dtype_) {
      case at::kFloat: return convert<float>(i, row);
      case at::kDouble: return convert<double>(i, row);
      case at::kBFloat16: return convert<at::BFloat16>(i, row);
      default:
        // The gradient of a zero row is dU / eps, which float16 cannot hold, so it saturates. In the gradient of any
        // other row an Inf stays: it tells a gradient scaler to lower its scale.
        if (inverse_norm >= T(1 / kEps)) std::transform(row, row + dim_, row, saturated<T>);
        convert<at::Half>(i, row);
    }
  }

 private:
  bool direct() const { return dtype_ == c10::CppTypeToScalarType<T>::value; }

  template <typename S>
  void convert(int64_t i, const T* row) const {
    S* out = static_cast<S*>(data_) + i * dim_;
    for (int64_t d = 0; d < dim_; d++) out[d] = static_cast<S>(row[d]);
  }

  void* data_ = nullptr;
  const at::ScalarType dtype_;
  const int64_t dim_;
};

// Copies a row (dim) that is not to be normalised. A row that holds Inf becomes NaN, as it does when it is normalised:
// with a score of -Inf the loss would be finite.
template <typename T>
void copy_finite(const T* row, T* out, int64_t dim) {
  if (!kernels<T>().finite(row, dim))
    std::fill_n(out, dim, std::numeric_limits<T>::quiet_NaN());
  else if (row != out)
    std::copy_n(row, dim, out);
}

// Rows (n + kTileSlack, width), zero beyond n and beyond dim. With `normalized` they are u = x / max(|x|, eps) and
// inverse_norms (n) holds 1 / max(|x|, eps); else they are the rows as given.
template <typename T>
struct UnitRows {
  const int64_t n, dim, width;
  const bool normalized;
  const at::Tensor rows, inverse_norms;

  UnitRows(int64_t n, int64_t dim, bool normalize = true)
      : n(n),
        dim(dim),
        width(round_up(dim, kernels<T>().lanes)),
        normalized(normalize),
        rows(new_empty<T>({n + kTileSlack, width})),
        inverse_norms(new_empty<T>({n})),
        data_(rows.template data_ptr<T>()),
        norms_(inverse_norms.template data_ptr<T>()) {
    std::fill(row(n), row(n + kTileSlack), T(0));
  }
  UnitRows(const at::Tensor& x, bool normalize) : UnitRows(x.size(0), x.size(1), normalize) { fill(x, 0); }

  // Fills the rows from `first` on with those of x (rows, dim).
  void fill(const at::Tensor& x, int64_t first) {
    const RowReader<T> reader(x);
    T* norms = norms_ + first;
    at::parallel_for(0, reader.rows, grain(8. * dim), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        T* out = row(first + i);
        if (normalized)
          norms[i] = kernels<T>().normalize(reader.row(i, out), out, dim);
        else
          copy_finite(reader.row(i, out), out, dim);
        std::fill(out + dim, out + width, T(0));
      }
    });
  }

  T* row(int64_t i) const { return data_ + i * width; }
  T inverse_norm(int64_t i) const { return normalized ? norms_[i] : T(1); }

  // Writes as row `out_row` of the writer the gradient of row i as it was given, where that of row i of `rows` is
  // factor * d (dim). d may be overwritten where it is scratch. Returns factor * <u_i, d>.
  T backward(int64_t i, T factor, const T* d, const RowWriter<T>& writer, int64_t out_row, T* scratch) const {
    T *out = writer.place(out_row, scratch), along = 0;
    if (normalized) {
      along = kernels<T>().normalize_backward(row(i), d, factor, dim, norms_[i], out);
    } else {
      kernels<T>().dots(row(i), d, width, 1, dim, &along);
      along *= factor;
      for (int64_t k = 0; k < dim; k++) out[k] = factor * d[k];
    }
    writer.write(out_row, out, inverse_norm(i));
    return along;
  }

  // The rows packed as the columns of a TileInput.
  at::Tensor packed() const {
    const int64_t group = kernels<T>().column_group, groups = (n + group - 1) / group;
    at::Tensor out = new_empty<T>({groups * group, dim});
    T* columns = out.template data_ptr<T>();
    at::parallel_for(0, groups, grain(4. * group * dim), [&](int64_t begin, int64_t end) {
      const int64_t first = begin * group, last = std::min(n, end * group);
      kernels<T>().pack(row(first), width, last - first, dim, columns + first * dim);
    });
    return out;
  }

 private:
  T *const data_, *const norms_;
};

// <a_i, b_(i + offset)> for i = 0 .. a.n - offset - 1, rounded as in a tile.
template <typename T>
std::vector<T> pair_similarities(const UnitRows<T>& a, const UnitRows<T>& b, int64_t offset = 0) {
  const int64_t count = a.n - offset;
  std::vector<T> out(count);
  at::parallel_for(0, count, grain(8. * a.dim), [&](int64_t begin, int64_t end) {
    kernels<T>().dots(a.row(begin), b.row(begin + offset), a.width, end - begin, a.dim, out.data() + begin);
  });
  return out;
}

}  // namespace ssl_fast
