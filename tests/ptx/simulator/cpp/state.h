// A launch, its blocks, their warps, and the instruction that a warp is at.
#pragma once
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "names.h"

namespace ptx {

constexpr int WARP = 32;
constexpr uint32_t ALL_LANES = ~0u;

struct Fault : std::runtime_error {
  int pc;  // -1: no instruction
  Fault(const std::string& message, int pc) : std::runtime_error(message), pc(pc) {}
};

struct Report {
  int kind, pc, other_pc;  // other_pc: of the earlier access, -1 without one
  uint64_t address;
  int thread, other_thread, block;
  int64_t count;
};

// Who last wrote and read a byte of global memory. Blocks count from 1; 0: nobody.
struct GlobalShadow {
  uint32_t write_block, write_thread, write_epoch;
  int32_t write_pc;
  uint32_t read_block, read_thread, read_epoch;
  int32_t read_pc;
};
constexpr uint32_t SEVERAL_BLOCKS = ~0u;

struct Region {
  uint64_t begin, end;
  GlobalShadow* shadow;  // null: races are not looked for
};

// The same for a byte of shared memory. An epoch is the time between two barriers of the block, a warp epoch
// that between two bar.warp.sync of the warp. Threads: -1 for nobody.
struct SharedShadow {
  enum State : uint8_t { uninitialised, initialised, in_flight };
  uint32_t write_epoch = 0, write_warp_epoch = 0, read_epoch = 0, read_warp_epoch = 0;
  uint32_t proxy_fences = 0;  // of the writing warp until then
  int32_t write_pc = -1, read_pc = -1;
  int16_t write_thread = -1, read_thread = -1;
  State state = uninitialised;
  bool read_by_several_warps = false, read_by_several_lanes = false;
};

// A cp.async of one lane.
struct Copy {
  int lane;
  uint64_t destination, source;
  int bytes, source_bytes, pc;
};

// A wgmma.mma_async that nothing waited for yet.
struct Product {
  int pc;
  uint64_t a, b;  // matrix descriptors
  bool accumulate;
};

// Operations in the order of their commit: those after the last commit are open.
template <class T>
struct Groups {
  std::vector<T> open;
  std::vector<std::vector<T>> committed;

  void commit() {
    committed.push_back(std::move(open));
    open.clear();
  }
  // Calls finish for all operations but those of the latest `kept` groups.
  template <class Finish>
  void wait(size_t kept, Finish finish) {
    while (committed.size() > kept) {
      for (T& operation : committed.front()) finish(operation);
      committed.erase(committed.begin());
    }
  }
};

struct Block;

struct Warp {
  enum State { running, at_barrier, finished };
  // Lanes that execute together: an entry of the stack of divergence.
  struct Path {
    int pc, reconvergence;
    uint32_t lanes;
  };

  Block* block;
  int index;
  uint64_t* registers;  // [slot][lane]
  uint32_t launched, alive, active;
  int pc = 0, reconvergence = -1;
  State state = running;
  std::vector<Path> paths;
  uint32_t epoch = 1;
  int barrier = -1;
  Groups<Copy> copies;
  Groups<Product> products;
  bool products_fenced = false;
  uint32_t proxy_fences = 1, proxy_fence_epoch = 0;
};

struct Block {
  uint32_t linear;
  uint32_t index[3];
  uint32_t epoch = 1;
  std::vector<uint8_t> shared, local;
  std::vector<SharedShadow> shadow;  // of shared
  std::vector<uint64_t> registers;
  std::vector<Warp> warps;
};

struct Launch {
  const Instruction* instructions;
  const int32_t* operands;
  int slots;
  uint32_t threads[3], grid[3];
  int shared_bytes, local_bytes;
  std::vector<uint8_t> parameters, constants;
  std::vector<Region> regions;
  size_t last_region = 0;  // where the last access was found
  std::vector<std::pair<int, uint64_t>> constant_slots;
  std::vector<std::pair<int, int>> special_slots;
  std::vector<int> predicate_slots;
  bool inexact_approximations, vary_winning_lane;
  uint64_t limit, executed = 0;
  std::mt19937 random;
  uint64_t* counts;                                     // [instruction]
  std::map<std::tuple<int, int, int>, Report> reports;  // by kind and the two instructions
  uint64_t discarded[WARP];                             // results written to `_`

  int block_threads() const { return int(threads[0] * threads[1] * threads[2]); }
};

// One instruction of a warp, with the lanes whose guard holds.
struct Step {
  Launch& launch;
  Warp& warp;
  const Instruction& instruction;
  int pc;
  uint32_t active;

  int32_t slot(int index) const { return launch.operands[instruction.first_operand + index]; }
  // 32 lanes of an operand.
  uint64_t* operand(int index) const {
    return slot(index) < 0 ? launch.discarded : warp.registers + size_t(slot(index)) * WARP;
  }
  bool has(Flag flag) const { return instruction.flags & flag; }
  int thread(int lane) const { return warp.index * WARP + lane; }
  int first_active() const { return __builtin_ctz(active ? active : 1); }

  void report(ReportKind kind, int other_pc, uint64_t address, int lane, int other_thread) const {
    auto key = std::make_tuple(int(kind), pc, other_pc);
    const Report first{kind, pc, other_pc, address, thread(lane), other_thread, int(warp.block->linear), 0};
    launch.reports.emplace(key, first).first->second.count++;
  }

  [[noreturn]] __attribute__((format(printf, 3, 4))) void fail(int lane, const char* format, ...) const {
    char what[300], message[420];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    const uint32_t* block = warp.block->index;
    std::snprintf(message, sizeof message, "%s (block %u,%u,%u warp %d lane %d)", what, block[0], block[1], block[2],
                  warp.index, lane);
    throw Fault(message, pc);
  }
};

// Calls f(lane) for the lanes of a mask. The loop over all lanes is one that the compiler vectorises.
template <class F>
inline void for_lanes(uint32_t mask, F f) {
  if (mask == ALL_LANES) {
    for (int lane = 0; lane < WARP; lane++) f(lane);
  } else {
    for (int lane = 0; lane < WARP; lane++)
      if (mask >> lane & 1) f(lane);
  }
}

// Predicates hold 0 or 1; UNDEFINED until they are first written.
constexpr uint64_t UNDEFINED = 2;
inline void expect_defined(const Step& step, const uint64_t* predicate, uint32_t lanes) {
  for (int lane = 0; lane < WARP; lane++)
    if ((lanes >> lane & 1) && predicate[lane] >= UNDEFINED) step.fail(lane, "undefined predicate");
}

// Instructions with .aligned: all lanes of the warp execute them together.
inline void expect_all_lanes(const Step& step) {
  if (step.active != step.warp.alive || step.warp.alive != step.warp.launched)
    step.fail(0, "an aligned instruction with lanes missing: mask %08x", step.active);
}

}  // namespace ptx
