// The circular write (reference.enqueue_): which key goes to which row, and how CUDA blocks agree on the pointer.
#pragma once
#include "host_device.h"

namespace ssl_fast {

// Key j of `count` keys goes to row (pointer + j) mod size. Of more than `size` keys the last `size` are written, to
// the rows where writing all in turn would leave them; the others are skipped. No two keys share a row.
struct CircularWrite {
  int64_t size, skipped, rows, start;
  SSL_FAST_HOST_DEVICE CircularWrite(int64_t pointer, int64_t size, int64_t count)
      : size(size), skipped(count > size ? count - size : 0), rows(count - skipped) {
    start = (pointer % size + size + skipped % size) % size;  // the remainder may be negative
  }
  // place(row): the queue's row for key skipped + row. end(): the pointer afterwards.
  SSL_FAST_HOST_DEVICE int64_t place(int64_t row) const {
    return start + row >= size ? start + row - size : start + row;
  }
  SSL_FAST_HOST_DEVICE int64_t end() const { return place(rows); }
};

// Blocks start in any order, and some start after others have ended. No block may store the new pointer before all have
// read the old one. A block therefore reads the pointer and counts itself as a reader in one atomic addition: the high
// bits of the pointer count the readers. The block that finds all others counted stores the new pointer, which clears
// the count. There is room for 2^35 rows and 2^27 blocks, more than any device holds.
constexpr int kPointerBits = 36;
constexpr int64_t kOneReader = int64_t(1) << kPointerBits;
constexpr int64_t kMostReaders = int64_t(1) << (63 - kPointerBits);

struct CountedPointer {
  int64_t pointer, readers;
  SSL_FAST_HOST_DEVICE explicit CountedPointer(int64_t counted) {
    pointer = int64_t(uint64_t(counted) << (64 - kPointerBits)) >> (64 - kPointerBits);  // low bits, with their sign
    readers = (counted - pointer) >> kPointerBits;
  }
};

}  // namespace ssl_fast
