// cvt between all types, and comparison.
#pragma once
#include "floats.h"
#include "state.h"

namespace ptx {

inline double to_number(int type, uint64_t bits) {
  switch (type) {
    case TYPE_f64: return to_double(bits);
    case TYPE_f16: case TYPE_bf16: return to_16(type, bits);
    default: return to_float(bits);  // f32, tf32
  }
}

inline double rounded_to_integer(double x, int rounding) {
  switch (rounding) {
    case ROUND_rzi: return std::trunc(x);
    case ROUND_rmi: return std::floor(x);
    case ROUND_rpi: return std::ceil(x);
    default: return std::nearbyint(x);
  }
}

inline uint64_t integer_to_integer(const Instruction& cvt, uint64_t bits) {
  const int from = bits_of(cvt.source_type), to = bits_of(cvt.type);
  const uint64_t masked = bits & low_bits(from);
  __int128 x = is_signed(cvt.source_type) ? __int128(sign_extended(masked, from)) : __int128(masked);
  if (cvt.flags & FLAG_sat) {
    const __int128 one = 1;
    const __int128 least = is_signed(cvt.type) ? -(one << (to - 1)) : 0;
    const __int128 most = is_signed(cvt.type) ? (one << (to - 1)) - 1 : (one << to) - 1;
    x = x < least ? least : x > most ? most : x;
  }
  return uint64_t(x) & low_bits(to);
}

// Out of range: the nearest integer there is.
inline uint64_t float_to_integer(const Instruction& cvt, uint64_t bits) {
  double x = to_number(cvt.source_type, bits);
  if (cvt.source_type == TYPE_f32 && cvt.flags & FLAG_ftz) x = flushed(float(x));
  const int to = bits_of(cvt.type);
  // PTX ISA, "cvt": NaN gives 0, but the smallest integer where one of the types has 64 bits.
  if (x != x) return to == 64 || cvt.source_type == TYPE_f64 ? 1ull << (to - 1) : 0;
  x = rounded_to_integer(x, cvt.rounding);
  if (is_signed(cvt.type)) {
    const double limit = std::ldexp(1.0, to - 1);
    const uint64_t most = low_bits(to) >> 1;
    return (x >= limit ? most : x < -limit ? ~most : uint64_t(int64_t(x))) & low_bits(to);
  }
  return x <= 0 ? 0 : x >= std::ldexp(1.0, to) ? low_bits(to) : uint64_t(x);
}

inline uint64_t integer_to_float(const Step& step, int lane, uint64_t bits) {
  const Instruction& cvt = step.instruction;
  const int from = bits_of(cvt.source_type);
  const uint64_t natural = bits & low_bits(from);
  const int64_t integer = sign_extended(natural, from);
  const bool with_sign = is_signed(cvt.source_type);
  if (cvt.rounding != ROUND_rn) step.fail(lane, "cvt of an integer that does not round to nearest");
  switch (cvt.type) {
    case TYPE_f32: return from_float(with_sign ? float(integer) : float(natural));
    case TYPE_f64: return from_double(with_sign ? double(integer) : double(natural));
    default: return from_16(cvt.type, with_sign ? double(integer) : double(natural));
  }
}

inline float double_to_float(double x, int rounding) {
  const float nearest = float(x);
  if (rounding == ROUND_rz && std::fabs(double(nearest)) > std::fabs(x)) return std::nextafter(nearest, 0.0f);
  if (rounding == ROUND_rm && nearest > x) return std::nextafter(nearest, -INFINITY);
  if (rounding == ROUND_rp && nearest < x) return std::nextafter(nearest, INFINITY);
  return nearest;
}

inline uint64_t float_to_float(const Instruction& cvt, uint64_t bits) {
  const bool flush = cvt.flags & FLAG_ftz;
  double x = to_number(cvt.source_type, bits);
  if (flush && cvt.source_type == TYPE_f32) x = flushed(float(x));
  if (cvt.rounding >= ROUND_rni) x = rounded_to_integer(x, cvt.rounding);
  switch (cvt.type) {
    case TYPE_f64: return from_double(x);
    case TYPE_f32: {
      const float result = double_to_float(x, cvt.rounding);
      return from_float(flush ? flushed(result) : result);
    }
    case TYPE_tf32: return from_tf32(float(x), cvt.rounding);
    default: return from_16(cvt.type, x, cvt.rounding);
  }
}

inline void convert(const Step& step) {
  const Instruction& cvt = step.instruction;
  uint64_t* d = step.operand(0);
  const uint64_t* a = step.operand(1);
  const bool from_number = is_float(cvt.source_type), to_a_number = is_float(cvt.type);
  for_lanes(step.active, [&](int lane) {
    const uint64_t x = a[lane];
    d[lane] = from_number   ? (to_a_number ? float_to_float(cvt, x) : float_to_integer(cvt, x))
              : to_a_number ? integer_to_float(step, lane, x)
                            : integer_to_integer(cvt, x);
  });
}

// Two floats to a pair of 16-bit numbers, the first in the upper half.
inline void convert_pair(const Step& step) {
  const Instruction& cvt = step.instruction;
  uint64_t* d = step.operand(0);
  const uint64_t *upper = step.operand(1), *lower = step.operand(2);
  for_lanes(step.active, [&](int lane) {
    d[lane] = from_16(cvt.type, to_float(upper[lane]), cvt.rounding) << 16 |
              from_16(cvt.type, to_float(lower[lane]), cvt.rounding);
  });
}

// Comparisons without u are false for NaN, those with it true.
inline bool compare_numbers(const Step& step, double x, double y) {
  const bool unordered = x != x || y != y;
  switch (step.instruction.comparison) {
    case CMP_eq: return x == y;
    case CMP_ne: return !unordered && x != y;
    case CMP_lt: return x < y;
    case CMP_le: return x <= y;
    case CMP_gt: return x > y;
    case CMP_ge: return x >= y;
    case CMP_equ: return unordered || x == y;
    case CMP_neu: return unordered || x != y;
    case CMP_ltu: return unordered || x < y;
    case CMP_leu: return unordered || x <= y;
    case CMP_gtu: return unordered || x > y;
    case CMP_geu: return unordered || x >= y;
    case CMP_num: return !unordered;
    case CMP_nan: return unordered;
    default: step.fail(0, "comparison %d of floats", step.instruction.comparison);
  }
}

inline bool compare_integers(const Step& step, uint64_t x, uint64_t y) {
  const int bits = bits_of(step.instruction.type);
  x &= low_bits(bits);
  y &= low_bits(bits);
  const bool with_sign = is_signed(step.instruction.type);
  const bool less = with_sign ? sign_extended(x, bits) < sign_extended(y, bits) : x < y;
  switch (step.instruction.comparison) {
    case CMP_eq: return x == y;
    case CMP_ne: return x != y;
    case CMP_lt: return less;
    case CMP_le: return less || x == y;
    case CMP_gt: return !less && x != y;
    case CMP_ge: return !less;
    case CMP_lo: return x < y;
    case CMP_ls: return x <= y;
    case CMP_hi: return x > y;
    case CMP_hs: return x >= y;
    default: step.fail(0, "comparison %d of integers", step.instruction.comparison);
  }
}

// setp: d = the comparison, q = its complement, both combined with a predicate c if there is one.
inline void set_predicate(const Step& step) {
  const Instruction& setp = step.instruction;
  uint64_t *d = step.operand(0), *q = step.operand(1);
  const uint64_t *a = step.operand(2), *b = step.operand(3);
  const uint64_t* c = setp.variant == COMBINE_none ? nullptr : step.operand(4);
  if (c) expect_defined(step, c, step.active);
  const bool flush = step.has(FLAG_ftz);
  auto combined = [&](bool result, bool other) {
    switch (setp.variant) {
      case COMBINE_and: return result && other;
      case COMBINE_or: return result || other;
      default: return result != other;
    }
  };
  for_lanes(step.active, [&](int lane) {
    bool result;
    if (is_float(setp.type)) {
      double x = to_number(setp.type, a[lane]), y = to_number(setp.type, b[lane]);
      if (flush) x = flushed(float(x)), y = flushed(float(y));
      result = compare_numbers(step, x, y);
    } else {
      result = compare_integers(step, a[lane], b[lane]);
    }
    const bool other = c && (c[lane] != 0) != step.has(FLAG_negate_predicate);
    d[lane] = c ? combined(result, other) : result;
    if (step.slot(1) >= 0) q[lane] = c ? combined(!result, other) : !result;
  });
}

inline void select(const Step& step) {
  uint64_t* d = step.operand(0);
  const uint64_t *a = step.operand(1), *b = step.operand(2), *predicate = step.operand(3);
  expect_defined(step, predicate, step.active);
  const uint64_t mask = low_bits(bits_of(step.instruction.type));
  for_lanes(step.active, [&](int lane) { d[lane] = (predicate[lane] ? a[lane] : b[lane]) & mask; });
}

}  // namespace ptx
