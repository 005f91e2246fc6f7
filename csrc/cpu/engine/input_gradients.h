// From gradients of unit rows to gradients of the inputs and of the temperature.
#pragma once
#include "scale.h"
#include "unit_rows.h"

namespace ssl_fast {

// du (n, width), d loss / d (s * u_i) of each row -> the gradient of the rows as given, into out unless that is
// empty; du is overwritten. Returns the sum of <u_i, dU_i>: s dL/ds.
template <typename T>
double rows_backward(const UnitRows<T>& rows, const at::Tensor& du, T s, const at::Tensor& out) {
  std::vector<double> along(rows.n);
  T* first = du.template data_ptr<T>();
  const RowWriter<T> writer(out.numel() ? out : du);
  at::parallel_for(0, rows.n, grain(16. * rows.dim), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      T* d = first + i * rows.width;
      for (int64_t k = 0; k < rows.dim; k++) d[k] *= s;
      along[i] = rows.backward(i, d);
      if (out.numel()) writer.write(i, d, rows.inverse_norm(i));
    }
  });
  double sum = 0;
  for (const double x : along) sum += x;
  return sum;
}

// d loss / d temperature = -s * (s dL/ds), in the type of the temperature tensor.
template <typename T>
at::Tensor temperature_gradient(double s_dL_ds, const Scale& scale, const std::optional<at::Tensor>& tensor) {
  at::Tensor out = new_empty<T>({});
  *out.template data_ptr<T>() = T(-scale.s * s_dL_ds);
  return tensor ? out.to(tensor->options()) : out;
}

}  // namespace ssl_fast
