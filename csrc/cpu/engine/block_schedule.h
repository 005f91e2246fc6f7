// The order in which blocks of rows meet: a round-robin tournament, or, where rows and columns are of two
// matrices, a rotation. In a round every block meets at most one other, so threads write disjoint rows without locks, and each block meets the others in
// an order that the number of blocks alone decides: the same sums at any thread count.
#pragma once
#include <algorithm>
#include <utility>

#include <ATen/Parallel.h>

namespace ssl_fast {

// Calls meet(i, j) for all i < j, then meet(i, i) for all i. grain: meetings worth a thread.
template <typename Meet>
void tournament(int64_t blocks, int64_t grain, const Meet& meet) {
  const int64_t players = blocks + blocks % 2;  // with an odd number one sits out
  const int64_t circle = players - 1;           // all but the last sit in a circle and turn
  for (int64_t round = 0; round < circle; round++)
    at::parallel_for(0, players / 2, grain, [&](int64_t begin, int64_t end) {
      for (int64_t seat = begin; seat < end; seat++) {
        int64_t i = (round + seat) % circle;
        int64_t j = seat == 0 ? circle : (round + circle - seat) % circle;
        if (i > j) std::swap(i, j);
        if (j < blocks) meet(i, j);
      }
    });
  at::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) meet(i, i);
  });
}

// Calls meet(i, j) for all rows i and columns j: in a round every row meets one column, each another.
template <typename Meet>
void rotation(int64_t rows, int64_t columns, int64_t grain, const Meet& meet) {
  const int64_t seats = std::min(rows, columns), rounds = std::max(rows, columns);
  for (int64_t round = 0; round < rounds; round++)
    at::parallel_for(0, seats, grain, [&](int64_t begin, int64_t end) {
      for (int64_t seat = begin; seat < end; seat++) {
        const int64_t other = (round + seat) % rounds;
        rows <= columns ? meet(seat, other) : meet(other, seat);
      }
    });
}

}  // namespace ssl_fast
