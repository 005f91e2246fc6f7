// The circular write of keys into a queue (reference.enqueue_).
#include "../common/circular.h"
#include "engine/unit_rows.h"
#include "operators.h"

#include <cstring>

namespace ssl_fast::cpu {
namespace {

template <typename Q>
void write_keys(const Tensor& queue, const CircularWrite& write, const Tensor& keys) {
  Q* rows = queue.data_ptr<Q>();
  const int64_t dim = queue.size(1);
  const int64_t row_stride = queue.stride(0), stride = queue.stride(1);
  const int64_t key_row_stride = keys.stride(0), key_stride = keys.stride(1);
  const auto copy = [&](const auto* data) {
    if (std::is_same_v<decltype(data), const Q*> && queue.is_contiguous() && keys.is_contiguous() &&
        write.skipped == 0) {
      // At most two stretches are copied whole: a large memcpy need not read what it overwrites.
      const int64_t before_wrap = std::min(write.rows, write.size - write.start);
      std::memcpy(rows + write.start * dim, data, before_wrap * dim * sizeof(Q));
      std::memcpy(rows, data + before_wrap * dim, (write.rows - before_wrap) * dim * sizeof(Q));
      return;
    }
    for (int64_t j = 0; j < write.rows; j++) {
      Q* out = rows + write.place(j) * row_stride;
      const auto* in = data + (write.skipped + j) * key_row_stride;
      if (stride == 1 && key_stride == 1)  // a loop of its own, which the compiler vectorises
        for (int64_t d = 0; d < dim; d++) out[d] = static_cast<Q>(in[d]);
      else
        for (int64_t d = 0; d < dim; d++) out[d * stride] = static_cast<Q>(in[d * key_stride]);
    }
  };
  with_type(keys, copy);
}

// The unit rows (rows, dim) of x, in float32, or in float64 where x is.
Tensor unit_rows(const Tensor& x) {
  return in_compute_type(x, [&]<typename T>() {
    UnitRows<T> rows(x.size(0), x.size(1));
    rows.fill(x, 0);
    return rows.rows.slice(0, 0, rows.n).slice(1, 0, rows.dim);
  });
}

}  // namespace

void enqueue_(const Tensor& queue, const Tensor& queue_ptr, const Tensor& keys, bool normalize) {
  TORCH_CHECK_VALUE(queue.dim() == 2 && keys.dim() == 2 && queue.size(1) == keys.size(1) && queue.numel() > 0,
                    "keys: expected (B, D) as the queue's (K, D), got ", keys.sizes(), " and ", queue.sizes());
  TORCH_CHECK_VALUE(queue_ptr.numel() == 1 && queue_ptr.scalar_type() == at::kLong,
                    "queue_ptr: expected one int64, got ", queue_ptr.sizes(), " ", queue_ptr.scalar_type());
  int64_t* pointer = queue_ptr.data_ptr<int64_t>();
  const CircularWrite write(*pointer, queue.size(0), keys.size(0));
  const Tensor source = normalize ? unit_rows(keys) : keys.is_alias_of(queue) ? keys.clone() : keys;
  with_type(queue, [&](auto* data) { write_keys<std::remove_pointer_t<decltype(data)>>(queue, write, source); });
  *pointer = write.end();
  for (const Tensor* written : {&queue, &queue_ptr})
    if (!written->is_inference()) written->unsafeGetTensorImpl()->bump_version();
}

}  // namespace ssl_fast::cpu
