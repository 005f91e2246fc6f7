// What marks code that nvcc compiles for the device, and the host's compiler for the CPU operators and the tests.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define SSL_FAST_HOST_DEVICE __host__ __device__ __forceinline__
#define SSL_FAST_UNROLL _Pragma("unroll")
#else
#define SSL_FAST_HOST_DEVICE inline
#define SSL_FAST_UNROLL
#endif

namespace ssl_fast {

// The bits of `from` as a value of another type of the same size.
template <typename To, typename From>
SSL_FAST_HOST_DEVICE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

}  // namespace ssl_fast
