// Ids of rows as the vector kernels compare them: integers as wide as a lane.
#pragma once
#include "../simd/tile_kernels.h"

#include <algorithm>
#include <limits>
#include <vector>

#include <ATen/core/Tensor.h>

namespace ssl_fast {

inline std::vector<int64_t> int64_values(const at::Tensor& x) {
  const at::Tensor contiguous = x.contiguous();
  const int64_t* first = contiguous.data_ptr<int64_t>();
  return {first, first + x.size(0)};
}

template <typename T>
class Ids {
 public:
  // Int64 (N) and (M), or none at all; with a alone it serves both sides.
  Ids(const std::optional<at::Tensor>& a, const std::optional<at::Tensor>& b) : alone_(!b) {
    if (!a) return;
    std::vector<int64_t> of_a = int64_values(*a), of_b = b ? int64_values(*b) : std::vector<int64_t>();
    if (!(fit(of_a) && fit(of_b))) number(of_a, of_b);
    a_ = narrowed(of_a), b_ = narrowed(of_b);
  }
  const Id<T>* a() const { return a_.empty() ? nullptr : a_.data(); }
  const Id<T>* b() const { return alone_ ? a() : b_.data(); }

 private:
  static bool fit(const std::vector<int64_t>& ids) {
    return std::all_of(ids.begin(), ids.end(), [](int64_t id) { return id == Id<T>(id); });
  }
  // Each id becomes its place among all: equal where they were.
  static void number(std::vector<int64_t>& a, std::vector<int64_t>& b) {
    std::vector<int64_t> all(a);
    all.insert(all.end(), b.begin(), b.end());
    std::sort(all.begin(), all.end());
    for (std::vector<int64_t>* ids : {&a, &b})
      for (int64_t& id : *ids) id = std::lower_bound(all.begin(), all.end(), id) - all.begin();
  }
  // With room for whole vectors to be read behind the last.
  static std::vector<Id<T>> narrowed(const std::vector<int64_t>& ids) {
    std::vector<Id<T>> out(ids.begin(), ids.end());
    out.resize(ids.size() + 64);
    return out;
  }

  const bool alone_;
  std::vector<Id<T>> a_, b_;
};

}  // namespace ssl_fast
