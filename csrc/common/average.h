// The momentum update (reference.ema_update_) of one element, and the share of one thread of a CUDA launch.
#pragma once
#include "chunks.h"

namespace ssl_fast {

// momentum and 1 - momentum; NaN where momentum is not from 0 to 1. The host cannot check a momentum on the device.
template <typename W>
struct Weights {
  W kept, added;
  SSL_FAST_HOST_DEVICE explicit Weights(double momentum) {
    if (!(momentum >= 0 && momentum <= 1)) momentum = bit_cast<double>(uint64_t(0x7FF8000000000000));
    kept = static_cast<W>(momentum);
    added = static_cast<W>(1 - momentum);
  }
};

// t = momentum t + (1 - momentum) s, in float32 or wider.
template <typename T, typename S, typename W>
SSL_FAST_HOST_DEVICE W averaged(T t, S s, const Weights<W>& weights) {
  const W wide = widened<W>(t);
  // With momentum 1 the target stays even if the source is Inf: 0 * Inf would be NaN.
  return weights.added == 0 ? wide : wide * weights.kept + widened<W>(s) * weights.added;
}

// A bijection of 32-bit numbers whose outputs look random.
SSL_FAST_HOST_DEVICE uint32_t mixed(uint32_t x) {
  x = (x ^ x >> 16) * 0x7FEB352D;
  x = (x ^ x >> 15) * 0x846CA68B;
  return x ^ x >> 16;
}

// Random bits for the elements of one tensor of a list, by the seed, the tensor's place and the element's place alone.
struct RandomBits {
  uint32_t key;
  SSL_FAST_HOST_DEVICE RandomBits(int64_t seed, uint32_t tensor)
      : key(mixed(tensor + mixed(uint32_t(seed) + mixed(uint32_t(uint64_t(seed) >> 32))))) {}
  SSL_FAST_HOST_DEVICE uint32_t at(int64_t element) const {
    return mixed(uint32_t(element) + mixed(uint32_t(uint64_t(element) >> 32) + key));
  }
};

// One of the two bfloat16 numbers around x. The chance of the upper one is x's distance from the lower one as a share
// of the gap, so that the mean is x.
SSL_FAST_HOST_DEVICE Bfloat16 rounded_at_random(float x, uint32_t random) {
  const uint32_t wide = bit_cast<uint32_t>(x);
  Bfloat16 out(x);
  if ((wide & 0x7F800000) != 0x7F800000) out.bits = (wide + (random >> 16)) >> 16;
  return out;
}

// The numbers of an update. momentum is not used where a pointer to one is given. seed: null to round to the nearest.
// Pointers are read where the work is done: on the device.
struct EmaNumbers {
  double momentum;
  const float* momentum_float;
  const double* momentum_double;
  const int64_t* seed;
  SSL_FAST_HOST_DEVICE double momentum_now() const {
    return momentum_float ? *momentum_float : momentum_double ? *momentum_double : momentum;
  }
};

// The share of thread `thread` of block `block`. T, S: the types of target and source, both uint8_t for a copy. RANDOM:
// whether there is a seed.
template <typename T, typename S, bool RANDOM, typename Table>
SSL_FAST_HOST_DEVICE void update_chunk(const Table& table, const EmaNumbers& numbers, uint32_t block, int thread) {
  const int entry = table.entry_of(block);
  const int64_t first = table.first_element(entry, block), rest = table.count[entry] - first;
  const int64_t count = rest < kChunk ? rest : kChunk;
  T* target = static_cast<T*>(table.target[entry]) + first;
  const S* source = static_cast<const S*>(table.source[entry]) + first;
  if constexpr (std::is_same_v<T, uint8_t>) {
    combine_chunk(target, source, count, thread, [](T, S s, int64_t) { return s; });
  } else {
    const Weights<Wide<T, S>> weights(numbers.momentum_now());
    if constexpr (RANDOM) {
      const RandomBits bits(*numbers.seed, table.tensor[entry]);
      combine_chunk(target, source, count, thread, [&](T t, S s, int64_t i) {
        return rounded_at_random(static_cast<float>(averaged(t, s, weights)), bits.at(first + i));
      });
    } else {
      combine_chunk(target, source, count, thread,
                    [&](T t, S s, int64_t) { return narrowed<T>(averaged(t, s, weights)); });
    }
  }
}

}  // namespace ssl_fast
