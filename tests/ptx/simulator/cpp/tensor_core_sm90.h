// wgmma of sm_90: four warps multiply matrices that lie in shared memory, asynchronously.
#pragma once
#include "floats.h"
#include "memory.h"
#include "state.h"

namespace ptx {

// A matrix descriptor (PTX ISA, "Matrix descriptor format" of wgmma).
struct Descriptor {
  uint64_t start, leading_offset, stride_offset;  // bytes
  int base_offset, swizzle;                       // 0: none, 1: 128 bytes, 2: 64, 3: 32

  explicit Descriptor(uint64_t bits)
      : start((bits & 0x3fff) << 4),
        leading_offset((bits >> 16 & 0x3fff) << 4),
        stride_offset((bits >> 32 & 0x3fff) << 4),
        base_offset(bits >> 49 & 7),
        swizzle(bits >> 62 & 3) {}
};

// The address of element (line, k), where a line is a row of a or a column of b. Unless `transposed`, k runs along
// the rows of memory.
inline uint64_t element_address(const Step& step, uint64_t bits, int line, int k, int bytes, bool transposed) {
  const Descriptor matrix(bits);
  if (matrix.base_offset) step.fail(0, "base offset of a matrix descriptor");
  const int row_bytes = matrix.swizzle ? 256 >> matrix.swizzle : 16;
  const int per_row = row_bytes / bytes;
  uint64_t address = matrix.start;
  if (transposed) {
    if (bytes != 2) step.fail(0, "transposed matrices have 16-bit elements");
    const uint64_t across = matrix.swizzle ? matrix.leading_offset : matrix.stride_offset;
    const uint64_t down = matrix.swizzle ? matrix.stride_offset : matrix.leading_offset;
    address += (line / per_row) * across + (line % per_row) * bytes + (k / 8) * down + (k % 8) * row_bytes;
  } else {
    if (matrix.swizzle && k >= per_row) step.fail(0, "k beyond the swizzled row");
    address += (line / 8) * matrix.stride_offset + (line % 8) * row_bytes;
    address += (k / per_row) * matrix.leading_offset + (k % per_row) * bytes;
  }
  // The swizzle exchanges 16-byte units; it is a function of the absolute address.
  const uint64_t units = matrix.swizzle ? (1 << (4 - matrix.swizzle)) - 1 : 0;
  return address ^ (address >> 7 & units) << 4;
}

inline double element(const Step& step, uint64_t address, int type) {
  const int bytes = type == TYPE_tf32 ? 4 : 2;
  const uint64_t offset = address - SHARED_BASE;
  const uint8_t* memory = shared_memory(step, 0, {address, bytes, Access::read});
  const Block& block = *step.warp.block;
  const SharedShadow& shadow = block.shadow[offset];
  if (shadow.write_thread >= 0) {
    // Either the writer fenced after its write, and a barrier made that known, or this warp fenced since.
    const Warp& writer = block.warps[shadow.write_thread / WARP];
    if (writer.proxy_fences <= shadow.proxy_fences && step.warp.proxy_fence_epoch <= shadow.write_epoch)
      step.report(REPORT_UNFENCED_PROXY, shadow.write_pc, offset, 0, shadow.write_thread);
  }
  uint32_t bits = 0;
  std::memcpy(&bits, memory, bytes);
  return bytes == 4 ? cut_to_tf32(bits) : to_16(type, bits);
}

// a of this warp: 16 of the 64 rows, [row][k].
inline std::vector<double> rows_of_a(const Step& step, const Product& product) {
  const Instruction& wgmma = step.instruction;
  const int bytes = wgmma.source_type == TYPE_tf32 ? 4 : 2, depth = wgmma.depth;
  std::vector<double> a(16 * depth);
  for (int row = 0; !wgmma.a_registers && row < 16; row++)
    for (int k = 0; k < depth; k++) {
      const int line = (step.warp.index & 3) * 16 + row;
      const uint64_t address = element_address(step, product.a, line, k, bytes, step.has(FLAG_transpose_a));
      a[row * depth + k] = element(step, address, wgmma.source_type);
    }
  for (int r = 0; r < wgmma.a_registers; r++)
    for (int lane = 0; lane < WARP; lane++) {
      const uint64_t bits = step.operand(wgmma.elements + r)[lane];
      double* row = &a[((lane >> 2) + 8 * (r & 1)) * depth];
      if (bytes == 4) row[(lane & 3) + 4 * (r >> 1)] = cut_to_tf32(bits);
      for (int i = 0; bytes == 2 && i < 2; i++)
        row[(lane & 3) * 2 + i + 8 * (r >> 1)] = to_16(wgmma.source_type, bits >> (16 * i));
    }
  return a;
}

// Computed when it is waited for: until then the registers hold what they held, as a reader in between may see.
inline void finish_product(const Step& waiting, const Product& product) {
  const Instruction& wgmma = waiting.launch.instructions[product.pc];
  const Step step{waiting.launch, waiting.warp, wgmma, product.pc, ALL_LANES};
  const int bytes = wgmma.source_type == TYPE_tf32 ? 4 : 2, depth = wgmma.depth;
  const std::vector<double> a = rows_of_a(step, product);
  std::vector<double> b(wgmma.columns * depth);
  for (int column = 0; column < wgmma.columns; column++)
    for (int k = 0; k < depth; k++) {
      const uint64_t address = element_address(step, product.b, column, k, bytes, step.has(FLAG_transpose_b));
      b[column * depth + k] = element(step, address, wgmma.source_type);
    }
  for (int i = 0; i < wgmma.elements; i++)
    for (int lane = 0; lane < WARP; lane++) {
      const int row = (lane >> 2) + 8 * (i >> 1 & 1), column = 8 * (i >> 2) + (lane & 3) * 2 + (i & 1);
      double sum = 0;
      for (int k = 0; k < depth; k++) sum += a[row * depth + k] * b[column * depth + k];
      uint64_t& result = step.operand(i)[lane];
      result = from_float(float(product.accumulate ? sum + double(to_float(result)) : sum));
    }
}

inline void start_product(const Step& step) {
  const Instruction& wgmma = step.instruction;
  if (!step.warp.products_fenced) step.fail(0, "wgmma.mma_async without wgmma.fence");
  const int after_a = wgmma.elements + (wgmma.a_registers ? wgmma.a_registers : 1);
  const uint64_t *a = step.operand(wgmma.elements), *b = step.operand(after_a);
  const uint64_t* accumulate = step.operand(after_a + 1);
  expect_defined(step, accumulate, ALL_LANES);
  for (int lane = 1; lane < WARP; lane++)
    if (b[lane] != b[0] || (!wgmma.a_registers && a[lane] != a[0])) step.fail(lane, "descriptors differ among lanes");
  step.warp.products.open.push_back({step.pc, wgmma.a_registers ? 0 : a[0], b[0], accumulate[0] != 0});
}

inline void fence_proxy(const Step& step) {
  if (!step.has(FLAG_async_proxy)) return;
  step.warp.proxy_fences++;
  step.warp.proxy_fence_epoch = step.warp.block->epoch;
}

inline void warpgroup_instruction(const Step& step) {
  expect_all_lanes(step);
  Warp& warp = step.warp;
  switch (step.instruction.opcode) {
    case OP_wgmma: return start_product(step);
    case OP_wgmma_fence: warp.products_fenced = true; return;
    case OP_wgmma_commit:
      warp.products.commit();
      warp.products_fenced = false;
      return;
    default:
      return warp.products.wait(size_t(step.instruction.immediate),
                                [&](const Product& product) { finish_product(step, product); });
  }
}

}  // namespace ptx
