// The operators on CUDA tensors that have kernels in C++: checks, streams and devices.
// Schemas: ../operators/schemas.cpp.
#include "../operators/ema_pairs.h"
#include "kernels.h"

#include <map>
#include <optional>

#include <ATen/core/Tensor.h>
#include <ATen/ops/clone.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

namespace ssl_fast::cuda {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

Element element_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return Element::kFloat;
    case at::kDouble: return Element::kDouble;
    case at::kBFloat16: return Element::kBfloat16;
    case at::kHalf: return Element::kHalf;
    default: TORCH_CHECK_TYPE(false, "expected float32, float64, bfloat16 or float16, got ", x.scalar_type());
  }
}

EmaNumbers numbers_of(double momentum, const OptionalTensor& momentum_tensor, const OptionalTensor& seed,
                      c10::Device device) {
  EmaNumbers numbers{momentum, nullptr, nullptr, nullptr};
  if (momentum_tensor) {
    const bool is_double = momentum_tensor->scalar_type() == at::kDouble;
    TORCH_CHECK_VALUE(momentum_tensor->numel() == 1 && momentum_tensor->device() == device &&
                          (is_double || momentum_tensor->scalar_type() == at::kFloat),
                      "momentum: expected one float32 or float64 on ", device, ", got ", momentum_tensor->sizes(), " ",
                      momentum_tensor->scalar_type(), " on ", momentum_tensor->device());
    if (is_double)
      numbers.momentum_double = momentum_tensor->const_data_ptr<double>();
    else
      numbers.momentum_float = momentum_tensor->const_data_ptr<float>();
  }
  if (seed) {
    TORCH_CHECK_VALUE(seed->numel() == 1 && seed->device() == device && seed->scalar_type() == at::kLong,
                      "seed: expected one int64 on ", device, ", got ", seed->sizes(), " ", seed->scalar_type(), " on ",
                      seed->device());
    numbers.seed = seed->const_data_ptr<int64_t>();
  }
  return numbers;
}

// The arrays of an EmaList: pairs of tensors of the same two element types.
struct Group {
  std::vector<void*> target;
  std::vector<const void*> source;
  std::vector<int64_t> count;
  std::vector<uint32_t> tensor;
};

std::map<std::pair<Element, Element>, Group> groups_of(const EmaPairs& pairs) {
  std::map<std::pair<Element, Element>, Group> groups;
  for (size_t i = 0; i < pairs.target.size(); i++) {
    const Tensor &t = pairs.target[i], &s = pairs.source[i];
    const bool averaged = at::isFloatingType(t.scalar_type());
    Group& group =
        groups[averaged ? std::pair(element_of(t), element_of(s)) : std::pair(Element::kByte, Element::kByte)];
    group.target.push_back(t.data_ptr());
    group.source.push_back(s.const_data_ptr());
    group.count.push_back(averaged ? t.numel() : int64_t(t.nbytes()));
    group.tensor.push_back(pairs.place[i]);
  }
  return groups;
}

void ema_update_(at::TensorList target, at::TensorList source, double momentum, const OptionalTensor& momentum_tensor,
                 const OptionalTensor& seed) {
  if (target.empty()) return update_pairs(target, source, [](const EmaPairs&) {});
  for (size_t i = 0; i < target.size() + source.size(); i++) {
    const Tensor& x = i < target.size() ? target[i] : source[i - target.size()];
    TORCH_CHECK_VALUE(x.is_cuda() && x.device() == target[0].device(), "expected all tensors on one GPU, got one on ",
                      target[0].device(), " and one on ", x.device());
    if (at::isFloatingType(x.scalar_type())) element_of(x);  // raises its error before the first is written
  }
  const c10::cuda::CUDAGuard guard(target[0].device());
  const EmaNumbers numbers = numbers_of(momentum, momentum_tensor, seed, target[0].device());
  update_pairs(target, source, [&](const EmaPairs& pairs) {
    for (const auto& [types, group] : groups_of(pairs)) {
      const EmaList list{types.first,         types.second,       int64_t(group.count.size()), group.target.data(),
                         group.source.data(), group.count.data(), group.tensor.data()};
      C10_CUDA_CHECK(ema(list, numbers, c10::cuda::getCurrentCUDAStream()));
    }
  });
}

void enqueue_(const Tensor& queue, const Tensor& queue_ptr, const Tensor& given, bool normalize) {
  TORCH_CHECK_VALUE(queue.dim() == 2 && given.dim() == 2 && queue.size(1) == given.size(1) && queue.numel() > 0,
                    "keys: expected (B, D) as the queue's (K, D), got ", given.sizes(), " and ", queue.sizes());
  TORCH_CHECK_VALUE(queue_ptr.numel() == 1 && queue_ptr.scalar_type() == at::kLong,
                    "queue_ptr: expected one int64, got ", queue_ptr.sizes(), " ", queue_ptr.scalar_type());
  TORCH_CHECK_VALUE(queue_ptr.device() == queue.device() && given.device() == queue.device(),
                    "keys: expected the queue's device ", queue.device(), ", got ", given.device(), ", the pointer on ",
                    queue_ptr.device());
  if (given.size(0) == 0) return;
  const c10::cuda::CUDAGuard guard(queue.device());
  const Tensor keys = given.is_alias_of(queue) ? given.clone() : given;  // keys may be rows of the queue itself
  const EnqueueTask task{queue.data_ptr(),
                         keys.const_data_ptr(),
                         queue_ptr.data_ptr<int64_t>(),
                         queue.size(0),
                         keys.size(0),
                         queue.size(1),
                         queue.stride(0),
                         queue.stride(1),
                         keys.stride(0),
                         keys.stride(1),
                         normalize};
  C10_CUDA_CHECK(enqueue(task, element_of(queue), element_of(keys), c10::cuda::getCurrentCUDAStream()));
  for (const Tensor* written : {&queue, &queue_ptr})
    if (!written->is_inference()) written->unsafeGetTensorImpl()->bump_version();
}

}  // namespace

TORCH_LIBRARY_IMPL(ssl_fast, CUDA, m) {
  m.impl("ema_update_", &ema_update_);
  m.impl("enqueue_", &enqueue_);
}

}  // namespace ssl_fast::cuda
