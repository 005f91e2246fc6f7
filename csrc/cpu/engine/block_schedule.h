// The order in which pairs of blocks of rows are computed. Where a visit of the pair (i, j) adds to the rows of both
// blocks, pairs are visited in rounds, and in a round every block is in at most one pair: threads therefore write to
// disjoint rows without locks. Where no two visits write to the same memory, there is one round of all pairs.
// In all functions grain is that of at::parallel_for: the fewest pairs for which a thread is started.
// The number of blocks alone decides in which order a block is paired with the others, so sums are the same bits at any
// thread count.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include <ATen/Parallel.h>

namespace ssl_fast {

// All pairs of the blocks of one matrix, as a round-robin tournament by the circle method: calls visit(i, j) for all
// i < j, then visit(i, i) for all i.
template <typename Visit>
void visit_symmetric_pairs(int64_t blocks, int64_t grain, const Visit& visit) {
  const int64_t seats = blocks + blocks % 2;  // with an odd number, one block sits out in each round
  const int64_t circle = seats - 1;           // all but the last seat form a circle, which turns by one a round
  for (int64_t round = 0; round < circle; round++)
    at::parallel_for(0, seats / 2, grain, [&](int64_t begin, int64_t end) {
      for (int64_t seat = begin; seat < end; seat++) {
        int64_t i = (round + seat) % circle;
        int64_t j = seat == 0 ? circle : (round + circle - seat) % circle;
        if (i > j) std::swap(i, j);
        if (j < blocks) visit(i, j);
      }
    });
  at::parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) visit(i, i);
  });
}

// All pairs of a block of rows and a block of columns of two matrices: calls visit(i, j) for all of them. In round r
// block i of the shorter side is paired with block i + r of the longer one, modulo its length.
template <typename Visit>
void visit_all_pairs(int64_t rows, int64_t columns, int64_t grain, const Visit& visit) {
  const int64_t shorter = std::min(rows, columns), longer = std::max(rows, columns);
  for (int64_t round = 0; round < longer; round++)
    at::parallel_for(0, shorter, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const int64_t j = (round + i) % longer;
        rows <= columns ? visit(i, j) : visit(j, i);
      }
    });
}

// Visits all pairs in one round, for visits of which no two write to the same memory; where both sides are the same
// matrix (`same`), only those with i <= j. There are at most as many tasks as threads, and task t of T visits the pairs
// t, t + T, t + 2 T and so on: the last block of a side may be small, and one thread would get a stretch of small
// pairs.
template <typename Visit>
void visit_independent_pairs(int64_t rows, int64_t columns, bool same, int64_t grain, const Visit& visit) {
  std::vector<std::pair<int64_t, int64_t>> pairs;
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = same ? i : 0; j < columns; j++) pairs.emplace_back(i, j);
  const int64_t count = pairs.size(), tasks = std::min<int64_t>(at::get_num_threads(), (count + grain - 1) / grain);
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++)
      for (int64_t k = task; k < count; k += tasks) visit(pairs[k].first, pairs[k].second);
  });
}

}  // namespace ssl_fast
