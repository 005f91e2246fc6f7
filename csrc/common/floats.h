// The 16-bit float types as device code sees them, rounded to the nearest as torch rounds.
#pragma once
#include "host_device.h"

#include <type_traits>

namespace ssl_fast {

struct Bfloat16 {
  uint16_t bits;
  Bfloat16() = default;
  SSL_FAST_HOST_DEVICE explicit Bfloat16(float x) {
    const uint32_t wide = bit_cast<uint32_t>(x);
    // Rounds to the nearest, ties to even. NaN is handled apart, because the addition could carry it into Inf.
    bits = x != x ? 0x7FC0 : (wide + 0x7FFF + ((wide >> 16) & 1)) >> 16;
  }
  SSL_FAST_HOST_DEVICE explicit operator float() const { return bit_cast<float>(uint32_t(bits) << 16); }
};

struct Half {
  uint16_t bits;
  Half() = default;
  SSL_FAST_HOST_DEVICE explicit Half(float x) {
#ifdef __CUDA_ARCH__
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#else
    const uint32_t wide = bit_cast<uint32_t>(x), sign = wide >> 16 & 0x8000, magnitude = wide & 0x7FFFFFFF;
    if (magnitude >= 0x47800000)  // 65536 and beyond, Inf, NaN
      bits = sign | (magnitude > 0x7F800000 ? 0x7E00 : 0x7C00);
    else if (magnitude < 0x38800000)  // below 2^-14: adding 1/2 leaves multiples of 2^-24 in the last bits
      bits = sign | (bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3F000000);
    else  // changes the bias of the exponent, and rounds to the nearest, ties to even
      bits = sign | ((magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1)) >> 13);
#endif
  }
  SSL_FAST_HOST_DEVICE explicit operator float() const {
#ifdef __CUDA_ARCH__
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
#else
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, magnitude = bits & 0x7FFF;
    if (magnitude >= 0x7C00) return bit_cast<float>(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
    if (magnitude < 0x400) return bit_cast<float>(sign | bit_cast<uint32_t>(float(magnitude) * 0x1p-24f));
    return bit_cast<float>(sign | ((magnitude << 13) + 0x38000000));
#endif
  }
};

// The type in which numbers of types T and S are combined: float64 if one of them is, else float32.
template <typename T, typename S>
using Wide = std::conditional_t<std::is_same_v<T, double> || std::is_same_v<S, double>, double, float>;

// Rounds to T. float64 becomes a 16-bit float by way of float32, as in torch.
template <typename T, typename W>
SSL_FAST_HOST_DEVICE T narrowed(W x) {
  if constexpr (sizeof(T) == 2)
    return T(static_cast<float>(x));
  else
    return static_cast<T>(x);
}
template <typename W, typename T>
SSL_FAST_HOST_DEVICE W widened(T x) {
  if constexpr (sizeof(T) == 2)
    return static_cast<float>(x);
  else
    return static_cast<W>(x);
}

// COUNT elements that are moved at once. kPack: so many that the narrower of two types fills 16 bytes.
template <typename T, int COUNT>
struct alignas(sizeof(T) * COUNT < 16 ? sizeof(T) * COUNT : 16) Pack {
  T values[COUNT];
};
template <typename T, typename S>
constexpr int kPack = 16 / (sizeof(T) < sizeof(S) ? sizeof(T) : sizeof(S));

// Moves a Pack by accesses of 16 bytes. nvcc may split the copy of a struct into accesses of its members.
template <typename P>
SSL_FAST_HOST_DEVICE P loaded(const P* from) {
#ifdef __CUDA_ARCH__
  static_assert(sizeof(P) % 16 == 0);
  uint4 parts[sizeof(P) / 16];
  SSL_FAST_UNROLL for (int i = 0; i < int(sizeof(P) / 16); i++)
    parts[i] = reinterpret_cast<const uint4*>(from)[i];
  return bit_cast<P>(parts);
#else
  return *from;
#endif
}
template <typename P>
SSL_FAST_HOST_DEVICE void store(P* to, const P& pack) {
#ifdef __CUDA_ARCH__
  static_assert(sizeof(P) % 16 == 0);
  struct Parts {
    uint4 of[sizeof(P) / 16];
  };
  const Parts parts = bit_cast<Parts>(pack);
  SSL_FAST_UNROLL for (int i = 0; i < int(sizeof(P) / 16); i++)
    reinterpret_cast<uint4*>(to)[i] = parts.of[i];
#else
  *to = pack;
#endif
}

SSL_FAST_HOST_DEVICE bool aligned(const void* a, const void* b) {
  return ((reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) & 15) == 0;
}

}  // namespace ssl_fast
