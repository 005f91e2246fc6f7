// The momentum update of a list of tensors, in place (reference.ema_update_).
#include "../common/average.h"
#include "../operators/ema_pairs.h"
#include "engine/unit_rows.h"
#include "operators.h"

#include <algorithm>
#include <cstring>

namespace ssl_fast::cpu {
namespace {

// A stretch of elements of one pair of tensors. Threads share stretches instead of tensors, whose sizes differ.
struct Stretch {
  size_t tensor;
  int64_t begin, end;
};
constexpr int64_t kStretch = 1 << 15;

template <typename T, typename S>
void average(T* __restrict__ t, const S* __restrict__ s, int64_t n, double momentum) {
  const Weights<Wide<T, S>> weights(momentum);
  if constexpr (std::is_same_v<T, S> && std::is_same_v<T, Wide<T, S>>)
    kernels<T>().average(t, s, n, weights.kept, weights.added);
  else
    for (int64_t i = 0; i < n; i++) t[i] = narrowed<T>(averaged(t[i], s[i], weights));
}

// t and s begin at element `first` of their tensors: an element's random bits come from its place.
template <typename S>
void average_at_random(at::BFloat16* t, const S* s, int64_t first, int64_t n, double momentum,
                       const RandomBits& random) {
  const Weights<Wide<at::BFloat16, S>> weights(momentum);
  for (int64_t i = 0; i < n; i++) {
    const auto rounded = rounded_at_random(static_cast<float>(averaged(t[i], s[i], weights)), random.at(first + i));
    t[i] = at::BFloat16(rounded.bits, at::BFloat16::from_bits());
  }
}

void update(const EmaPairs& pairs, const Stretch& stretch, double momentum, const std::optional<int64_t>& seed) {
  const Tensor &target = pairs.target[stretch.tensor], &source = pairs.source[stretch.tensor];
  const int64_t first = stretch.begin, count = stretch.end - stretch.begin;
  if (!at::isFloatingType(target.scalar_type())) {
    const size_t size = target.element_size();
    std::memcpy(static_cast<char*>(target.data_ptr()) + first * size,
                static_cast<const char*>(source.const_data_ptr()) + first * size, count * size);
    return;
  }
  if (momentum == 1) return;
  with_type(target, [&](auto* t) {
    with_type(source, [&](const auto* s) {
      if constexpr (std::is_same_v<decltype(t), at::BFloat16*>)
        if (seed) {
          const RandomBits random(*seed, pairs.place[stretch.tensor]);
          return average_at_random(t + first, s + first, first, count, momentum, random);
        }
      average(t + first, s + first, count, momentum);
    });
  });
}

}  // namespace

void ema_update_(at::TensorList target, at::TensorList source, double momentum, const OptionalTensor& momentum_tensor,
                 const OptionalTensor& seed) {
  if (momentum_tensor) momentum = momentum_tensor->item<double>();
  const std::optional<int64_t> seed_number = seed ? std::optional(seed->item<int64_t>()) : std::nullopt;
  update_pairs(target, source, [&](const EmaPairs& pairs) {
    std::vector<Stretch> stretches;
    for (size_t i = 0; i < pairs.target.size(); i++)
      for (int64_t begin = 0, n = pairs.target[i].numel(); begin < n; begin += kStretch)
        stretches.push_back({i, begin, std::min(begin + kStretch, n)});
    at::parallel_for(0, int64_t(stretches.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; k++) update(pairs, stretches[k], momentum, seed_number);
    });
  });
}

}  // namespace ssl_fast::cpu
