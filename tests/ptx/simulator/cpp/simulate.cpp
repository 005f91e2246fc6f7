// The library's one function, called by run.py.
#include <cstring>

#include "scheduler.h"

using namespace ptx;

namespace {

struct Spans {
  std::vector<std::vector<GlobalShadow>> shadows;

  void add(Launch& launch, uint64_t begin, uint64_t end, bool races) {
    shadows.emplace_back(races ? end - begin : 0);
    launch.regions.push_back({begin, end, races ? shadows.back().data() : nullptr});
  }
};

}  // namespace

// As run.py fills it: arrays and their lengths, then numbers.
struct Arguments {
  const Instruction* instructions;
  const int32_t* operands;
  const uint8_t *parameters, *constants;
  const uint64_t* regions;          // begin, end
  const int32_t* constant_slots;    // slot
  const uint64_t* constant_values;  // its value
  const int32_t *special_slots, *special_registers, *predicate_slots;
  uint64_t* counts;  // [instruction]
  Report* reports;
  char* message;  // of the fault
  int64_t parameter_bytes, constant_bytes, region_count, constant_slot_count, special_count, predicate_count,
      report_capacity, message_bytes;
  uint64_t limit;
  int32_t slots, threads[3], grid[3], shared_bytes, local_bytes, seed, interleaved, races, inexact_approximations,
      vary_winning_lane;
  int32_t report_count, fault_pc;  // results
};

// 0, or 1 after a fault.
extern "C" int ptx_simulate(Arguments* arguments) {
  const Arguments& in = *arguments;
  Launch launch{};
  launch.instructions = in.instructions;
  launch.operands = in.operands;
  launch.slots = in.slots;
  for (int i = 0; i < 3; i++) launch.threads[i] = uint32_t(in.threads[i]), launch.grid[i] = uint32_t(in.grid[i]);
  launch.shared_bytes = in.shared_bytes;
  launch.local_bytes = in.local_bytes;
  launch.parameters.assign(in.parameters, in.parameters + in.parameter_bytes);
  launch.constants.assign(in.constants, in.constants + in.constant_bytes);
  launch.inexact_approximations = in.inexact_approximations;
  launch.vary_winning_lane = in.vary_winning_lane;
  launch.limit = in.limit;
  launch.random.seed(uint32_t(in.seed));
  launch.counts = in.counts;
  Spans spans;
  spans.shadows.reserve(size_t(in.region_count));
  for (int i = 0; i < in.region_count; i++) spans.add(launch, in.regions[2 * i], in.regions[2 * i + 1], in.races);
  for (int i = 0; i < in.constant_slot_count; i++)
    launch.constant_slots.emplace_back(in.constant_slots[i], in.constant_values[i]);
  for (int i = 0; i < in.special_count; i++)
    launch.special_slots.emplace_back(in.special_slots[i], in.special_registers[i]);
  launch.predicate_slots.assign(in.predicate_slots, in.predicate_slots + in.predicate_count);

  int status = 0;
  try {
    run_grid(launch, uint32_t(in.seed), size_t(in.interleaved));
  } catch (const Fault& fault) {
    status = 1;
    arguments->fault_pc = fault.pc;
    std::snprintf(in.message, size_t(in.message_bytes), "%s", fault.what());
  }
  for (const auto& [key, report] : launch.reports) {
    if (arguments->report_count == in.report_capacity) break;
    in.reports[arguments->report_count++] = report;
  }
  return status;
}
