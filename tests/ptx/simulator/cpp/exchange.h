// What the lanes of a warp exchange: shuffles, votes, reductions.
#pragma once
#include "floats.h"
#include "state.h"

namespace ptx {

// The lanes named by a member mask must be those that execute the instruction.
inline void expect_members(const Step& step, int lane, uint32_t members) {
  if ((members & step.warp.alive) != step.active || !(members >> lane & 1))
    step.fail(lane, "lanes missing: %08x execute what %08x should", step.active, members);
}

inline void shuffle(const Step& step) {
  uint64_t *d = step.operand(0), *valid = step.operand(1);
  const uint64_t *b = step.operand(3), *c = step.operand(4), *members = step.operand(5);
  uint64_t source[WARP];
  std::memcpy(source, step.operand(2), sizeof source);
  for_lanes(step.active, [&](int lane) {
    expect_members(step, lane, uint32_t(members[lane]));
    const int distance = b[lane] & 31, clamp = c[lane] & 31, segment = c[lane] >> 8 & 31;
    const int last = (lane & segment) | (clamp & ~segment), first = lane & segment;
    int other;
    bool inside;
    switch (step.instruction.variant) {
      case SHUFFLE_up:
        other = lane - distance;
        inside = other >= last;  // for .up the clamp is the segment's first lane
        break;
      case SHUFFLE_down:
        other = lane + distance;
        inside = other <= last;
        break;
      case SHUFFLE_bfly:
        other = lane ^ distance;
        inside = other <= last;
        break;
      default: other = first | (distance & ~segment); inside = other <= last;
    }
    if (!inside) other = lane;
    if (!(step.active >> other & 1)) step.fail(lane, "shfl from lane %d, which does not take part", other);
    d[lane] = uint32_t(source[other]);
    if (step.slot(1) >= 0) valid[lane] = inside;
  });
}

inline void vote(const Step& step) {
  if (!step.active) return;
  uint64_t* d = step.operand(0);
  const uint64_t *predicate = step.operand(1), *members = step.operand(2);
  expect_defined(step, predicate, step.active);
  expect_members(step, step.first_active(), uint32_t(members[step.first_active()]));
  uint32_t yes = 0;
  for_lanes(step.active,
            [&](int lane) { yes |= uint32_t((predicate[lane] != 0) != step.has(FLAG_negate_predicate)) << lane; });
  uint64_t result;
  switch (step.instruction.variant) {
    case VOTE_all: result = yes == step.active; break;
    case VOTE_any: result = yes != 0; break;
    case VOTE_uni: result = yes == 0 || yes == step.active; break;
    default: result = yes;
  }
  for_lanes(step.active, [&](int lane) { d[lane] = result; });
}

inline void active_mask(const Step& step) {
  uint64_t* d = step.operand(0);
  for_lanes(step.active, [&](int lane) { d[lane] = step.active; });
}

inline void elect(const Step& step) {
  uint64_t *leader = step.operand(0), *chosen = step.operand(1);
  const int first = step.first_active();
  for_lanes(step.active, [&](int lane) {
    leader[lane] = first;
    chosen[lane] = lane == first;
  });
}

inline uint32_t reduced(const Step& step, uint32_t x, uint32_t y) {
  const bool with_sign = step.instruction.type == TYPE_s32;
  const bool less = with_sign ? int32_t(x) < int32_t(y) : x < y;
  switch (step.instruction.variant) {
    case ATOMIC_add: return x + y;
    case ATOMIC_min: return less ? x : y;
    case ATOMIC_max: return less ? y : x;
    case ATOMIC_and: return x & y;
    case ATOMIC_or: return x | y;
    default: return x ^ y;
  }
}

inline void reduce(const Step& step) {
  if (!step.active) return;
  uint64_t* d = step.operand(0);
  const uint64_t *a = step.operand(1), *members = step.operand(2);
  const int first = step.first_active();
  expect_members(step, first, uint32_t(members[first]));
  uint32_t result = uint32_t(a[first]);
  for_lanes(step.active & ~(1u << first), [&](int lane) { result = reduced(step, result, uint32_t(a[lane])); });
  for_lanes(step.active, [&](int lane) { d[lane] = result; });
}

}  // namespace ptx
