// Branches, the stack of divergence, barriers, the end of a thread.
#pragma once
#include <algorithm>
#include <vector>

#include "access.h"
#include "state.h"

namespace ptx {

// Goes on with the path on top of the stack; paths whose lanes have ended or wait at their reconvergence are over.
inline void next_path(Warp& warp) {
  auto over = [&](const Warp::Path& path) {
    return !(path.lanes & warp.alive) || (warp.paths.size() > 1 && path.pc == path.reconvergence);
  };
  while (!warp.paths.empty() && over(warp.paths.back())) warp.paths.pop_back();
  if (warp.paths.empty()) {
    warp.state = Warp::finished;
    warp.active = 0;
    return;
  }
  const Warp::Path& path = warp.paths.back();
  warp.pc = path.pc;
  warp.active = path.lanes & warp.alive;
  warp.reconvergence = warp.paths.size() > 1 ? path.reconvergence : -1;
}

// Sends lanes different ways: one path after the other runs until `reconvergence`, where all go on together.
inline void diverge(Warp& warp, const std::vector<Warp::Path>& ways, int reconvergence) {
  warp.paths.back().pc = reconvergence;
  for (const Warp::Path& way : ways)
    if (way.pc != reconvergence) warp.paths.push_back({way.pc, reconvergence, way.lanes});
  next_path(warp);
}

inline void branch(const Step& step) {
  Warp& warp = step.warp;
  const uint32_t others = warp.active & ~step.active;
  if (!step.active) return;
  if (!others) {
    warp.pc = step.instruction.target;
    return;
  }
  if (step.has(FLAG_uniform)) step.fail(0, "bra.uni of lanes that differ");
  diverge(warp, {{warp.pc, 0, others}, {step.instruction.target, 0, step.active}}, step.instruction.reconvergence);
}

inline void indexed_branch(const Step& step) {
  const uint64_t* index = step.operand(0);
  const uint32_t targets = uint32_t(step.instruction.operand_count - 1);
  std::vector<Warp::Path> ways;
  if (step.warp.active & ~step.active) ways.push_back({step.warp.pc, 0, step.warp.active & ~step.active});
  for_lanes(step.active, [&](int lane) {
    if (uint32_t(index[lane]) >= targets) step.fail(lane, "brx.idx %u of %u targets", uint32_t(index[lane]), targets);
    const int target = step.slot(1 + int(index[lane]));
    auto same = std::find_if(ways.begin(), ways.end(), [&](const Warp::Path& way) { return way.pc == target; });
    if (same == ways.end()) same = ways.insert(ways.end(), {target, 0, 0});
    same->lanes |= 1u << lane;
  });
  if (ways.size() == 1) {
    step.warp.pc = ways[0].pc;
  } else {
    diverge(step.warp, ways, step.instruction.reconvergence);
  }
}

inline void end_threads(const Step& step) {
  Warp& warp = step.warp;
  warp.alive &= ~step.active;
  warp.active &= ~step.active;
  warp.paths.back().pc = warp.pc;
  if (!warp.alive) report_unfinished_copies(step);
  if (!warp.active) next_path(warp);
}

// The warp waits; the scheduler opens the barrier when all warps of the block do.
inline void barrier(const Step& step) {
  if (!step.active) return;
  if (step.active != step.warp.alive)
    step.fail(0, "a barrier in divergent code: lanes %08x of %08x", step.active, step.warp.alive);
  const int first = step.first_active();
  if (step.instruction.operand_count > 1 && int(step.operand(1)[first]) != step.launch.block_threads())
    step.fail(0, "a barrier of %d of the threads is not implemented", int(step.operand(1)[first]));
  step.warp.barrier = int(step.operand(0)[first]);
  step.warp.state = Warp::at_barrier;
}

inline void warp_barrier(const Step& step) {
  if (!step.active) return;
  const uint32_t members = uint32_t(step.operand(0)[step.first_active()]);
  if ((members & step.warp.alive) != step.active)
    step.fail(0, "bar.warp.sync of lanes %08x, of which %08x are here", members, step.active);
  step.warp.epoch++;
}

}  // namespace ptx
