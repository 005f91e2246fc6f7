// The circular write of keys into a queue (reference.enqueue_): one launch, no workspace.
#include <cuda_runtime.h>

#include "elements.cuh"

namespace ssl_fast::cuda {
namespace {

constexpr int kWarp = 32, kRows = 8;  // of a block: a warp takes a key

struct WarpLanes {
  int lane;
  static constexpr int count = kWarp;
  // The order of operations is the same in every lane and every run, and so are the bits of the result.
  template <typename W>
  __device__ W max(W x) const {
    for (int step = kWarp / 2; step > 0; step /= 2) x = fmax(x, __shfl_xor_sync(~0u, x, step));
    return x;
  }
  __device__ double sum(double x) const {
    for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
  }
};

template <typename Q, typename S>
__global__ void __launch_bounds__(kWarp* kRows, 4) enqueue_kernel(EnqueueTask task) {
  __shared__ int64_t counted;
  if (threadIdx.x == 0 && threadIdx.y == 0)
    counted = int64_t(
        atomicAdd(reinterpret_cast<unsigned long long*>(task.queue_ptr), static_cast<unsigned long long>(kOneReader)));
  __syncthreads();
  const CountedPointer read(counted);
  const CircularWrite write(read.pointer, task.size, task.count);
  const WarpLanes lanes{int(threadIdx.x)};
  write_key<Q, S>(task, write, int64_t(blockIdx.x) * kRows + threadIdx.y, lanes);
  if (threadIdx.x == 0 && threadIdx.y == 0 && read.readers == gridDim.x - 1)
    atomicExch(reinterpret_cast<unsigned long long*>(task.queue_ptr), static_cast<unsigned long long>(write.end()));
}

}  // namespace

cudaError_t enqueue(const EnqueueTask& task, Element queue_type, Element keys_type, cudaStream_t stream) {
  const int64_t rows = task.count < task.size ? task.count : task.size, blocks = (rows + kRows - 1) / kRows;
  if (blocks > kMostReaders) return cudaErrorInvalidConfiguration;
  return with_float(queue_type, [&]<typename Q>(Q*) {
    return with_float(keys_type, [&]<typename S>(S*) {
      enqueue_kernel<Q, S><<<uint32_t(blocks), dim3(kWarp, kRows), 0, stream>>>(task);
      return cudaGetLastError();
    });
  });
}

}  // namespace ssl_fast::cuda
