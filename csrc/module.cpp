// The Python module ssl_fast._C: loading it registers the operators; build_info() says what was built.
#include <map>
#include <string>

#include <ATen/Parallel.h>
#include <torch/extension.h>

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

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("build_info", &build_info, "What was compiled, and what runs here, as names and values.");
}
