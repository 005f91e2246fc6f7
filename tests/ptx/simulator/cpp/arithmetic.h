// Arithmetic on floating-point numbers.
#pragma once
#include "floats.h"
#include "integers.h"
#include "state.h"

namespace ptx {

// PTX orders zeros: -0 is less than +0. A NaN loses to a number unless nan_wins.
template <class T>
T smaller(T x, T y, bool nan_wins) {
  if (x != x || y != y) return nan_wins || (x != x && y != y) ? T(NAN) : x != x ? y : x;
  return x < y || (x == y && std::signbit(x)) ? x : y;
}
template <class T>
T larger(T x, T y, bool nan_wins) {
  if (x != x || y != y) return nan_wins || (x != x && y != y) ? T(NAN) : x != x ? y : x;
  return x > y || (x == y && std::signbit(y)) ? x : y;
}

// The result of an approximation: exactly rounded, or a few units in the last place from it, up to `units`
// either way, as its bits have it.
inline float approximation(const Step& step, double exact, int units) {
  const float rounded = float(exact);
  if (!step.launch.inexact_approximations || !std::isfinite(rounded) || rounded == 0) return rounded;
  const uint32_t bits = bit_cast<uint32_t>(rounded);
  const uint32_t hash = bits * 2654435761u >> 16;
  const uint32_t moved = bits + hash % (2 * units + 1) - units;
  const float result = bit_cast<float>(moved);
  return std::isfinite(result) && std::signbit(result) == std::signbit(rounded) ? result : rounded;
}

inline void float32_arithmetic(const Step& step) {
  uint64_t* d = step.operand(0);
  const uint64_t *a = step.operand(1), *b = step.operand(2);
  const bool flush = step.has(FLAG_ftz), nan_wins = step.has(FLAG_nan);
  auto apply = [&](auto f) {
    if (flush) {
      for_lanes(step.active, [&](int lane) {
        d[lane] = from_float(flushed(f(flushed(to_float(a[lane])), flushed(to_float(b[lane])))));
      });
    } else {
      for_lanes(step.active, [&](int lane) { d[lane] = from_float(f(to_float(a[lane]), to_float(b[lane]))); });
    }
  };
  switch (step.instruction.opcode) {
    case OP_add: return apply([](float x, float y) { return x + y; });
    case OP_sub: return apply([](float x, float y) { return x - y; });
    case OP_mul: return apply([](float x, float y) { return x * y; });
    case OP_div:
      if (!step.has(FLAG_approx)) return apply([](float x, float y) { return x / y; });
      return apply([&](float x, float y) { return approximation(step, double(x) / y, 2); });
    case OP_min: return apply([=](float x, float y) { return smaller(x, y, nan_wins); });
    case OP_max: return apply([=](float x, float y) { return larger(x, y, nan_wins); });
    case OP_copysign:  // PTX: the sign of a, the magnitude of b
      return for_lanes(step.active, [&](int lane) { d[lane] = (a[lane] & 0x80000000u) | (b[lane] & 0x7fffffffu); });
    default: step.fail(0, "float operation %d", step.instruction.opcode);
  }
}

inline void float64_arithmetic(const Step& step) {
  uint64_t* d = step.operand(0);
  const uint64_t *a = step.operand(1), *b = step.operand(2);
  auto apply = [&](auto f) {
    for_lanes(step.active, [&](int lane) { d[lane] = from_double(f(to_double(a[lane]), to_double(b[lane]))); });
  };
  switch (step.instruction.opcode) {
    case OP_add: return apply([](double x, double y) { return x + y; });
    case OP_sub: return apply([](double x, double y) { return x - y; });
    case OP_mul: return apply([](double x, double y) { return x * y; });
    case OP_div: return apply([](double x, double y) { return x / y; });
    case OP_min: return apply([](double x, double y) { return smaller(x, y, false); });
    case OP_max: return apply([](double x, double y) { return larger(x, y, false); });
    case OP_copysign:
      return for_lanes(step.active, [&](int lane) { d[lane] = (a[lane] >> 63 << 63) | (b[lane] << 1 >> 1); });
    default: step.fail(0, "double operation %d", step.instruction.opcode);
  }
}

// f of the 16-bit numbers in the registers, one or two to a lane.
template <class F>
void for_16_bit_numbers(const Step& step, F f) {
  const int type = step.instruction.type;
  const int parts = type == TYPE_f16x2 || type == TYPE_bf16x2 ? 2 : 1;
  for_lanes(step.active, [&](int lane) {
    uint64_t result = 0;
    for (int part = 0; part < parts; part++) {
      auto number = [&](int operand) { return to_16(type, step.operand(operand)[lane] >> (16 * part)); };
      result |= from_16(type, f(number)) << (16 * part);
    }
    step.operand(0)[lane] = result;
  });
}

inline void float16_arithmetic(const Step& step) {
  if (step.has(FLAG_ftz)) step.fail(0, "ftz of 16-bit numbers");
  const bool nan_wins = step.has(FLAG_nan);
  for_16_bit_numbers(step, [&](auto number) {
    const double x = number(1), y = number(2);
    switch (step.instruction.opcode) {
      case OP_add: return sum_for_rounding(x, y);
      case OP_sub: return sum_for_rounding(x, -y);
      case OP_mul: return x * y;
      case OP_min: return smaller(x, y, nan_wins);
      case OP_max: return larger(x, y, nan_wins);
      default: step.fail(0, "16-bit operation %d", step.instruction.opcode);
    }
  });
}

inline void arithmetic(const Step& step) {
  switch (step.instruction.type) {
    case TYPE_f32: return float32_arithmetic(step);
    case TYPE_f64: return float64_arithmetic(step);
    case TYPE_f16: case TYPE_bf16: case TYPE_f16x2: case TYPE_bf16x2: return float16_arithmetic(step);
    case TYPE_pred: return predicate_logic(step);
    default: return with_integer_type(step, [&](auto zero) { integer_arithmetic<decltype(zero)>(step); });
  }
}

// The sign flags are of products and sums that contraction.py fused.
inline void fused_multiply_add(const Step& step) {
  uint64_t* d = step.operand(0);
  const uint64_t *a = step.operand(1), *b = step.operand(2), *c = step.operand(3);
  const int product_sign = step.has(FLAG_negate_product) ? -1 : 1;
  const int addend_sign = step.has(FLAG_negate_addend) ? -1 : 1;
  switch (step.instruction.type) {
    case TYPE_f32:
      if (step.has(FLAG_ftz)) {
        return for_lanes(step.active, [&](int lane) {
          const float x = flushed(to_float(a[lane])), y = flushed(to_float(b[lane])), z = flushed(to_float(c[lane]));
          d[lane] = from_float(flushed(std::fma(product_sign * x, y, addend_sign * z)));
        });
      }
      return for_lanes(step.active, [&](int lane) {
        const float x = product_sign * to_float(a[lane]), z = addend_sign * to_float(c[lane]);
        d[lane] = from_float(std::fma(x, to_float(b[lane]), z));
      });
    case TYPE_f64:
      return for_lanes(step.active, [&](int lane) {
        const double x = product_sign * to_double(a[lane]), z = addend_sign * to_double(c[lane]);
        d[lane] = from_double(std::fma(x, to_double(b[lane]), z));
      });
    default:  // a product of two 16-bit numbers is exact in a double
      return for_16_bit_numbers(step, [](auto number) { return sum_for_rounding(number(1) * number(2), number(3)); });
  }
}

// neg and abs.
inline void sign(const Step& step) {
  uint64_t sign_bits;
  switch (step.instruction.type) {
    case TYPE_f32: sign_bits = 0x80000000; break;
    case TYPE_f64: sign_bits = 0x8000000000000000; break;
    case TYPE_f16: case TYPE_bf16: sign_bits = 0x8000; break;
    case TYPE_f16x2: case TYPE_bf16x2: sign_bits = 0x80008000; break;
    default: return integer_sign(step);
  }
  uint64_t* d = step.operand(0);
  const uint64_t* a = step.operand(1);
  const bool negate = step.instruction.opcode == OP_neg, flush = step.has(FLAG_ftz);
  if (flush && step.instruction.type != TYPE_f32) step.fail(0, "ftz of this type");
  for_lanes(step.active, [&](int lane) {
    const uint64_t bits = flush ? from_float(flushed(to_float(a[lane]))) : a[lane];
    d[lane] = negate ? bits ^ sign_bits : bits & ~sign_bits;
  });
}

inline double function_of(int opcode, double x) {
  switch (opcode) {
    case OP_sqrt: return std::sqrt(x);
    case OP_rsqrt: return 1 / std::sqrt(x);
    case OP_rcp: return 1 / x;
    case OP_ex2: return std::exp2(x);
    case OP_lg2: return std::log2(x);
    case OP_sin: return std::sin(x);
    case OP_cos: return std::cos(x);
    default: return std::tanh(x);
  }
}

inline void function(const Step& step) {
  uint64_t* d = step.operand(0);
  const uint64_t* a = step.operand(1);
  const int opcode = step.instruction.opcode;
  const bool flush = step.has(FLAG_ftz), approximate = step.has(FLAG_approx);
  if (step.instruction.type == TYPE_f32) {
    const int units = opcode == OP_sqrt ? 1 : 2;
    return for_lanes(step.active, [&](int lane) {
      const float x = flush ? flushed(to_float(a[lane])) : to_float(a[lane]);
      const double exact = function_of(opcode, x);
      const float result = approximate ? approximation(step, exact, units) : float(exact);
      d[lane] = from_float(flush ? flushed(result) : result);
    });
  }
  if (approximate && opcode == OP_sqrt) step.fail(0, "sqrt.approx.f64");
  for_lanes(step.active, [&](int lane) {
    // rcp.approx.ftz.f64 and rsqrt.approx.f64 read and give the upper 32 bits of a double.
    const uint64_t kept = approximate ? 0xffffffff00000000 : ~0ull;
    const double x = to_double(a[lane] & kept);
    const double result = function_of(opcode, flush ? flushed(x) : x);
    d[lane] = from_double(flush ? flushed(result) : result) & kept;
  });
}

}  // namespace ptx
