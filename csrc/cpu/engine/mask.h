// Which pairs (i, k) of a row and a column count.
#pragma once
#include "../../common/constants.h"

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

namespace ssl_fast {

// An id as the vector kernels compare it: an integer as wide as a number of type T.
template <typename T>
using Id = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// An offset of no pair.
constexpr int64_t kNoOffset = INT64_MIN / 2;

// The pairs (i, i + offset) that do not count, for up to three offsets.
struct ExcludedOffsets {
  int64_t offsets[3] = {kNoOffset, kNoOffset, kNoOffset};

  // The same offsets for a tile, which numbers its rows from `row` on and its columns from `column` on.
  ExcludedOffsets of_tile(int64_t row, int64_t column) const {
    ExcludedOffsets out;
    for (int k = 0; k < 3; k++) out.offsets[k] = offsets[k] == kNoOffset ? kNoOffset : offsets[k] + row - column;
    return out;
  }
};

// The pairs of a matrix that count: not at an excluded offset and, where there are ids, with different ids
// (equal_ids: with equal ones). column_ids can be read up to a whole group of columns beyond the last.
template <typename T>
struct Mask {
  ExcludedOffsets excluded{};
  const Id<T>*row_ids = nullptr, *column_ids = nullptr;
  bool equal_ids = false;

  // half: how far apart a row and its partner are, for kNotSelfNorPartner. Ids are given where the code has some.
  static Mask of(MaskCode code, int64_t half = 0, const Id<T>* row_ids = nullptr, const Id<T>* column_ids = nullptr) {
    Mask out{{}, row_ids, column_ids, code == kIdsEqual || code == kIdsEqualNotSelf};
    if (code == kNotSelf || code >= kIdsEqualNotSelf) out.excluded.offsets[0] = 0;
    if (code == kNotSelfNorPartner) out.excluded.offsets[1] = half, out.excluded.offsets[2] = -half;
    return out;
  }

  // The same mask for a tile that begins at this row and this column.
  Mask of_tile(int64_t row, int64_t column) const {
    return {excluded.of_tile(row, column), row_ids ? row_ids + row : nullptr,
            column_ids ? column_ids + column : nullptr, equal_ids};
  }

  // The same pairs with rows and columns exchanged. Every offset is excluded together with its negative, so the
  // offsets stay.
  Mask transposed() const { return {excluded, column_ids, row_ids, equal_ids}; }
};

// Ids of rows and of columns, narrowed to what a Mask<T> holds.
template <typename T>
class Ids {
 public:
  // a (N): of the rows; empty where the mask has no ids. b (M): of the columns; empty where a serves both sides.
  Ids(std::vector<int64_t> a, std::vector<int64_t> b) {
    if (!(fit(a) && fit(b))) renumber(a, b);
    a_ = narrowed(a), b_ = narrowed(b);
  }
  const Id<T>* of_rows() const { return a_.empty() ? nullptr : a_.data(); }
  const Id<T>* of_columns() const { return b_.empty() ? of_rows() : b_.data(); }

 private:
  static bool fit(const std::vector<int64_t>& ids) {
    return std::all_of(ids.begin(), ids.end(), [](int64_t id) { return id == Id<T>(id); });
  }
  // Replaces each id by its place among all in order: ids are equal afterwards where they were before.
  static void renumber(std::vector<int64_t>& a, std::vector<int64_t>& b) {
    std::vector<int64_t> all(a);
    all.insert(all.end(), b.begin(), b.end());
    std::sort(all.begin(), all.end());
    for (std::vector<int64_t>* ids : {&a, &b})
      for (int64_t& id : *ids) id = std::lower_bound(all.begin(), all.end(), id) - all.begin();
  }
  // With 64 more entries, because the vector kernels read whole vectors behind the last id.
  static std::vector<Id<T>> narrowed(const std::vector<int64_t>& ids) {
    if (ids.empty()) return {};
    std::vector<Id<T>> out(ids.begin(), ids.end());
    out.resize(ids.size() + 64);
    return out;
  }

  std::vector<Id<T>> a_, b_;
};

}  // namespace ssl_fast
