// Floating-point formats: the bits in a register, and numbers.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "names.h"

namespace ptx {

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// A register's lane is 64 bits; narrower values are in its low bits, with zeros above.
inline float to_float(uint64_t bits) { return bit_cast<float>(uint32_t(bits)); }
inline double to_double(uint64_t bits) { return bit_cast<double>(bits); }

// Results that are NaN have one canonical pattern, as on devices.
inline uint64_t from_float(float x) { return x != x ? 0x7fffffff : bit_cast<uint32_t>(x); }
inline uint64_t from_double(double x) { return x != x ? 0x7ff8000000000000 : bit_cast<uint64_t>(x); }

// .ftz: subnormal numbers become zeros of the same sign.
inline float flushed(float x) { return std::fabs(x) < 1.17549435e-38f ? std::copysign(0.0f, x) : x; }
inline double flushed(double x) { return std::fabs(x) < 2.2250738585072014e-308 ? std::copysign(0.0, x) : x; }

// x in a format of that many exponent and mantissa bits, below a sign.
inline uint32_t narrowed(double x, int exponent_bits, int mantissa_bits, int rounding) {
  const uint32_t infinity = ((1u << exponent_bits) - 1) << mantissa_bits;
  const uint32_t sign = std::signbit(x) ? 1u << (exponent_bits + mantissa_bits) : 0;
  if (x != x) return (1u << (exponent_bits + mantissa_bits)) - 1;
  if (std::isinf(x)) return sign | infinity;
  if (x == 0) return sign;
  const double magnitude = std::fabs(x);
  int exponent;
  std::frexp(magnitude, &exponent);
  exponent -= 1;  // magnitude = 1.m * 2^exponent
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int smallest = 1 - bias;  // below, numbers are subnormal and have its unit in the last place
  const bool subnormal = exponent < smallest;
  const int unit = (subnormal ? smallest : exponent) - mantissa_bits;
  const double scaled = std::ldexp(magnitude, -unit);
  const double low = std::floor(scaled), rest = scaled - low;
  bool up;
  switch (rounding) {
    case ROUND_rz: up = false; break;
    case ROUND_rm: up = rest > 0 && sign; break;
    case ROUND_rp: up = rest > 0 && !sign; break;
    case ROUND_rna: up = rest >= 0.5; break;
    default: up = rest > 0.5 || (rest == 0.5 && std::fmod(low, 2.0) == 1.0);
  }
  const uint64_t mantissa = uint64_t(low) + up;
  // The mantissa of a normal number holds its leading one, which adds one to the exponent.
  const uint64_t bits = subnormal ? mantissa : (uint64_t(exponent + bias - 1) << mantissa_bits) + mantissa;
  if (bits < infinity) return sign | uint32_t(bits);
  const bool stays_finite = rounding == ROUND_rz || (rounding == ROUND_rm && !sign) || (rounding == ROUND_rp && sign);
  return sign | (stays_finite ? infinity - 1 : infinity);
}

inline double to_half(uint64_t bits) {
  const uint32_t exponent = bits >> 10 & 31, mantissa = bits & 1023;
  double magnitude;
  if (exponent == 31) {
    magnitude = mantissa ? NAN : INFINITY;
  } else if (exponent == 0) {
    magnitude = std::ldexp(double(mantissa), -24);
  } else {
    magnitude = std::ldexp(double(mantissa | 1024), int(exponent) - 25);
  }
  return bits & 0x8000 ? -magnitude : magnitude;
}
inline double to_bfloat(uint64_t bits) { return to_float((bits & 0xffff) << 16); }
inline uint32_t from_half(double x, int rounding = ROUND_rn) { return narrowed(x, 5, 10, rounding); }
inline uint32_t from_bfloat(double x, int rounding = ROUND_rn) { return narrowed(x, 8, 7, rounding); }

// 16-bit formats and their pairs.
inline bool is_half(int type) { return type == TYPE_f16 || type == TYPE_f16x2; }
inline double to_16(int type, uint64_t bits) { return is_half(type) ? to_half(bits) : to_bfloat(bits); }
inline uint64_t from_16(int type, double x, int rounding = ROUND_rn) {
  return is_half(type) ? from_half(x, rounding) : from_bfloat(x, rounding);
}

// Matrix units ignore the low 13 bits of TF32 operands; cvt.tf32 rounds to what they keep.
inline float cut_to_tf32(uint64_t bits) { return to_float(bits & ~0x1fffull); }
inline uint32_t from_tf32(float x, int rounding) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  if (x != x) return 0x7fffffff;
  if (std::isinf(x) || rounding == ROUND_rz) return bits & ~0x1fffu;
  if (rounding == ROUND_rna) return (bits + 0x1000) & ~0x1fffu;
  return (bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu;  // to nearest, ties to even
}

// x + y, whose last bit is set if it is not exact: rounding to a shorter format later rounds the exact sum.
inline double sum_for_rounding(double x, double y) {
  const double sum = x + y;
  const double part = sum - x;
  const double error = (x - (sum - part)) + (y - part);
  uint64_t bits = bit_cast<uint64_t>(sum);
  if (error == 0 || error != error || std::isinf(sum) || bits & 1) return sum;
  bits += (error > 0) == (sum > 0) ? 1 : -1;  // away from zero if the exact sum is there
  return bit_cast<double>(bits);
}

inline int bytes_of(int type) {
  switch (type) {
    case TYPE_b8: case TYPE_u8: case TYPE_s8: return 1;
    case TYPE_b16: case TYPE_u16: case TYPE_s16: case TYPE_f16: case TYPE_bf16: return 2;
    case TYPE_b32: case TYPE_u32: case TYPE_s32: case TYPE_f32: case TYPE_tf32: return 4;
    case TYPE_f16x2: case TYPE_bf16x2: return 4;
    case TYPE_b64: case TYPE_u64: case TYPE_s64: case TYPE_f64: return 8;
    default: return 0;
  }
}
inline int bits_of(int type) { return 8 * bytes_of(type); }
inline bool is_signed(int type) { return type == TYPE_s8 || type == TYPE_s16 || type == TYPE_s32 || type == TYPE_s64; }
inline bool is_float(int type) {
  return type == TYPE_f16 || type == TYPE_bf16 || type == TYPE_f32 || type == TYPE_f64 || type == TYPE_tf32;
}
inline uint64_t low_bits(int count) { return count >= 64 ? ~0ull : (1ull << count) - 1; }
inline int64_t sign_extended(uint64_t value, int bits) {
  return bits == 64 ? int64_t(value) : int64_t(value << (64 - bits)) >> (64 - bits);
}

}  // namespace ptx
