// Starts blocks, and gives turns to them and their warps.
#pragma once
#include <algorithm>
#include <memory>
#include <numeric>

#include "interpreter.h"
#include "state.h"

namespace ptx {

constexpr uint8_t FRESH_MEMORY = 0xcb;                   // shared and local memory that nothing was written to
constexpr uint64_t FRESH_REGISTER = 0x7ff4dead7fa5dead;  // NaN as a double and as a float
constexpr uint64_t TURN = 1 << 20;                       // instructions, where blocks are not interleaved
constexpr uint64_t SHORT_TURN = 200;                     // ... where they are: up to as many

inline uint32_t special_register(const Launch& launch, const Block& block, int warp, int lane, int which) {
  const uint32_t thread = uint32_t(warp * WARP + lane), bit = 1u << lane;
  switch (which) {
    case SPECIAL_tid_x: return thread % launch.threads[0];
    case SPECIAL_tid_y: return thread / launch.threads[0] % launch.threads[1];
    case SPECIAL_tid_z: return thread / launch.threads[0] / launch.threads[1];
    case SPECIAL_ntid_x: return launch.threads[0];
    case SPECIAL_ntid_y: return launch.threads[1];
    case SPECIAL_ntid_z: return launch.threads[2];
    case SPECIAL_ctaid_x: case SPECIAL_clusterid_x: return block.index[0];
    case SPECIAL_ctaid_y: return block.index[1];
    case SPECIAL_ctaid_z: return block.index[2];
    case SPECIAL_nctaid_x: return launch.grid[0];
    case SPECIAL_nctaid_y: return launch.grid[1];
    case SPECIAL_nctaid_z: return launch.grid[2];
    case SPECIAL_laneid: return uint32_t(lane);
    case SPECIAL_warpid: return uint32_t(warp);
    case SPECIAL_nwarpid: return uint32_t(block.warps.size());
    case SPECIAL_lanemask_eq: return bit;
    case SPECIAL_lanemask_lt: return bit - 1;
    case SPECIAL_lanemask_le: return bit | (bit - 1);
    case SPECIAL_lanemask_gt: return ~(bit | (bit - 1));
    case SPECIAL_lanemask_ge: return ~(bit - 1);
    case SPECIAL_cluster_nctaid_x: return 1;  // clusters are of one block
    case SPECIAL_dynamic_smem_size: return uint32_t(launch.shared_bytes);
    default: return 0;  // a block's place in its cluster
  }
}

inline void start_warp(const Launch& launch, Block& block, int index) {
  Warp& warp = block.warps[index];
  warp.block = &block;
  warp.index = index;
  warp.registers = block.registers.data() + size_t(index) * launch.slots * WARP;
  const int lanes = std::min(WARP, launch.block_threads() - WARP * index);
  warp.launched = warp.alive = warp.active = lanes == WARP ? ALL_LANES : (1u << lanes) - 1;
  warp.paths.push_back({0, -1, warp.launched});
  auto fill = [&](int slot, auto value) {
    for (int lane = 0; lane < WARP; lane++) warp.registers[size_t(slot) * WARP + lane] = value(lane);
  };
  for (const auto& [slot, bits] : launch.constant_slots) fill(slot, [bits = bits](int) { return bits; });
  for (int slot : launch.predicate_slots) fill(slot, [](int) { return UNDEFINED; });
  for (const auto& [slot, which] : launch.special_slots)
    fill(slot, [&, which = which](int lane) { return special_register(launch, block, index, lane, which); });
}

inline std::unique_ptr<Block> start_block(const Launch& launch, uint32_t linear) {
  auto block = std::make_unique<Block>();
  block->linear = linear;
  block->index[0] = linear % launch.grid[0];
  block->index[1] = linear / launch.grid[0] % launch.grid[1];
  block->index[2] = linear / launch.grid[0] / launch.grid[1];
  const int warps = (launch.block_threads() + WARP - 1) / WARP;
  block->shared.assign(launch.shared_bytes, FRESH_MEMORY);
  block->shadow.resize(launch.shared_bytes);
  block->local.assign(size_t(warps) * WARP * launch.local_bytes, FRESH_MEMORY);
  block->registers.assign(size_t(warps) * launch.slots * WARP, FRESH_REGISTER);
  block->warps.resize(warps);
  for (int index = 0; index < warps; index++) start_warp(launch, *block, index);
  return block;
}

// All warps wait: opens the barrier.
inline void open_barrier(Launch& launch, Block& block, int finished) {
  auto fail = [&](Warp& warp, const char* what) {
    const int pc = warp.pc - 1;
    Step{launch, warp, launch.instructions[pc], pc, 0}.fail(0, "%s", what);
  };
  Warp* first = nullptr;
  for (Warp& warp : block.warps) {
    if (warp.state != Warp::at_barrier) continue;
    if (finished) fail(warp, "a barrier that other warps never reach: they have ended");
    if (first && warp.barrier != first->barrier) fail(warp, "deadlock: warps wait at different barriers");
    if (!first) first = &warp;
  }
  block.epoch++;
  for (Warp& warp : block.warps) warp.state = Warp::running;
}

// One turn of a block: each warp that can run does. False when the block has ended.
inline bool take_turn(Launch& launch, Block& block, uint64_t budget, bool shuffled) {
  std::vector<int> order(block.warps.size());
  std::iota(order.begin(), order.end(), 0);
  if (shuffled) std::shuffle(order.begin(), order.end(), launch.random);
  for (int index : order) run_warp(launch, block.warps[index], budget);
  auto count = [&](Warp::State state) {
    return std::count_if(block.warps.begin(), block.warps.end(), [&](const Warp& warp) { return warp.state == state; });
  };
  const int finished = int(count(Warp::finished));
  if (finished == int(block.warps.size())) return false;
  if (count(Warp::running) == 0) open_barrier(launch, block, finished);
  return true;
}

// Seed 0 runs blocks and warps in their order; `interleaved` blocks are under way at the same time.
inline void run_grid(Launch& launch, uint32_t seed, size_t interleaved) {
  std::vector<uint32_t> order(size_t(launch.grid[0]) * launch.grid[1] * launch.grid[2]);
  std::iota(order.begin(), order.end(), 0);
  if (seed) std::shuffle(order.begin(), order.end(), launch.random);
  std::vector<std::unique_ptr<Block>> live;
  size_t next = 0;
  while (next < order.size() || !live.empty()) {
    while (next < order.size() && live.size() < interleaved) live.push_back(start_block(launch, order[next++]));
    const size_t index = seed ? launch.random() % live.size() : 0;
    const uint64_t budget = interleaved > 1 ? 1 + launch.random() % SHORT_TURN : TURN;
    if (!take_turn(launch, *live[index], budget, seed != 0)) live.erase(live.begin() + long(index));
  }
}

}  // namespace ptx
