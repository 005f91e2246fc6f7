// The vector kernels for AVX2 and FMA.
#include "tile_kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define BYTES 32
#define ROWS 4
#define VECTORS 3
#define FUSED 1

namespace ssl_fast {
namespace avx2 {
#include "tile_kernels_impl.h"
}
const Kernels<float>& avx2_float() { return avx2::kTable<float>; }
const Kernels<double>& avx2_double() { return avx2::kTable<double>; }
}  // namespace ssl_fast
#pragma GCC pop_options
#endif
