// What two lists of tensors come to for a momentum update, on any device. Schema: schemas.cpp.
#pragma once
#include <functional>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

namespace ssl_fast {

// Pairs whose elements correspond in the order of memory: both dense, alike in layout, none empty. Pairs of
// integers have one dtype.
struct EmaPairs {
  std::vector<at::Tensor> target, source;
  std::vector<uint32_t> place;  // of each pair in the caller's lists
};

// Checks the lists, makes such pairs of them and calls update once for all, or, where an entry of the
// target shares memory with another tensor, for each in turn. Copies stand in for what is not dense.
void update_pairs(at::TensorList target, at::TensorList source, const std::function<void(const EmaPairs&)>& update);

}  // namespace ssl_fast
