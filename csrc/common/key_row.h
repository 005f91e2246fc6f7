// One key, normalised where asked, cast and written to its row of the queue (reference.enqueue_).
#pragma once
#include "circular.h"
#include "constants.h"
#include "floats.h"

#include <cmath>

namespace ssl_fast {

// 2^-e with 2^e <= largest < 2^(e + 1): multiplying by it is exact. It is finite even if `largest` is 0, NaN or Inf.
SSL_FAST_HOST_DEVICE float largest_power(float largest) {
  const uint32_t exponent = bit_cast<uint32_t>(largest) >> 23 & 0xFF;
  return bit_cast<float>((0xFE - (exponent < 1 ? 1 : exponent > 0xFD ? 0xFD : exponent)) << 23);
}
SSL_FAST_HOST_DEVICE double largest_power(double largest) {
  const uint64_t exponent = bit_cast<uint64_t>(largest) >> 52 & 0x7FF;
  return bit_cast<double>((0x7FE - (exponent < 1 ? 1 : exponent > 0x7FD ? 0x7FD : exponent)) << 52);
}

// What power * x is multiplied with to give x / max(|x|, eps). squares: the sum of the squares of power * x.
SSL_FAST_HOST_DEVICE double inverse_norm(double squares, double power) {
  const double norm = sqrt(squares), least = power * kEps;
  const double infinity = bit_cast<double>(uint64_t(0x7FF0000000000000));
  // A row that holds Inf or NaN becomes NaN.
  return norm < infinity ? 1 / (norm <= least ? least : norm) : infinity - infinity;
}

// A key (dim) and its row of the queue. The lanes of a warp, or the one lane of the host, share the work: this is lane
// lanes.lane of lanes.count, and lanes.max and lanes.sum combine the numbers of all.
template <typename Q, typename S, typename Lanes>
struct KeyRow {
  using W = Wide<S, S>;
  Q* row;
  const S* key;
  int64_t dim, row_stride, key_stride;
  const Lanes& lanes;

  // Calls use(pack, place of its first element) for this lane's share of the key. Packs have 16 bytes where both
  // addresses are aligned and contiguous, else one element.
  template <typename Use>
  SSL_FAST_HOST_DEVICE void each(const Use& use) const {
    constexpr int64_t kPacked = kPack<Q, S>;
    const bool wide = row_stride == 1 && key_stride == 1 && aligned(row, key);
    const int64_t packs = wide ? dim / kPacked : 0;
    for (int64_t p = lanes.lane; p < packs; p += lanes.count)
      use(loaded(reinterpret_cast<const Pack<S, kPacked>*>(key) + p), p * kPacked);
    for (int64_t d = packs * kPacked + lanes.lane; d < dim; d += lanes.count) use(Pack<S, 1>{{key[d * key_stride]}}, d);
  }

  template <typename Add>
  SSL_FAST_HOST_DEVICE void read(const Add& add) const {
    each([&]<int COUNT>(const Pack<S, COUNT>& s, int64_t) {
      SSL_FAST_UNROLL for (int v = 0; v < COUNT; v++)
        add(widened<W>(s.values[v]));
    });
  }
  template <typename Cast>
  SSL_FAST_HOST_DEVICE void write(const Cast& cast) const {
    each([&]<int COUNT>(const Pack<S, COUNT>& s, int64_t d) {
      Pack<Q, COUNT> out;
      SSL_FAST_UNROLL for (int v = 0; v < COUNT; v++)
        out.values[v] = cast(s.values[v]);
      if constexpr (COUNT == 1)
        row[d * row_stride] = out.values[0];
      else
        store(reinterpret_cast<Pack<Q, COUNT>*>(row + d), out);
    });
  }

  SSL_FAST_HOST_DEVICE void copy() const {
    write([](S s) { return narrowed<Q>(widened<Wide<Q, S>>(s)); });
  }
  // The squares are summed in float64, so that the norm is exact to the last digit. The key is read three times, from
  // the cache.
  SSL_FAST_HOST_DEVICE void normalize() const {
    W largest = 0;
    read([&](W x) { largest = fabs(x) > largest ? fabs(x) : largest; });
    const W power = largest_power(lanes.max(largest));
    double squares = 0;
    read([&](W x) { squares += double(x * power) * double(x * power); });
    const W inverse = W(inverse_norm(lanes.sum(squares), power));
    write([=](S s) { return narrowed<Q>(widened<W>(s) * power * inverse); });
  }
};

// The write of all keys (count, dim); write_key does one of them.
struct EnqueueTask {
  void* queue;
  const void* keys;
  int64_t* queue_ptr;
  int64_t size, count, dim;
  int64_t queue_row_stride, queue_stride, keys_row_stride, keys_stride;
  bool normalize;
};

// Writes key write.skipped + row, if there is one. All lanes of a warp call with the same row.
template <typename Q, typename S, typename Lanes>
SSL_FAST_HOST_DEVICE void write_key(const EnqueueTask& task, const CircularWrite& write, int64_t row,
                                    const Lanes& lanes) {
  if (row >= write.rows) return;
  const KeyRow<Q, S, Lanes> key{static_cast<Q*>(task.queue) + write.place(row) * task.queue_row_stride,
                                static_cast<const S*>(task.keys) + (write.skipped + row) * task.keys_row_stride,
                                task.dim,
                                task.queue_stride,
                                task.keys_stride,
                                lanes};
  if (task.normalize)
    key.normalize();
  else
    key.copy();
}

}  // namespace ssl_fast
