#include "ema_pairs.h"

#include <algorithm>

#include <ATen/ops/clone.h>

namespace ssl_fast {
namespace {

using at::Tensor;

// Whether the memory of an entry of the target overlaps, or may overlap, that of another tensor of either list.
bool memory_is_shared(at::TensorList target, at::TensorList source) {
  struct Span {
    const char *begin, *end;
    bool written;
  };
  std::vector<Span> spans;
  spans.reserve(2 * target.size());
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
  // The furthest ends so far: of the spans that are written, and of all spans.
  const char *written_end = nullptr, *end = nullptr;
  for (const Span& span : spans) {
    if (span.begin < written_end || (span.written && span.begin < end)) return true;
    end = std::max(end, span.end);
    if (span.written) written_end = std::max(written_end, span.end);
  }
  return false;
}

bool pair_in_memory(const Tensor& t, const Tensor& s) {
  return t.is_non_overlapping_and_dense() && t.strides() == s.strides();
}

// first: the place of target[0] in the caller's list. shared: whether a source may overlap its target; then it is
// copied.
void update_disjoint(at::TensorList target, at::TensorList source, uint32_t first, bool shared,
                     const std::function<void(const EmaPairs&)>& update) {
  EmaPairs pairs;
  std::vector<std::pair<Tensor, Tensor>> written_back;
  for (size_t i = 0; i < target.size(); i++) {
    const Tensor &t = target[i], &s = source[i];
    if (t.numel() == 0) continue;
    const bool averaged = at::isFloatingType(t.scalar_type()), dense = pair_in_memory(t, s);
    if (!averaged && (!dense || t.scalar_type() != s.scalar_type())) {
      t.copy_(s);
      continue;
    }
    if (!t.is_inference()) t.unsafeGetTensorImpl()->bump_version();
    const Tensor values = dense ? s : s.contiguous();
    pairs.target.push_back(dense ? t : t.contiguous());
    pairs.source.push_back(shared && memory_is_shared(t, values) ? values.clone(at::MemoryFormat::Preserve) : values);
    pairs.place.push_back(first + uint32_t(i));
    if (!dense && !pairs.target.back().is_same(t)) written_back.emplace_back(t, pairs.target.back());
  }
  if (!pairs.target.empty()) update(pairs);
  for (const auto& [place, values] : written_back) place.copy_(values);
}

}  // namespace

void update_pairs(at::TensorList target, at::TensorList source, const std::function<void(const EmaPairs&)>& update) {
  TORCH_CHECK_VALUE(target.size() == source.size(), "source: expected ", target.size(), " tensors as target, got ",
                    source.size());
  for (size_t i = 0; i < target.size(); i++)
    TORCH_CHECK_VALUE(target[i].sizes() == source[i].sizes(), "source[", i, "]: expected shape ", target[i].sizes(),
                      " as target, got ", source[i].sizes());
  if (!memory_is_shared(target, source)) return update_disjoint(target, source, 0, false, update);
  for (size_t i = 0; i < target.size(); i++)
    update_disjoint(target.slice(i, 1), source.slice(i, 1), uint32_t(i), true, update);
}

}  // namespace ssl_fast
