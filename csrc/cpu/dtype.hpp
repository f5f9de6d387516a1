// bf16 and fp16 in registers, without torch: conversions to and from float, round to nearest even.
#pragma once
#include <cstdint>
#include <cstring>

#include "cpu/kernels.hpp"

// Two builds of a hot loop, picked when the library is loaded; GCC and Clang on x86-64 Linux, else
// the plain one.
#if defined(__x86_64__) && defined(__ELF__) && defined(__GNUC__) && !defined(__SANITIZE_ADDRESS__)
#define LASER_SIMD __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define LASER_SIMD
#endif

namespace laser::cpu {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float bits_to_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline uint32_t float_to_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}

inline double widen(double x) { return x; }
inline float widen(float x) { return x; }
inline float widen(BFloat16 x) { return bits_to_float(uint32_t(x.bits) << 16); }
// Exponent moved by a multiplication, so that denormals come out right; Inf and NaN keep the top
// exponent.
inline float widen(Float16 x) {
  const uint32_t magnitude = uint32_t(x.bits & 0x7FFFu) << 13;
  const uint32_t value = float_to_bits(bits_to_float(magnitude) * 0x1p112f);
  const uint32_t special = magnitude >= (0x7C00u << 13) ? 0x7F800000u : 0u;
  return bits_to_float(value | special | uint32_t(x.bits & 0x8000u) << 16);
}

inline void narrow(double x, double& out) { out = x; }
inline void narrow(double x, float& out) { out = float(x); }
inline void narrow(float x, float& out) { out = x; }
inline void narrow(float x, double& out) { out = x; }
inline void narrow(float x, BFloat16& out) {  // finite input only: the driver never stores NaN
  const uint32_t u = float_to_bits(x);
  out.bits = uint16_t((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}
inline void narrow(float x, Float16& out) {
  const uint32_t u = float_to_bits(x), sign = u & 0x80000000u, magnitude = u ^ sign;
  // Normal: rebias and round in integers. Denormal: adding 0.5 lines the value up with 2^-24 and
  // rounds in hardware.
  const uint32_t normal = (magnitude - (112u << 23) + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t denormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3F000000u;
  uint32_t half = magnitude < (113u << 23) ? denormal : normal;
  half = magnitude >= 0x477FF000u ? 0x7C00u : half;  // 65520 and more round to infinity
  out.bits = uint16_t(half | sign >> 16);
}
// One rounding from float64 as well: to odd in float first (Boldo, Melquiond 2008), then to
// nearest.
template <typename Half>
inline void narrow_half(double x, Half& out) {
  float f = float(x);
  if (double(f) != x) {
    uint32_t u = float_to_bits(f);
    const bool away = (double(f) > x) == (x > 0);
    u = away ? u - 1 : u;
    f = bits_to_float(u | 1u);
  }
  narrow(f, out);
}
inline void narrow(double x, BFloat16& out) { narrow_half(x, out); }
inline void narrow(double x, Float16& out) { narrow_half(x, out); }

}  // namespace laser::cpu
