// Two lists of tensors as pairs of memory that a momentum update can run over, on any device. Schema: schemas.cpp.
#pragma once
#include <functional>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

namespace ssl_fast {

// Pairs of tensors whose elements correspond in the order of memory: both are dense, of one layout and not empty. A
// pair of integer tensors has one dtype.
struct EmaPairs {
  std::vector<at::Tensor> target, source;
  std::vector<uint32_t> place;  // of each pair in the caller's lists
};

// Checks the lists, makes such pairs of them and calls update once for all pairs. Where an entry of the target shares
// memory with another tensor, it calls update for each entry in turn. A tensor that is not dense is copied.
void update_pairs(at::TensorList target, at::TensorList source, const std::function<void(const EmaPairs&)>& update);

}  // namespace ssl_fast
