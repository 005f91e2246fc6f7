// Many tensors in one launch: each is cut into chunks, a block takes a chunk, and a table says where the tensors lie.
//
// The table is an argument of the kernel, by value. Nothing is copied to the device before the launch, so there is no
// buffer to keep alive or to wait for, and a CUDA graph keeps the table as it keeps any argument.
#pragma once
#include "floats.h"

#include <vector>

namespace ssl_fast {

constexpr int kThreads = 256;
constexpr int kEach = 16;  // elements a thread: it loads up to 128 bytes of each side before it waits
constexpr int64_t kChunk = kThreads * kEach;
constexpr int64_t kMostBlocks = (int64_t(1) << 31) - 1;
// How many tensors a table of either size holds. The arguments of any kernel may take 4 KB, and since CUDA 12.1 (with
// compute capability 7.0 and up) 32764 bytes.
constexpr int kSmallTable = 124, kLargeTable = 1020;

template <int CAPACITY>
struct ChunkTable {
  static constexpr int capacity = CAPACITY;
  void* target[CAPACITY];
  const void* source[CAPACITY];
  int64_t count[CAPACITY];
  uint32_t end[CAPACITY];     // chunks of this entry and all before it
  uint32_t tensor[CAPACITY];  // its place in the whole list
  int32_t entries;

  // The entry that a chunk of the launch belongs to: the first entry whose end is greater.
  SSL_FAST_HOST_DEVICE int entry_of(uint32_t chunk) const {
    int first = 0, last = entries - 1;
    while (first < last) {
      const int middle = (first + last) / 2;
      if (end[middle] > chunk)
        last = middle;
      else
        first = middle + 1;
    }
    return first;
  }
  SSL_FAST_HOST_DEVICE int64_t first_element(int entry, uint32_t chunk) const {
    return int64_t(chunk - (entry == 0 ? 0 : end[entry - 1])) * kChunk;
  }
};

inline int64_t chunks_of(int64_t count) { return count / kChunk + (count % kChunk != 0); }

// One launch: entries first .. last - 1 of a list, in `blocks` blocks.
struct Launch {
  int64_t first, last, blocks;
};

// As few launches as tables and grids allow, in the list's order. No count may be 0 or pass kMostBlocks chunks.
inline std::vector<Launch> launches_of(const int64_t* counts, int64_t tensors) {
  std::vector<Launch> out;
  for (int64_t i = 0; i < tensors; i++) {
    const int64_t blocks = chunks_of(counts[i]);
    if (out.empty() || out.back().last - out.back().first == kLargeTable || out.back().blocks + blocks > kMostBlocks)
      out.push_back({i, i, 0});
    out.back().last++;
    out.back().blocks += blocks;
  }
  return out;
}

// The table of one launch, from the whole list's addresses, counts and places.
template <typename Table>
Table table_of(const Launch& launch, void* const* target, const void* const* source, const int64_t* count,
               const uint32_t* tensor) {
  Table table;
  table.entries = int32_t(launch.last - launch.first);
  uint32_t end = 0;
  for (int i = 0; i < table.entries; i++) {
    const int64_t from = launch.first + i;
    table.target[i] = target[from];
    table.source[i] = source[from];
    table.count[i] = count[from];
    table.tensor[i] = tensor[from];
    table.end[i] = end += uint32_t(chunks_of(count[from]));
  }
  return table;
}

// Thread `thread` of kThreads combines its share of a chunk: target[i] = combine(target[i], source[i], i).
template <typename T, typename S, typename Combine>
SSL_FAST_HOST_DEVICE void combine_chunk(T* target, const S* source, int64_t count, int thread, const Combine& combine) {
  constexpr int kPacked = kPack<T, S>, kPacks = kEach / kPacked;
  // A view may begin at any element, so 16 bytes are moved at once only where both addresses are aligned.
  const int64_t packs = aligned(target, source) ? count / kPacked : 0;
  auto* wide_target = reinterpret_cast<Pack<T, kPacked>*>(target);
  auto* wide_source = reinterpret_cast<const Pack<S, kPacked>*>(source);
  Pack<T, kPacked> t[kPacks];
  Pack<S, kPacked> s[kPacks];
  SSL_FAST_UNROLL for (int k = 0; k < kPacks; k++) {  // all loads come before the first store
    const int64_t place = thread + k * kThreads;
    if (place < packs) {
      t[k] = loaded(wide_target + place);
      s[k] = loaded(wide_source + place);
    }
  }
  SSL_FAST_UNROLL for (int k = 0; k < kPacks; k++) {
    const int64_t place = thread + k * kThreads;
    if (place < packs) {
      SSL_FAST_UNROLL for (int v = 0; v < kPacked; v++)
        t[k].values[v] = combine(t[k].values[v], s[k].values[v], place * kPacked + v);
      store(wide_target + place, t[k]);
    }
  }
  for (int64_t i = packs * kPacked + thread; i < count; i += kThreads) target[i] = combine(target[i], source[i], i);
}

}  // namespace ssl_fast
