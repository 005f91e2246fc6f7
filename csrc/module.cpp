// The Python module ssl_fast._C. Loading it registers the operators; its functions say what was built.
#include <map>
#include <string>

#include <ATen/Parallel.h>
#include <torch/extension.h>

#include "common/constants.h"
#include "cpu/engine/kept_pairs.h"
#include "cpu/simd/tile_kernels.h"

namespace {

std::map<std::string, std::string> build_info() {
  return {
      {"compiler", __VERSION__},
      {"torch", TORCH_VERSION},
      {"simd", ssl_fast::simd_level()},
      {"simd_available", ssl_fast::simd_available()},
#ifdef _OPENMP
      {"openmp", std::to_string(_OPENMP)},
#else
      {"openmp", "no"},
#endif
      {"threads", std::to_string(at::get_num_threads())},
  };
}

// The names are those of kernels/engine/constants.py.
pybind11::dict constants() {
  using namespace ssl_fast;
  pybind11::dict out;
  out["LN2"] = kLn2;
  out["LOG2E"] = kLog2E;
  out["EPS"] = kEps;
  out["LEAST_SCALE"] = kLeastScale;
  out["MOST_SCALE"] = kMostScale;
  out["FIXED_SHIFT_LIMIT"] = kFixedShiftLimit;
  out["ALL"] = int64_t(kAll);
  out["NOT_SELF"] = int64_t(kNotSelf);
  out["IDS_DIFFER"] = int64_t(kIdsDiffer);
  out["IDS_EQUAL"] = int64_t(kIdsEqual);
  out["IDS_EQUAL_NOT_SELF"] = int64_t(kIdsEqualNotSelf);
  out["NOT_SELF_NOR_PARTNER"] = int64_t(kNotSelfNorPartner);
  out["NONE"] = int64_t(kNone);
  out["MEAN"] = int64_t(kMean);
  out["SUM"] = int64_t(kSum);
  return out;
}

// For the fake kernels, whose sizes may be symbols.
pybind11::dict kept_layout() {
  pybind11::dict out;
  out["bytes_wanted"] = ssl_fast::kept_bytes_wanted();
  out["bytes"] = ssl_fast::kKeptBytes;
  out["times_rows"] = ssl_fast::kKeptTimesRows;
  out["row_group"] = ssl_fast::kKeptRowGroup;
  out["column_group"] = ssl_fast::kKeptColumnGroup;
  out["least_dim"] = ssl_fast::kKeptLeastDim;
  out["sums_group"] = ssl_fast::kKeptSumsGroup;
  return out;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("build_info", &build_info, "What was compiled, and what runs here, as names and values.");
  m.def("kept_layout", &kept_layout,
        "When a forward pass keeps all pairs, and in how many numbers: the constants of kept_pairs.h by their names.");
  m.def("constants", &constants, "The numbers and codes that the C++ code is compiled with, by their names in Python.");
}
