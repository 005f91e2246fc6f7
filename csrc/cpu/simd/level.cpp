// The choice of the SIMD level, once for the process.
#include "tile_kernels.h"

#include <cstdlib>
#include <cstring>

#include <c10/util/Exception.h>

namespace ssl_fast {

#define DECLARE_LEVEL(level)             \
  const Kernels<float>& level##_float(); \
  const Kernels<double>& level##_double();
DECLARE_LEVEL(plain)
#if defined(__x86_64__) && defined(__GNUC__)
DECLARE_LEVEL(avx2)
DECLARE_LEVEL(avx512)
#endif

namespace {

enum Level { kPlain, kAvx2, kAvx512 };
const char* const kNames[] = {"plain", "avx2", "avx512"};
const char* const kUpTo[] = {"plain", "plain avx2", "plain avx2 avx512"};

Level available() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return kPlain;
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return wide ? kAvx512 : kAvx2;
#else
  return kPlain;
#endif
}

Level choose() {
  const char* wanted = std::getenv("SSL_FAST_SIMD");
  if (!wanted) return available();
  for (int level = kPlain; level <= available(); level++)
    if (!std::strcmp(wanted, kNames[level])) return Level(level);
  TORCH_CHECK_VALUE(false, "SSL_FAST_SIMD: expected one of ", kUpTo[available()], " on this processor, got ", wanted);
}

Level level() {
  static const Level chosen = choose();
  return chosen;
}

}  // namespace

#if defined(__x86_64__) && defined(__GNUC__)
#define TABLE(type) level() == kAvx512 ? avx512_##type() : level() == kAvx2 ? avx2_##type() : plain_##type()
#else
#define TABLE(type) plain_##type()
#endif

template <>
const Kernels<float>& kernels<float>() {
  return TABLE(float);
}
template <>
const Kernels<double>& kernels<double>() {
  return TABLE(double);
}

const char* simd_level() { return kNames[level()]; }
const char* simd_available() { return kUpTo[available()]; }

}  // namespace ssl_fast
