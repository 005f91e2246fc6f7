// The momentum update (reference.ema_update_), in one launch for up to 1020 tensors of each pair of dtypes.
#include <cuda_runtime.h>

#include "elements.cuh"

namespace ssl_fast::cuda {
namespace {

// How many blocks of a multiprocessor the registers must suffice for. float64 takes more registers.
template <typename T>
constexpr int kBlocks = sizeof(T) == 8 ? 2 : 3;

template <typename T, typename S, bool RANDOM, typename Table>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    ema_kernel(const __grid_constant__ Table table, EmaNumbers numbers) {
  update_chunk<T, S, RANDOM>(table, numbers, blockIdx.x, int(threadIdx.x));
}

template <typename Table, typename T, typename S>
cudaError_t launch(const EmaList& list, const Launch& part, const EmaNumbers& numbers, cudaStream_t stream) {
  const auto table = table_of<Table>(part, list.target, list.source, list.count, list.tensor);
  constexpr bool kMayBeRandom = std::is_same_v<T, Bfloat16>;
  if (kMayBeRandom && numbers.seed)
    ema_kernel<T, S, kMayBeRandom><<<uint32_t(part.blocks), kThreads, 0, stream>>>(table, numbers);
  else
    ema_kernel<T, S, false><<<uint32_t(part.blocks), kThreads, 0, stream>>>(table, numbers);
  return cudaGetLastError();
}

template <typename T, typename S>
cudaError_t launch_all(const EmaList& list, const EmaNumbers& numbers, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  for (const Launch& part : launches_of(list.count, list.entries)) {
    if (error != cudaSuccess) break;
    const bool small = part.last - part.first <= kSmallTable;
    error = small ? launch<ChunkTable<kSmallTable>, T, S>(list, part, numbers, stream)
                  : launch<ChunkTable<kLargeTable>, T, S>(list, part, numbers, stream);
  }
  return error;
}

}  // namespace

cudaError_t ema(const EmaList& list, const EmaNumbers& numbers, cudaStream_t stream) {
  if (list.target_type == Element::kByte) return launch_all<uint8_t, uint8_t>(list, numbers, stream);
  return with_float(list.target_type, [&]<typename T>(T*) {
    return with_float(list.source_type, [&]<typename S>(S*) { return launch_all<T, S>(list, numbers, stream); });
  });
}

}  // namespace ssl_fast::cuda
