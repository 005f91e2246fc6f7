// What launch.cpp calls in the .cu files. They take raw pointers and sizes, without ATen, and so compile in seconds.
#pragma once
#include "../common/average.h"
#include "../common/key_row.h"

#include <cuda_runtime_api.h>

namespace ssl_fast::cuda {

enum class Element { kFloat, kDouble, kBfloat16, kHalf, kByte };

// Pairs of tensors of the same two element types; both kByte: they are copied. tensor: the place of each in the whole
// list.
struct EmaList {
  Element target_type, source_type;
  int64_t entries;
  void* const* target;
  const void* const* source;
  const int64_t* count;
  const uint32_t* tensor;
};

cudaError_t ema(const EmaList& list, const EmaNumbers& numbers, cudaStream_t stream);

cudaError_t enqueue(const EnqueueTask& task, Element queue_type, Element keys_type, cudaStream_t stream);

}  // namespace ssl_fast::cuda
