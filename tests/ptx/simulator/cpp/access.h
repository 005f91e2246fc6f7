// Moves between registers, loads, stores, atomics, asynchronous copies.
#pragma once
#include "floats.h"
#include "memory.h"
#include "state.h"

namespace ptx {

inline void move(const Step& step) {
  uint64_t* d = step.operand(0);
  const uint64_t* a = step.operand(1);
  const int bits = bits_of(step.instruction.type);
  const uint64_t mask = bits ? low_bits(bits) : ~0ull;  // a predicate has no width
  for_lanes(step.active, [&](int lane) { d[lane] = a[lane] & mask; });
}

inline void pack(const Step& step) {
  const int count = step.instruction.elements, width = bits_of(step.instruction.type) / count;
  uint64_t* d = step.operand(0);
  for_lanes(step.active, [&](int lane) {
    uint64_t result = 0;
    for (int i = 0; i < count; i++) result |= (step.operand(1 + i)[lane] & low_bits(width)) << (width * i);
    d[lane] = result;
  });
}

inline void unpack(const Step& step) {
  const int count = step.instruction.elements, width = bits_of(step.instruction.type) / count;
  const uint64_t* a = step.operand(count);
  for_lanes(step.active, [&](int lane) {
    const uint64_t whole = a[lane];
    for (int i = 0; i < count; i++) step.operand(i)[lane] = whole >> (width * i) & low_bits(width);
  });
}

// cvta: between an address in a space and the generic one.
inline void convert_address(const Step& step) {
  uint64_t* d = step.operand(0);
  const uint64_t* a = step.operand(1);
  const uint64_t window = window_of(step.instruction.space);
  for_lanes(step.active, [&](int lane) {
    if (!step.has(FLAG_to_space)) {
      d[lane] = a[lane] | window << 56;
    } else {
      if (window && a[lane] >> 56 != window) step.fail(lane, "cvta.to of an address in another space");
      d[lane] = window ? a[lane] & IN_WINDOW : a[lane];
    }
  });
}

inline void load(const Step& step) {
  const int count = step.instruction.elements, bytes = bytes_of(step.instruction.type);
  const uint64_t* base = step.operand(count);
  // The base may be one of the results: all lanes are read first.
  uint64_t values[8][WARP];
  for_lanes(step.active, [&](int lane) {
    const uint64_t address = base[lane] + step.instruction.immediate;
    const uint8_t* memory = memory_of(step, lane, {address, bytes * count, Access::read});
    for (int i = 0; i < count; i++) {
      uint64_t value = 0;
      std::memcpy(&value, memory + i * bytes, bytes);
      // A register wider than a signed type is filled with its sign.
      values[i][lane] = is_signed(step.instruction.type) ? uint64_t(sign_extended(value, 8 * bytes)) : value;
    }
  });
  for (int i = 0; i < count; i++) {
    uint64_t* d = step.operand(i);
    for_lanes(step.active, [&](int lane) { d[lane] = values[i][lane]; });
  }
}

struct Stored {
  uint64_t address;
  uint8_t value[64];
};

// Two lanes that store different values to one place: which of them stays is not defined.
inline void report_disagreeing_lanes(const Step& step, const Stored* stored, int bytes) {
  for (int lane = 0; lane < WARP; lane++) {
    if (!(step.active >> lane & 1)) continue;
    for (int other = 0; other < lane; other++) {
      const uint64_t mine = stored[lane].address, its = stored[other].address;
      if (!(step.active >> other & 1) || mine >= its + bytes || its >= mine + bytes) continue;
      if (mine != its || std::memcmp(stored[lane].value, stored[other].value, bytes) != 0)
        step.report(REPORT_LANES_DISAGREE, step.pc, mine, lane, step.thread(other));
      break;
    }
  }
}

inline void store(const Step& step) {
  const int count = step.instruction.elements, bytes = bytes_of(step.instruction.type);
  const uint64_t* base = step.operand(0);
  Stored stored[WARP];
  for_lanes(step.active, [&](int lane) {
    stored[lane].address = base[lane] + step.instruction.immediate;
    for (int i = 0; i < count; i++) std::memcpy(stored[lane].value + i * bytes, &step.operand(1 + i)[lane], bytes);
  });
  report_disagreeing_lanes(step, stored, bytes * count);
  // Of several lanes that store to one place the last wins here; some instructions go the other way if asked to.
  const bool backwards = step.launch.vary_winning_lane && (uint32_t(step.pc) * 2654435761u >> 15 & 1);
  for (int i = 0; i < WARP; i++) {
    const int lane = backwards ? WARP - 1 - i : i;
    if (!(step.active >> lane & 1)) continue;
    const Access access{stored[lane].address, bytes * count, Access::write, stored[lane].value};
    std::memcpy(memory_of(step, lane, access), stored[lane].value, bytes * count);
  }
}

inline uint64_t atomic_result(const Step& step, uint64_t old, uint64_t operand, uint64_t swapped) {
  const int type = step.instruction.type, bits = bits_of(type);
  const bool less =
      is_signed(type) ? sign_extended(old, bits) < sign_extended(operand, bits) : old < (operand & low_bits(bits));
  switch (step.instruction.variant) {
    case ATOMIC_add:
      if (type == TYPE_f32) return from_float(to_float(old) + to_float(operand));
      if (type == TYPE_f64) return from_double(to_double(old) + to_double(operand));
      return old + operand;
    case ATOMIC_exch: return operand;
    case ATOMIC_cas: return old == (operand & low_bits(bits)) ? swapped : old;
    case ATOMIC_min: return less ? old : operand;
    case ATOMIC_max: return less ? operand : old;
    case ATOMIC_and: return old & operand;
    case ATOMIC_or: return old | operand;
    default: return old ^ operand;
  }
}

inline void atomic(const Step& step) {
  const int bytes = bytes_of(step.instruction.type);
  uint64_t* d = step.operand(0);
  const uint64_t *base = step.operand(1), *operand = step.operand(2);
  const uint64_t* swapped = step.instruction.operand_count > 3 ? step.operand(3) : operand;
  for_lanes(step.active, [&](int lane) {
    const uint64_t address = base[lane] + step.instruction.immediate;
    uint8_t* memory = memory_of(step, lane, {address, bytes, Access::atomic});
    uint64_t old = 0;
    std::memcpy(&old, memory, bytes);
    const uint64_t result = atomic_result(step, old, operand[lane], swapped[lane]);
    std::memcpy(memory, &result, bytes);
    d[lane] = old;
  });
}

// cp.async: the bytes arrive when they are waited for. Until then the destination holds nothing that is meant.
inline void copy_async(const Step& step) {
  const uint64_t *to = step.operand(0), *from = step.operand(1), *source_bytes = step.operand(2);
  const int bytes = step.instruction.elements;
  for_lanes(step.active, [&](int lane) {
    const uint64_t destination = (to[lane] & IN_WINDOW) + step.instruction.destination_offset;
    const uint64_t source = from[lane] + step.instruction.immediate;
    const Copy copy{lane, destination, source, bytes, int(source_bytes[lane]), step.pc};
    if (copy.source_bytes < 0 || copy.source_bytes > bytes)
      step.fail(lane, "cp.async of %d bytes of %d", copy.source_bytes, bytes);
    if (copy.source_bytes && copy.source % bytes) step.fail(lane, "misaligned source of cp.async");
    if (copy.source_bytes == bytes) {
      global_memory(step, lane, {copy.source, bytes, Access::read});
    } else {
      for (int i = 0; i < copy.source_bytes; i++) global_memory(step, lane, {copy.source + i, 1, Access::read});
    }
    uint8_t* memory = shared_memory(step, lane, {destination, bytes, Access::write});
    for (int i = 0; i < bytes; i++) {
      memory[i] = uint8_t(0xa5 + 7 * i);
      step.warp.block->shadow[destination - SHARED_BASE + i].state = SharedShadow::in_flight;
    }
    step.warp.copies.open.push_back(copy);
  });
}

inline void finish_copy(const Step& step, const Copy& copy) {
  Block& block = *step.warp.block;
  const uint64_t offset = copy.destination - SHARED_BASE;
  uint8_t* memory = block.shared.data() + offset;
  std::memset(memory, 0, copy.bytes);
  std::memcpy(memory, reinterpret_cast<const void*>(copy.source), copy.source_bytes);
  for (int i = 0; i < copy.bytes; i++) {
    // Other warps see it after the next barrier, as if this lane had written it now.
    SharedShadow& shadow = block.shadow[offset + i];
    shadow.state = SharedShadow::initialised;
    shadow.write_thread = int16_t(step.thread(copy.lane));
    shadow.write_epoch = block.epoch;
    shadow.write_warp_epoch = step.warp.epoch;
    shadow.write_pc = copy.pc;
    shadow.proxy_fences = step.warp.proxy_fences;
  }
}

inline void expect_all_alive(const Step& step) {
  if (step.active != step.warp.alive) step.fail(0, "groups of copies are those of a warp here: lanes are missing");
}

inline void commit_copies(const Step& step) {
  expect_all_alive(step);
  step.warp.copies.commit();
}

inline void wait_for_copies(const Step& step) {
  expect_all_alive(step);
  if (step.has(FLAG_wait_all)) step.warp.copies.commit();
  const size_t kept = step.has(FLAG_wait_all) ? 0 : size_t(step.instruction.immediate);
  step.warp.copies.wait(kept, [&](const Copy& copy) { finish_copy(step, copy); });
}

inline void report_unfinished_copies(const Step& step) {
  auto report = [&](const std::vector<Copy>& copies) {
    if (!copies.empty()) step.report(REPORT_NEVER_WAITED, copies[0].pc, copies[0].destination - SHARED_BASE, 0, -1);
  };
  for (const auto& group : step.warp.copies.committed) report(group);
  report(step.warp.copies.open);
}

}  // namespace ptx
