// The momentum update of a list of tensors, in place: t = m t + (1 - m) s, in float32 or wider.
#include "operators.h"
#include "rows.h"

#include <algorithm>

#include <ATen/ops/clone.h>

namespace ssl_fast::cpu {
namespace {

// A stretch of elements of one pair of tensors: threads share all tensors evenly, whatever their sizes.
struct Stretch {
  size_t tensor;
  int64_t begin, end;
};
constexpr int64_t kStretch = 1 << 15;

template <typename T, typename S>
void average(T* __restrict__ t, const S* __restrict__ s, int64_t n, double momentum) {
  // float64 arithmetic only where a float64 is involved.
  using Wide = std::conditional_t<std::is_same_v<T, double> || std::is_same_v<S, double>, double, float>;
  const Wide m = Wide(momentum), rest = Wide(1 - momentum);
  if constexpr (std::is_same_v<T, S> && std::is_same_v<T, Wide>) {
    kernels<T>().average(t, s, n, m, rest);
    return;
  }
  for (int64_t i = 0; i < n; i++) t[i] = static_cast<T>(static_cast<Wide>(t[i]) * m + static_cast<Wide>(s[i]) * rest);
}

// Elements in memory order are pairs only where both have the same dense layout.
bool same_dense_layout(const Tensor& t, const Tensor& s) {
  return t.is_non_overlapping_and_dense() && t.strides() == s.strides();
}

// Whether an entry of the target lies, or may lie, where another tensor of either list does: then the
// pairs are updated in turn.
bool memory_is_shared(at::TensorList target, at::TensorList source) {
  struct Span {
    const char *begin, *end;
    bool written;
  };
  std::vector<Span> spans;
  const auto add = [&](const Tensor& x, bool written) {
    if (x.numel() == 0) return;
    int64_t last = 0;
    for (int64_t d = 0; d < x.dim(); d++) last += (x.size(d) - 1) * x.stride(d);
    const char* begin = static_cast<const char*>(x.const_data_ptr());
    spans.push_back({begin, begin + (last + 1) * x.element_size(), written});
  };
  for (size_t i = 0; i < target.size(); i++) {
    add(target[i], true);
    add(source[i], false);
  }
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
  // The furthest ends so far, of what is written and of all.
  const char *written_end = nullptr, *end = nullptr;
  for (const Span& span : spans) {
    if (span.begin < written_end || (span.written && span.begin < end)) return true;
    end = std::max(end, span.end);
    if (span.written) written_end = std::max(written_end, span.end);
  }
  return false;
}

}  // namespace

void ema_update_(at::TensorList target, at::TensorList source, double momentum) {
  TORCH_CHECK_VALUE(target.size() == source.size(), "source: expected ", target.size(), " tensors as target, got ",
                    source.size());
  std::vector<Tensor> averaged, sources;
  std::vector<std::pair<Tensor, Tensor>> written_back;
  std::vector<Stretch> stretches;
  for (size_t i = 0; i < target.size(); i++)
    TORCH_CHECK_VALUE(target[i].sizes() == source[i].sizes(), "source[", i, "]: expected shape ", target[i].sizes(),
                      " as target, got ", source[i].sizes());
  if (target.size() > 1 && memory_is_shared(target, source)) {
    for (size_t i = 0; i < target.size(); i++) ema_update_(target.slice(i, 1), source.slice(i, 1), momentum);
    return;
  }
  for (size_t i = 0; i < target.size(); i++) {
    if (!at::isFloatingType(target[i].scalar_type())) {
      target[i].copy_(source[i]);
      continue;
    }
    if (target[i].numel() == 0) continue;
    if (!target[i].is_inference()) target[i].unsafeGetTensorImpl()->bump_version();
    const bool dense = same_dense_layout(target[i], source[i]);
    averaged.push_back(dense ? target[i] : target[i].contiguous());
    const Tensor values = dense ? source[i] : source[i].contiguous();
    sources.push_back(values.is_alias_of(target[i]) ? values.clone(at::MemoryFormat::Preserve) : values);
    if (!dense && !averaged.back().is_same(target[i])) written_back.emplace_back(target[i], averaged.back());
    for (int64_t begin = 0; begin < target[i].numel(); begin += kStretch)
      stretches.push_back({averaged.size() - 1, begin, std::min(begin + kStretch, target[i].numel())});
  }
  at::parallel_for(0, int64_t(stretches.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; k++) {
      const auto [tensor, first, last] = stretches[k];
      with_type(averaged[tensor], [&](auto* t) {
        with_type(sources[tensor], [&](const auto* s) { average(t + first, s + first, last - first, momentum); });
      });
    }
  });
  for (const auto& [place, values] : written_back) place.copy_(values);
}

}  // namespace ssl_fast::cpu
