// The vector kernels for AVX-512.
#include "tile_kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#define BYTES 64
#define ROWS 8
#define VECTORS 3
#define FUSED 1

namespace ssl_fast {
namespace avx512 {
#include "tile_kernels_impl.h"
}
const Kernels<float>& avx512_float() { return avx512::kTable<float>; }
const Kernels<double>& avx512_double() { return avx512::kTable<double>; }
}  // namespace ssl_fast
#pragma GCC pop_options
#endif
