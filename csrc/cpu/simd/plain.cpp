// The vector kernels for what every processor of the target has: SSE2 on x86-64, NEON on arm64.
#include "tile_kernels.h"

#define BYTES 16
#define ROWS 4
#define VECTORS 3
#ifdef __ARM_FEATURE_FMA
#define FUSED 1
#else
#define FUSED 0
#endif

namespace ssl_fast {
namespace plain {
#include "tile_kernels_impl.h"
}
const Kernels<float>& plain_float() { return plain::kTable<float>; }
const Kernels<double>& plain_double() { return plain::kTable<double>; }
}  // namespace ssl_fast
