// Arithmetic on integers and predicates, and operations on bits.
#pragma once
#include <algorithm>
#include <type_traits>

#include "floats.h"
#include "state.h"

namespace ptx {

template <class T>
T divided(T x, T y) {
  if (y == 0) return T(~T(0));  // undefined in the ISA; devices give all ones
  if (std::is_signed_v<T> && y == T(-1)) return T(0 - std::make_unsigned_t<T>(x));  // the smallest number / -1
  return T(x / y);
}

template <class T>
T remainder_of(T x, T y) {
  if (y == 0) return x;
  if (std::is_signed_v<T> && y == T(-1)) return 0;
  return T(x % y);
}

// The upper half of the product.
template <class T>
T product_high(T x, T y) {
  using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  return T((Wide(x) * Wide(y)) >> (8 * sizeof(T)));
}

// The whole product, of two types of up to 32 bits.
template <class T>
uint64_t product_wide(T x, T y) {
  const uint64_t product = uint64_t(int64_t(x) * int64_t(y));
  return sizeof(T) == 2 ? uint32_t(product) : product;
}

template <class T>
T shifted_right(T x, uint32_t count) {
  if (count >= 8 * sizeof(T)) return std::is_signed_v<T> && x < 0 ? T(-1) : T(0);
  return T(x >> count);
}

template <class T>
void integer_arithmetic(const Step& step) {
  using U = std::make_unsigned_t<T>;
  uint64_t* d = step.operand(0);
  const uint64_t *a = step.operand(1), *b = step.operand(2);
  // U(...) in between: unsigned arithmetic wraps, and a register holds zeros above the type.
  auto apply = [&](auto f) { for_lanes(step.active, [&](int lane) { d[lane] = U(f(T(a[lane]), T(b[lane]))); }); };
  switch (step.instruction.opcode) {
    case OP_add: return apply([](T x, T y) { return uint64_t(x) + uint64_t(y); });
    case OP_sub: return apply([](T x, T y) { return uint64_t(x) - uint64_t(y); });
    case OP_mul: return apply([](T x, T y) { return uint64_t(x) * uint64_t(y); });
    case OP_mul_hi: return apply([](T x, T y) { return product_high<T>(x, y); });
    case OP_div: return apply([](T x, T y) { return divided<T>(x, y); });
    case OP_rem: return apply([](T x, T y) { return remainder_of<T>(x, y); });
    case OP_min: return apply([](T x, T y) { return std::min(x, y); });
    case OP_max: return apply([](T x, T y) { return std::max(x, y); });
    case OP_and: return apply([](T x, T y) { return x & y; });
    case OP_or: return apply([](T x, T y) { return x | y; });
    case OP_xor: return apply([](T x, T y) { return x ^ y; });
    case OP_mul_wide:
      return for_lanes(step.active, [&](int lane) { d[lane] = product_wide<T>(T(a[lane]), T(b[lane])); });
    // The count is 32 bits wide whatever T is.
    case OP_shl:
      return for_lanes(step.active, [&](int lane) {
        const uint32_t count = uint32_t(b[lane]);
        d[lane] = count >= 8 * sizeof(T) ? 0 : U(U(a[lane]) << count);
      });
    case OP_shr:
      return for_lanes(step.active, [&](int lane) { d[lane] = U(shifted_right<T>(T(a[lane]), uint32_t(b[lane]))); });
    default: step.fail(0, "integer operation %d", step.instruction.opcode);
  }
}

template <class T>
void integer_multiply_add(const Step& step) {
  using U = std::make_unsigned_t<T>;
  uint64_t* d = step.operand(0);
  const uint64_t *a = step.operand(1), *b = step.operand(2), *c = step.operand(3);
  switch (step.instruction.opcode) {
    case OP_mad:
      return for_lanes(step.active,
                       [&](int lane) { d[lane] = U(uint64_t(T(a[lane])) * uint64_t(T(b[lane])) + c[lane]); });
    case OP_mad_hi:
      return for_lanes(step.active,
                       [&](int lane) { d[lane] = U(U(product_high<T>(T(a[lane]), T(b[lane]))) + U(c[lane])); });
    default:  // mad_wide
      return for_lanes(step.active, [&](int lane) {
        const uint64_t sum = product_wide<T>(T(a[lane]), T(b[lane])) + c[lane];
        d[lane] = sizeof(T) == 2 ? uint32_t(sum) : sum;
      });
  }
}

// Calls f with a value of the C++ type of a PTX integer type.
template <class F>
void with_integer_type(const Step& step, F f) {
  switch (step.instruction.type) {
    case TYPE_u16: case TYPE_b16: return f(uint16_t());
    case TYPE_s16: return f(int16_t());
    case TYPE_u32: case TYPE_b32: return f(uint32_t());
    case TYPE_s32: return f(int32_t());
    case TYPE_u64: case TYPE_b64: return f(uint64_t());
    case TYPE_s64: return f(int64_t());
    default: step.fail(0, "integer operation of type %d", step.instruction.type);
  }
}

inline void predicate_logic(const Step& step) {
  uint64_t* d = step.operand(0);
  const uint64_t *a = step.operand(1), *b = step.operand(2);
  const int opcode = step.instruction.opcode;
  for_lanes(step.active, [&](int lane) {
    const uint64_t x = a[lane], y = b[lane];
    // An undefined predicate may be masked by another, as in (i < n) & (x[i] > 0).
    const bool decided = (opcode == OP_and && (x == 0 || y == 0)) || (opcode == OP_or && (x == 1 || y == 1));
    if (!decided && (x >= UNDEFINED || y >= UNDEFINED)) step.fail(lane, "undefined predicate");
    d[lane] = opcode == OP_and ? (x == 1) & (y == 1) : opcode == OP_or ? (x == 1) | (y == 1) : x ^ y;
  });
}

inline void complement(const Step& step) {
  uint64_t* d = step.operand(0);
  const uint64_t* a = step.operand(1);
  if (step.instruction.type == TYPE_pred) {
    expect_defined(step, a, step.active);
    for_lanes(step.active, [&](int lane) { d[lane] = !a[lane]; });
  } else {
    const uint64_t mask = low_bits(bits_of(step.instruction.type));
    for_lanes(step.active, [&](int lane) { d[lane] = ~a[lane] & mask; });
  }
}

inline void integer_sign(const Step& step) {
  uint64_t* d = step.operand(0);
  const uint64_t* a = step.operand(1);
  const int bits = bits_of(step.instruction.type);
  const uint64_t mask = low_bits(bits);
  const bool only_negative = step.instruction.opcode == OP_abs;
  for_lanes(step.active, [&](int lane) {
    const bool negate = !only_negative || (a[lane] >> (bits - 1) & 1);
    d[lane] = (negate ? 0 - a[lane] : a[lane]) & mask;
  });
}

// brev, clz, popc, bfind.
inline void bit_count(const Step& step) {
  uint64_t* d = step.operand(0);
  const uint64_t* a = step.operand(1);
  const int bits = bits_of(step.instruction.type);
  for_lanes(step.active, [&](int lane) {
    uint64_t x = a[lane] & low_bits(bits);
    switch (step.instruction.opcode) {
      case OP_popc: d[lane] = __builtin_popcountll(x); break;
      case OP_clz: d[lane] = x ? __builtin_clzll(x) - (64 - bits) : bits; break;
      case OP_brev: {
        uint64_t reversed = 0;
        for (int i = 0; i < bits; i++) reversed |= (x >> i & 1) << (bits - 1 - i);
        d[lane] = reversed;
        break;
      }
      default: {  // bfind: the highest bit that differs from the sign
        if (is_signed(step.instruction.type) && x >> (bits - 1)) x = ~x & low_bits(bits);
        const int position = x ? 63 - __builtin_clzll(x) : -1;
        d[lane] = position < 0 ? 0xffffffffu : step.has(FLAG_shift_amount) ? bits - 1 - position : position;
      }
    }
  });
}

inline void extract_bits(const Step& step) {
  uint64_t* d = step.operand(0);
  const uint64_t *a = step.operand(1), *b = step.operand(2), *c = step.operand(3);
  const int bits = bits_of(step.instruction.type);
  const bool extend = is_signed(step.instruction.type);
  for_lanes(step.active, [&](int lane) {
    const int position = b[lane] & 255, length = c[lane] & 255;
    const uint64_t x = a[lane] & low_bits(bits);
    const int inside = std::clamp(bits - position, 0, length);
    uint64_t field = inside ? x >> position & low_bits(inside) : 0;
    // Bits of the field beyond the register, too, are copies of the sign, its last bit inside.
    const int sign = std::min(position + length - 1, bits - 1);
    if (extend && length && (x >> sign & 1)) field |= ~low_bits(inside);
    d[lane] = field & low_bits(bits);
  });
}

inline void insert_bits(const Step& step) {
  uint64_t* d = step.operand(0);
  const uint64_t *a = step.operand(1), *b = step.operand(2), *c = step.operand(3), *e = step.operand(4);
  const int bits = bits_of(step.instruction.type);
  for_lanes(step.active, [&](int lane) {
    const int position = c[lane] & 255, length = e[lane] & 255;
    const int inside = std::clamp(bits - position, 0, length);
    const uint64_t field = inside ? low_bits(inside) << position : 0;
    const uint64_t moved = inside ? a[lane] << position : 0;
    d[lane] = ((b[lane] & ~field) | (moved & field)) & low_bits(bits);
  });
}

// d = f(a, b, c) bit by bit; `table` holds f at the index 4 a + 2 b + c.
inline void logic_of_three(const Step& step) {
  uint64_t* d = step.operand(0);
  const uint64_t *a = step.operand(1), *b = step.operand(2), *c = step.operand(3);
  const int64_t table = step.instruction.immediate;
  for_lanes(step.active, [&](int lane) {
    const uint32_t x = uint32_t(a[lane]), y = uint32_t(b[lane]), z = uint32_t(c[lane]);
    uint32_t result = 0;
    for (int i = 0; i < 8; i++)
      if (table >> i & 1) result |= (i & 4 ? x : ~x) & (i & 2 ? y : ~y) & (i & 1 ? z : ~z);
    d[lane] = result;
  });
}

inline void funnel_shift(const Step& step) {
  uint64_t* d = step.operand(0);
  const uint64_t *a = step.operand(1), *b = step.operand(2), *c = step.operand(3);
  for_lanes(step.active, [&](int lane) {
    const uint64_t both = (a[lane] & 0xffffffff) | b[lane] << 32;
    const uint32_t count = step.has(FLAG_wrap) ? c[lane] & 31 : std::min<uint32_t>(uint32_t(c[lane]), 32);
    d[lane] = step.has(FLAG_right) ? uint32_t(both >> count) : uint32_t((both << count) >> 32);
  });
}

// Each byte of d is a byte of b:a, or eight copies of its sign, as four bits of c say.
inline void permute_bytes(const Step& step) {
  uint64_t* d = step.operand(0);
  const uint64_t *a = step.operand(1), *b = step.operand(2), *c = step.operand(3);
  for_lanes(step.active, [&](int lane) {
    const uint64_t both = (a[lane] & 0xffffffff) | b[lane] << 32;
    uint32_t result = 0;
    for (int i = 0; i < 4; i++) {
      const uint32_t selector = c[lane] >> (4 * i) & 15;
      uint32_t byte = both >> (8 * (selector & 7)) & 255;
      if (selector & 8) byte = byte & 128 ? 255 : 0;
      result |= byte << (8 * i);
    }
    d[lane] = result;
  });
}

}  // namespace ptx
