// csrc/common as the host's compiler sees it, for ctypes: the work of a CUDA launch, block by block and thread by
// thread. Names of the package's files; test_common.py knows the arguments.
#include "common/average.h"
#include "common/key_row.h"

#include <type_traits>

using namespace ssl_fast;

namespace {

// 0 float32, 1 float64, 2 bfloat16, 3 float16
template <typename Use>
void with_float(int type, const Use& use) {
  switch (type) {
    case 0: return use(static_cast<float*>(nullptr));
    case 1: return use(static_cast<double*>(nullptr));
    case 2: return use(static_cast<Bfloat16*>(nullptr));
    default: return use(static_cast<Half*>(nullptr));
  }
}

// One lane of `count`. With a single lane maxima and sums are its own; the others take what it left.
struct HostLanes {
  int lane, count;
  double *largest, *squares;
  template <typename W>
  W max(W x) const {
    if (count == 1) *largest = double(x);
    return W(*largest);
  }
  double sum(double x) const {
    if (count == 1) *squares = x;
    return *squares;
  }
};

template <typename T, typename S, bool RANDOM, typename Table>
void run_blocks(const Table& table, const EmaNumbers& numbers, int64_t blocks) {
  // Backwards: no thread may count on another.
  for (int64_t block = blocks - 1; block >= 0; block--)
    for (int thread = kThreads - 1; thread >= 0; thread--)
      update_chunk<T, S, RANDOM>(table, numbers, uint32_t(block), thread);
}

template <typename T, typename S>
void run_ema(int64_t tensors, void** target, const void** source, const int64_t* count, const uint32_t* place,
             const EmaNumbers& numbers) {
  const auto run = [&]<typename Table>(const Launch& launch, const Table*) {
    const auto table = table_of<Table>(launch, target, source, count, place);
    constexpr bool kMayBeRandom = std::is_same_v<T, Bfloat16>;
    if (kMayBeRandom && numbers.seed)
      run_blocks<T, S, kMayBeRandom>(table, numbers, launch.blocks);
    else
      run_blocks<T, S, false>(table, numbers, launch.blocks);
  };
  for (const Launch& launch : launches_of(count, tensors))
    if (launch.last - launch.first <= kSmallTable)
      run(launch, static_cast<ChunkTable<kSmallTable>*>(nullptr));
    else
      run(launch, static_cast<ChunkTable<kLargeTable>*>(nullptr));
}

}  // namespace

extern "C" {

int64_t limit(int which) {
  const int64_t limits[] = {kThreads, kChunk, kMostBlocks, kSmallTable, kLargeTable, sizeof(ChunkTable<kSmallTable>),
                            sizeof(ChunkTable<kLargeTable>), sizeof(EmaNumbers)};
  return limits[which];
}

void to_float16(int64_t n, const float* x, uint16_t* bits) {
  for (int64_t i = 0; i < n; i++) bits[i] = Half(x[i]).bits;
}
void from_float16(int64_t n, const uint16_t* bits, float* x) {
  for (int64_t i = 0; i < n; i++) x[i] = float(bit_cast<Half>(bits[i]));
}
void to_bfloat16(int64_t n, const float* x, uint16_t* bits) {
  for (int64_t i = 0; i < n; i++) bits[i] = Bfloat16(x[i]).bits;
}
void random_bits(int64_t seed, uint32_t place, int64_t first, int64_t n, uint32_t* out) {
  const RandomBits random(seed, place);
  for (int64_t i = 0; i < n; i++) out[i] = random.at(first + i);
}

// out: (launches, 3); as many as there is room for. Returns how many there are.
int64_t launches(const int64_t* counts, int64_t tensors, int64_t* out, int64_t room) {
  const auto found = launches_of(counts, tensors);
  for (int64_t i = 0; i < std::min<int64_t>(room, found.size()); i++) {
    out[3 * i] = found[i].first;
    out[3 * i + 1] = found[i].last;
    out[3 * i + 2] = found[i].blocks;
  }
  return found.size();
}

// For blocks of the launch over counts (at most kLargeTable): entry and first element, (n, 2).
void places_of_blocks(const int64_t* counts, int64_t tensors, const uint32_t* blocks, int64_t n, int64_t* out) {
  ChunkTable<kLargeTable> table;
  table.entries = int32_t(tensors);
  uint32_t end = 0;
  for (int64_t i = 0; i < tensors; i++) table.end[i] = end += uint32_t(chunks_of(counts[i]));
  for (int64_t k = 0; k < n; k++) {
    out[2 * k] = table.entry_of(blocks[k]);
    out[2 * k + 1] = table.first_element(table.entry_of(blocks[k]), blocks[k]);
  }
}

// target_type 4: bytes, copied.
void ema(int target_type, int source_type, int64_t tensors, void** target, const void** source, const int64_t* count,
         const uint32_t* place, double momentum, const float* momentum_float, const double* momentum_double,
         const int64_t* seed) {
  const EmaNumbers numbers{momentum, momentum_float, momentum_double, seed};
  if (target_type == 4) return run_ema<uint8_t, uint8_t>(tensors, target, source, count, place, numbers);
  with_float(target_type, [&]<typename T>(T*) {
    with_float(source_type, [&]<typename S>(S*) { run_ema<T, S>(tensors, target, source, count, place, numbers); });
  });
}

// Blocks of 8 keys in this order, all of which read the pointer before the last stores it.
void enqueue(int queue_type, int keys_type, void* queue, const void* keys, int64_t* queue_ptr, const int64_t* sizes,
             int normalize, int lanes, const int64_t* order, int64_t blocks) {
  const EnqueueTask task{queue,    keys,     queue_ptr, sizes[0], sizes[1],      sizes[2],
                         sizes[3], sizes[4], sizes[5],  sizes[6], normalize != 0};
  with_float(queue_type, [&]<typename Q>(Q*) {
    with_float(keys_type, [&]<typename S>(S*) {
      for (int64_t k = 0; k < blocks; k++) {
        const CountedPointer read(*queue_ptr);
        *queue_ptr += kOneReader;
        const CircularWrite write(read.pointer, task.size, task.count);
        for (int64_t row = 8 * order[k]; row < 8 * order[k] + 8; row++) {
          double largest = 0, squares = 0;
          write_key<Q, S>(task, write, row, HostLanes{0, 1, &largest, &squares});
          if (lanes == 1 || row >= write.rows) continue;
          Q* written = static_cast<Q*>(queue) + write.place(row) * task.queue_row_stride;
          for (int64_t d = 0; d < task.dim; d++) written[d * task.queue_stride] = narrowed<Q>(-77.f);
          for (int lane = 0; lane < lanes; lane++)
            write_key<Q, S>(task, write, row, HostLanes{lane, lanes, &largest, &squares});
        }
        if (read.readers == blocks - 1) *queue_ptr = write.end();
      }
    });
  });
}
}
