// Executes the instructions of a warp.
#pragma once
#include "access.h"
#include "arithmetic.h"
#include "control.h"
#include "convert.h"
#include "exchange.h"
#include "integers.h"
#include "matrix.h"
#include "state.h"
#include "tensor_core_sm90.h"

namespace ptx {

inline void execute_computation(const Step& step) {
  switch (step.instruction.opcode) {
    case OP_add: case OP_sub: case OP_mul: case OP_mul_wide: case OP_mul_hi: case OP_div: case OP_rem: case OP_min:
    case OP_max: case OP_and: case OP_or: case OP_xor: case OP_shl: case OP_shr: case OP_copysign:
      return arithmetic(step);
    case OP_mad: case OP_mad_wide: case OP_mad_hi:
      return with_integer_type(step, [&](auto zero) { integer_multiply_add<decltype(zero)>(step); });
    case OP_fma: return fused_multiply_add(step);
    case OP_not: return complement(step);
    case OP_neg: case OP_abs: return sign(step);
    case OP_sqrt: case OP_rsqrt: case OP_rcp: case OP_ex2: case OP_lg2: case OP_sin: case OP_cos: case OP_tanh:
      return function(step);
    case OP_brev: case OP_clz: case OP_popc: case OP_bfind: return bit_count(step);
    case OP_bfe: return extract_bits(step);
    case OP_bfi: return insert_bits(step);
    case OP_lop3: return logic_of_three(step);
    case OP_shf: return funnel_shift(step);
    case OP_prmt: return permute_bytes(step);
    case OP_mov: return move(step);
    case OP_pack: return pack(step);
    case OP_unpack: return unpack(step);
    case OP_selp: return select(step);
    case OP_setp: return set_predicate(step);
    case OP_cvt: return convert(step);
    case OP_cvt_pack: return convert_pair(step);
    case OP_cvta: return convert_address(step);
    default: step.fail(0, "opcode %d", step.instruction.opcode);
  }
}

inline void execute(const Step& step) {
  switch (step.instruction.opcode) {
    case OP_ld: return load(step);
    case OP_st: return store(step);
    case OP_atom: return atomic(step);
    case OP_ldmatrix: case OP_stmatrix: return load_or_store_matrix(step);
    case OP_mma: return multiply_matrices(step);
    case OP_cp_async: return copy_async(step);
    case OP_cp_async_commit: return commit_copies(step);
    case OP_cp_async_wait: return wait_for_copies(step);
    case OP_bar: return barrier(step);
    case OP_bar_warp: return warp_barrier(step);
    case OP_fence: case OP_nop: return;  // accesses are executed in order
    case OP_fence_proxy: return fence_proxy(step);
    case OP_shfl: return shuffle(step);
    case OP_vote: return vote(step);
    case OP_activemask: return active_mask(step);
    case OP_redux: return reduce(step);
    case OP_elect: return elect(step);
    case OP_wgmma: case OP_wgmma_fence: case OP_wgmma_commit: case OP_wgmma_wait: return warpgroup_instruction(step);
    case OP_bra: return branch(step);
    case OP_brx: return indexed_branch(step);
    case OP_ret: return end_threads(step);
    case OP_trap:
      if (step.active) step.fail(step.first_active(), "trap");
      return;
    default: return execute_computation(step);
  }
}

// The lanes for which the instruction's guard holds.
inline uint32_t guarded(const Warp& warp, const Step& step) {
  const Instruction& instruction = step.instruction;
  if (instruction.predicate < 0) return warp.active;
  const uint64_t* predicate = warp.registers + size_t(instruction.predicate) * WARP;
  expect_defined(step, predicate, warp.active);
  uint32_t holds = 0;
  for (int lane = 0; lane < WARP; lane++) holds |= uint32_t(predicate[lane] != 0) << lane;
  return warp.active & (instruction.negated ? ~holds : holds);
}

// Runs a warp until it waits at a barrier or ends, but no more than `budget` instructions.
inline void run_warp(Launch& launch, Warp& warp, uint64_t budget) {
  while (warp.state == Warp::running) {
    if (warp.pc == warp.reconvergence) {
      warp.paths.back().pc = warp.pc;
      next_path(warp);
      continue;
    }
    if (budget-- == 0) return;
    const int pc = warp.pc++;
    Step step{launch, warp, launch.instructions[pc], pc, 0};
    launch.counts[pc]++;
    if (launch.executed++ == launch.limit)
      step.fail(0, "more than %llu instructions", (unsigned long long)launch.limit);
    step.active = guarded(warp, step);
    execute(step);
  }
}

}  // namespace ptx
