// From gradients of unit rows to gradients of the inputs and of the scale.
#pragma once
#include "weighted_rows.h"

namespace ssl_fast {

// du (n, width), d loss / d (s * u_i) of each row -> the gradient of the rows as given, into out unless that is
// empty; du is overwritten. change(row, du_i) may first change a row of du. Returns the sum of <u_i, dU_i>: s dL/ds.
template <typename T, typename Change>
double rows_backward(const UnitRows<T>& rows, const at::Tensor& du, T s, const at::Tensor& out, const Change& change) {
  std::vector<double> along(rows.n);
  T* first = du.template data_ptr<T>();
  const RowWriter<T> writer(out.numel() ? out : du);
  at::parallel_for(0, rows.n, grain(16. * rows.dim), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      T* d = first + i * rows.width;
      change(i, d);
      along[i] = rows.backward(i, s, d, writer, i, d);
    }
  });
  double sum = 0;
  for (const double x : along) sum += x;
  return sum;
}
template <typename T>
double rows_backward(const UnitRows<T>& rows, const at::Tensor& du, T s, const at::Tensor& out) {
  return rows_backward(rows, du, s, out, [](int64_t, T*) {});
}

// The same for keys: writes the gradient of every key to out, which is contiguous and shaped as the keys. The gradient
// of a unit key is s times the sum over the queries of weight * query. add_to(key, sum) may first add to that sum.
template <typename T, typename AddTo>
void keys_backward(const QueryKeyTiles<T>& tiles, const SavedSums<T>& of_queries, const at::Tensor& out,
                   const AddTo& add_to) {
  const T s = T(tiles.scale.s);
  const int64_t width = tiles.query.width, dim = tiles.query.dim;
  each_weighted_query_sum<T>(
      tiles, of_queries,
      [&](int64_t group, int64_t first, int64_t count, const KeyBlock<T>& block, const T* inverse_norms, T* sums) {
        const RowWriter<T> writer(tiles.paired ? out.select(0, group) : out);
        for (int64_t j = 0; j < count; j++) {
          T* d = sums + j * width;
          add_to(first + j, d);
          T* dx = writer.place(first + j, d);
          const T inverse_norm = tiles.normalize_keys ? inverse_norms[j] : T(1);
          if (tiles.normalize_keys)
            kernels<T>().normalize_backward(block.rows + j * block.stride, d, s, dim, inverse_norm, dx);
          else
            for (int64_t k = 0; k < dim; k++) dx[k] = s * d[k];
          writer.write(first + j, dx, inverse_norm);
        }
      });
}

// d loss / d scale, from s dL/ds, in the type of the scale tensor.
template <typename T>
at::Tensor scale_gradient(double s_dL_ds, const Scale& scale, const std::optional<at::Tensor>& tensor) {
  at::Tensor out = new_empty<double>({});
  *out.data_ptr<double>() = s_dL_ds / scale.s;
  return tensor ? out.to(tensor->options()) : out.to(c10::CppTypeToScalarType<T>::value);
}

}  // namespace ssl_fast
