// Memory: where an address lies, whether it may be accessed, and who accessed it before.
//
// An access to shared memory races with an earlier one of another warp if no barrier of the block was passed
// between them, and with one of another lane of the same warp if no bar.warp.sync was. Warps do not run in
// lockstep since sm_70, so order within a warp needs the latter.
#pragma once
#include "floats.h"
#include "state.h"

namespace ptx {

constexpr uint64_t SHARED_BASE = 1024;  // as in symbols.py
// Generic addresses of what is not global memory: a window's number in the top byte.
constexpr uint64_t CONSTANT_WINDOW = 0x0c, PARAMETER_WINDOW = 0x0d, LOCAL_WINDOW = 0x0e, SHARED_WINDOW = 0x0f;
constexpr uint64_t IN_WINDOW = 0xffffffff;

struct Access {
  enum Mode { read, write, atomic };
  uint64_t address;
  int bytes;
  Mode mode;
  const uint8_t* value = nullptr;  // what a write is about to store
};

inline uint64_t window_of(int space) {
  switch (space) {
    case SPACE_shared: return SHARED_WINDOW;
    case SPACE_param: return PARAMETER_WINDOW;
    case SPACE_local: return LOCAL_WINDOW;
    case SPACE_const: return CONSTANT_WINDOW;
    default: return 0;
  }
}

inline Region* region_of(Launch& launch, uint64_t address, int bytes) {
  auto within = [&](const Region& region) { return address >= region.begin && address + bytes <= region.end; };
  if (launch.last_region < launch.regions.size() && within(launch.regions[launch.last_region]))
    return &launch.regions[launch.last_region];
  for (size_t index = 0; index < launch.regions.size(); index++)
    if (within(launch.regions[index])) return &launch.regions[launch.last_region = index];
  return nullptr;
}

[[noreturn]] inline void fail_out_of_bounds(const Step& step, int lane, const Access& access) {
  const char* what = access.mode == Access::read ? "read" : access.mode == Access::write ? "write" : "atomic";
  const std::vector<Region>& regions = step.launch.regions;
  size_t nearest = 0;
  uint64_t distance = ~0ull;
  for (size_t index = 0; index < regions.size(); index++) {
    const Region& region = regions[index];
    const uint64_t away = access.address >= region.end    ? access.address - region.end
                          : access.address < region.begin ? region.begin - access.address
                                                          : 0;
    if (away < distance) distance = away, nearest = index;
  }
  if (regions.empty()) step.fail(lane, "out of bounds: global %s, and there is no buffer", what);
  step.fail(lane, "out of bounds: global %s of %d bytes, %llu bytes %s buffer %zu of %llu bytes", what, access.bytes,
            (unsigned long long)distance,
            access.address >= regions[nearest].end ? "past the end of" : "before or across", nearest,
            (unsigned long long)(regions[nearest].end - regions[nearest].begin));
}

inline void track_global(const Step& step, int lane, const Access& access, uint64_t address, GlobalShadow& shadow,
                         bool same_value) {
  const uint32_t block = step.warp.block->linear + 1, epoch = step.warp.block->epoch;
  const uint32_t thread = uint32_t(step.thread(lane));
  // Blocks and warps may all write the same value, as long as no other block read it before.
  const bool silent = same_value && !(shadow.read_block && shadow.read_block != block);
  auto compare = [&](uint32_t other_block, uint32_t other_thread, uint32_t other_epoch, int pc) {
    if (other_block && other_block != block) {
      step.report(REPORT_GLOBAL_BETWEEN_BLOCKS, pc, address, lane, int(other_thread));
    } else if (other_block && other_epoch == epoch && other_thread / WARP != thread / WARP) {
      step.report(REPORT_GLOBAL_BETWEEN_WARPS, pc, address, lane, int(other_thread));
    }
  };
  if (!silent) compare(shadow.write_block, shadow.write_thread, shadow.write_epoch, shadow.write_pc);
  if (access.mode == Access::write) {
    if (!silent) compare(shadow.read_block, shadow.read_thread, shadow.read_epoch, shadow.read_pc);
    shadow.write_block = block;
    shadow.write_thread = thread;
    shadow.write_epoch = epoch;
    shadow.write_pc = step.pc;
  } else {
    shadow.read_block = shadow.read_block && shadow.read_block != block ? SEVERAL_BLOCKS : block;
    shadow.read_thread = thread;
    shadow.read_epoch = epoch;
    shadow.read_pc = step.pc;
  }
}

inline uint8_t* global_memory(const Step& step, int lane, const Access& access) {
  Region* region = region_of(step.launch, access.address, access.bytes);
  if (!region) fail_out_of_bounds(step, lane, access);
  if (access.address % access.bytes) step.fail(lane, "misaligned global access of %d bytes", access.bytes);
  uint8_t* memory = reinterpret_cast<uint8_t*>(access.address);
  if (region->shadow && access.mode != Access::atomic) {
    for (int i = 0; i < access.bytes; i++) {
      const bool same_value = access.value && memory[i] == access.value[i];
      track_global(step, lane, access, access.address + i, region->shadow[access.address - region->begin + i],
                   same_value);
    }
  }
  return memory;
}

inline void track_shared_write(const Step& step, int lane, uint64_t offset, SharedShadow& shadow, bool same_value) {
  const uint32_t epoch = step.warp.block->epoch;
  const int16_t thread = int16_t(step.thread(lane));
  const bool same_warp_wrote = shadow.write_thread / WARP == step.warp.index;
  const bool same_warp_read = shadow.read_thread / WARP == step.warp.index;
  // What is there already may be written again.
  const bool silent = same_value && shadow.state == SharedShadow::initialised;
  if (!silent && shadow.write_thread >= 0 && shadow.write_epoch == epoch && shadow.write_thread != thread) {
    if (!same_warp_wrote) {
      step.report(REPORT_WRITE_AFTER_WRITE, shadow.write_pc, offset, lane, shadow.write_thread);
    } else if (shadow.write_warp_epoch == step.warp.epoch && shadow.write_pc != step.pc) {
      step.report(REPORT_LANE_WRITE_AFTER_WRITE, shadow.write_pc, offset, lane, shadow.write_thread);
    }
  }
  if (!silent && shadow.read_thread >= 0 && shadow.read_epoch == epoch) {
    const bool other_lane = shadow.read_by_several_lanes || shadow.read_thread != thread;
    if (shadow.read_by_several_warps || !same_warp_read) {
      step.report(REPORT_WRITE_AFTER_READ, shadow.read_pc, offset, lane, shadow.read_thread);
    } else if (shadow.read_warp_epoch == step.warp.epoch && other_lane) {
      step.report(REPORT_LANE_WRITE_AFTER_READ, shadow.read_pc, offset, lane, shadow.read_thread);
    }
  }
  shadow.write_thread = thread;
  shadow.write_epoch = epoch;
  shadow.write_warp_epoch = step.warp.epoch;
  shadow.write_pc = step.pc;
  shadow.proxy_fences = step.warp.proxy_fences;
  shadow.state = SharedShadow::initialised;
}

inline void track_shared_read(const Step& step, int lane, uint64_t offset, SharedShadow& shadow) {
  const uint32_t epoch = step.warp.block->epoch;
  const int16_t thread = int16_t(step.thread(lane));
  if (shadow.state == SharedShadow::uninitialised) step.report(REPORT_UNINITIALISED, -1, offset, lane, -1);
  if (shadow.write_thread >= 0 && shadow.write_epoch == epoch && shadow.write_thread != thread) {
    if (shadow.write_thread / WARP != step.warp.index) {
      step.report(REPORT_READ_AFTER_WRITE, shadow.write_pc, offset, lane, shadow.write_thread);
    } else if (shadow.write_warp_epoch == step.warp.epoch) {
      step.report(REPORT_LANE_READ_AFTER_WRITE, shadow.write_pc, offset, lane, shadow.write_thread);
    }
  }
  if (shadow.read_thread < 0 || shadow.read_epoch != epoch) {
    shadow.read_by_several_warps = shadow.read_by_several_lanes = false;
  } else if (shadow.read_thread != thread) {
    if (shadow.read_thread / WARP != step.warp.index) {
      shadow.read_by_several_warps = true;
    } else {
      shadow.read_by_several_lanes = shadow.read_warp_epoch == step.warp.epoch;
    }
  }
  shadow.read_thread = thread;
  shadow.read_epoch = epoch;
  shadow.read_warp_epoch = step.warp.epoch;
  shadow.read_pc = step.pc;
}

inline void expect_shared(const Step& step, int lane, uint64_t address, int bytes, int alignment) {
  const long long offset = (long long)(address - SHARED_BASE);
  if (address < SHARED_BASE || address + bytes > SHARED_BASE + step.launch.shared_bytes)
    step.fail(lane, "out of bounds: shared access of %d bytes at offset %lld of %d", bytes, offset,
              step.launch.shared_bytes);
  if (address % alignment) step.fail(lane, "misaligned shared access of %d bytes at offset %lld", alignment, offset);
}

// Bounds and alignment have been looked at.
inline uint8_t* shared_memory_within(const Step& step, int lane, const Access& access) {
  Block& block = *step.warp.block;
  const uint64_t offset = access.address - SHARED_BASE;
  for (int i = 0; i < access.bytes; i++) {
    SharedShadow& shadow = block.shadow[offset + i];
    if (shadow.state == SharedShadow::in_flight)
      step.report(REPORT_IN_FLIGHT, shadow.write_pc, offset + i, lane, shadow.write_thread);
    if (access.mode == Access::write) {
      const bool same_value = access.value && block.shared[offset + i] == access.value[i];
      track_shared_write(step, lane, offset + i, shadow, same_value);
    } else if (access.mode == Access::read) {
      track_shared_read(step, lane, offset + i, shadow);
    } else if (shadow.state == SharedShadow::uninitialised) {
      step.report(REPORT_UNINITIALISED, -1, offset + i, lane, -1);
    }
  }
  return block.shared.data() + offset;
}

inline uint8_t* shared_memory(const Step& step, int lane, const Access& access) {
  expect_shared(step, lane, access.address, access.bytes, access.bytes);
  return shared_memory_within(step, lane, access);
}

inline uint8_t* small_memory(const Step& step, int lane, const Access& access, std::vector<uint8_t>& memory,
                             size_t offset, size_t bytes, const char* name) {
  if (access.address + access.bytes > bytes)
    step.fail(lane, "out of bounds: %s access at %llu of %zu", name, (unsigned long long)access.address, bytes);
  if (access.address % access.bytes) step.fail(lane, "misaligned %s access of %d bytes", name, access.bytes);
  return memory.data() + offset + access.address;
}

// The memory of an access, after all checks. The instruction says which space, or the address does.
inline uint8_t* memory_of(const Step& step, int lane, Access access) {
  int space = step.instruction.space;
  if (space == SPACE_generic || space == SPACE_global) {
    const uint64_t window = access.address >> 56;
    space = SPACE_global;
    for (int other : {SPACE_shared, SPACE_param, SPACE_local, SPACE_const})
      if (window && window == window_of(other)) space = other;
  }
  if (space == SPACE_global) return global_memory(step, lane, access);
  access.address &= IN_WINDOW;
  Launch& launch = step.launch;
  const bool reads = access.mode == Access::read;
  switch (space) {
    case SPACE_shared: return shared_memory(step, lane, access);
    case SPACE_local: {
      const size_t own = size_t(step.thread(lane)) * launch.local_bytes;
      return small_memory(step, lane, access, step.warp.block->local, own, launch.local_bytes, "local");
    }
    case SPACE_param:
      if (!reads) step.fail(lane, "write to a parameter");
      return small_memory(step, lane, access, launch.parameters, 0, launch.parameters.size(), "parameter");
    default:
      if (!reads) step.fail(lane, "write to a constant");
      return small_memory(step, lane, access, launch.constants, 0, launch.constants.size(), "constant");
  }
}

}  // namespace ptx
