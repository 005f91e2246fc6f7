// ldmatrix, stmatrix and mma: which lane holds which element (PTX ISA, "Warp-level matrix instructions").
#pragma once
#include "floats.h"
#include "memory.h"
#include "state.h"

namespace ptx {

// 8 x 8 matrices of 16-bit elements; lane 8 j + r holds the address of row r of matrix j.
inline void load_or_store_matrix(const Step& step) {
  expect_all_lanes(step);
  const int count = step.instruction.elements;
  const bool transpose = step.has(FLAG_transpose), load = step.instruction.opcode == OP_ldmatrix;
  const uint64_t* base = step.operand(count);
  uint64_t rows[WARP], results[4][WARP];
  for (int lane = 0; lane < WARP; lane++) rows[lane] = (base[lane] & IN_WINDOW) + step.instruction.immediate;
  for (int lane = 0; lane < 8 * count; lane++) expect_shared(step, lane, rows[lane], 16, 16);
  for (int matrix = 0; matrix < count; matrix++) {
    for (int lane = 0; lane < WARP; lane++) {
      results[matrix][lane] = 0;
      for (int i = 0; i < 2; i++) {
        const int pair = (lane & 3) * 2 + i, line = lane >> 2;
        const int row = transpose ? pair : line, column = transpose ? line : pair;
        const uint64_t address = rows[8 * matrix + row] + 2 * column;
        if (load) {
          uint16_t element;
          std::memcpy(&element, shared_memory_within(step, lane, {address, 2, Access::read}), 2);
          results[matrix][lane] |= uint64_t(element) << (16 * i);
        } else {
          const uint16_t element = uint16_t(step.operand(matrix)[lane] >> (16 * i));
          const Access access{address, 2, Access::write, reinterpret_cast<const uint8_t*>(&element)};
          std::memcpy(shared_memory_within(step, lane, access), &element, 2);
        }
      }
    }
  }
  if (load)
    for (int matrix = 0; matrix < count; matrix++) std::memcpy(step.operand(matrix), results[matrix], sizeof rows);
}

// The largest shape is m16n8k16.
struct Fragments {
  double a[16][16], b[16][8], c[16][8];
};

// 16-bit elements come in pairs: register r of a lane holds two neighbours of a row of a, of a column of b.
inline void read_16_bit_operands(const Step& step, const uint64_t* const* a, const uint64_t* const* b, Fragments& f) {
  const Instruction& mma = step.instruction;
  for (int lane = 0; lane < WARP; lane++) {
    const int group = lane >> 2, pair = (lane & 3) * 2;
    for (int i = 0; i < 2; i++) {
      for (int r = 0; r < mma.a_registers; r++)
        f.a[group + 8 * (r & 1)][pair + i + 8 * (r >> 1)] = to_16(mma.source_type, a[r][lane] >> (16 * i));
      for (int r = 0; r < mma.b_registers; r++)
        f.b[pair + i + 8 * r][group] = to_16(mma.source_type, b[r][lane] >> (16 * i));
    }
  }
}

// tf32 and f64: one element a register.
inline void read_wide_operands(const Step& step, const uint64_t* const* a, const uint64_t* const* b, Fragments& f) {
  const Instruction& mma = step.instruction;
  auto element = [&](uint64_t bits) { return mma.source_type == TYPE_f64 ? to_double(bits) : cut_to_tf32(bits); };
  for (int lane = 0; lane < WARP; lane++) {
    const int group = lane >> 2, in_group = lane & 3;
    for (int r = 0; r < mma.a_registers; r++) {
      // m8n8k4 has 8 rows and one register; the others alternate between the upper and the lower 8 rows.
      f.a[group + 8 * (r & 1)][in_group + 4 * (r >> 1)] = element(a[r][lane]);
    }
    for (int r = 0; r < mma.b_registers; r++) f.b[in_group + 4 * r][group] = element(b[r][lane]);
  }
}

// The sum of c and the products. Units sum 16-bit and TF32 products in a way that is not documented, at least as
// exactly as float; here the products, exact in double, are summed in double and rounded once.
inline double product_and_sum(const Instruction& mma, const Fragments& f, int row, int column) {
  double sum = mma.type == TYPE_f64 ? f.c[row][column] : 0;
  for (int k = 0; k < mma.depth; k++) sum = std::fma(f.a[row][k], f.b[k][column], sum);
  return mma.type == TYPE_f64 ? sum : sum + f.c[row][column];
}

inline void multiply_matrices(const Step& step) {
  expect_all_lanes(step);
  const Instruction& mma = step.instruction;
  const uint64_t *a[8], *b[4], *c[4];
  uint64_t* d[4];
  int operand = 0;
  for (int r = 0; r < mma.elements; r++) d[r] = step.operand(operand++);
  for (int r = 0; r < mma.a_registers; r++) a[r] = step.operand(operand++);
  for (int r = 0; r < mma.b_registers; r++) b[r] = step.operand(operand++);
  for (int r = 0; r < mma.elements; r++) c[r] = step.operand(operand++);
  Fragments f;
  const bool wide = mma.source_type == TYPE_tf32 || mma.source_type == TYPE_f64;
  wide ? read_wide_operands(step, a, b, f) : read_16_bit_operands(step, a, b, f);
  // Element i of a lane of c and d; with f16 results a register holds two.
  const int per_register = mma.type == TYPE_f16 ? 2 : 1;
  auto for_elements = [&](auto visit) {
    for (int lane = 0; lane < WARP; lane++)
      for (int i = 0; i < mma.elements * per_register; i++)
        visit(lane, i / per_register, 16 * (i % per_register), (lane >> 2) + 8 * (i >> 1), (lane & 3) * 2 + (i & 1));
  };
  for_elements([&](int lane, int r, int shift, int row, int column) {
    f.c[row][column] = to_number(mma.type, c[r][lane] >> shift);
  });
  uint64_t results[4][WARP] = {};
  for_elements([&](int lane, int r, int shift, int row, int column) {
    const double result = product_and_sum(mma, f, row, column);
    results[r][lane] |= (mma.type == TYPE_f64   ? from_double(result)
                         : mma.type == TYPE_f16 ? from_half(result)
                                                : from_float(float(result)))
                        << shift;
  });
  for (int r = 0; r < mma.elements; r++) std::memcpy(d[r], results[r], sizeof results[r]);
}

}  // namespace ptx
