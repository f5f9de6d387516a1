// The element types of weights. bf16 and fp16 in registers, without torch: conversions to and from float, round to
// nearest even; the same bits on every device.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/portable.hpp"

namespace laser {

enum class Dtype : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

constexpr int64_t size_of(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

LASER_HOST_DEVICE inline float bits_to_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
LASER_HOST_DEVICE inline uint32_t float_to_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}

LASER_HOST_DEVICE inline double widen(double x) { return x; }
LASER_HOST_DEVICE inline float widen(float x) { return x; }
LASER_HOST_DEVICE inline float widen(BFloat16 x) { return bits_to_float(uint32_t(x.bits) << 16); }
// Exponent moved by a multiplication, so that denormals come out right; Inf and NaN keep the top
// exponent.
LASER_HOST_DEVICE inline float widen(Float16 x) {
  const uint32_t magnitude = uint32_t(x.bits & 0x7FFFu) << 13;
  const uint32_t value = float_to_bits(bits_to_float(magnitude) * 0x1p112f);
  const uint32_t special = magnitude >= (0x7C00u << 13) ? 0x7F800000u : 0u;
  return bits_to_float(value | special | uint32_t(x.bits & 0x8000u) << 16);
}

LASER_HOST_DEVICE inline void narrow(double x, double& out) { out = x; }
LASER_HOST_DEVICE inline void narrow(double x, float& out) { out = float(x); }
LASER_HOST_DEVICE inline void narrow(float x, float& out) { out = x; }
LASER_HOST_DEVICE inline void narrow(float x, double& out) { out = x; }
LASER_HOST_DEVICE inline void narrow(float x, BFloat16& out) {  // finite input only: the driver never stores NaN
  const uint32_t u = float_to_bits(x);
  out.bits = uint16_t((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
}
LASER_HOST_DEVICE inline void narrow(float x, Float16& out) {
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
LASER_HOST_DEVICE inline void narrow_half(double x, Half& out) {
  float f = float(x);
  if (double(f) != x) {
    uint32_t u = float_to_bits(f);
    const bool away = (double(f) > x) == (x > 0);
    u = away ? u - 1 : u;
    f = bits_to_float(u | 1u);
  }
  narrow(f, out);
}
LASER_HOST_DEVICE inline void narrow(double x, BFloat16& out) { narrow_half(x, out); }
LASER_HOST_DEVICE inline void narrow(double x, Float16& out) { narrow_half(x, out); }

// f(E{}) for the element type E: the only place where a runtime dtype becomes a type.
template <typename F>
auto with_dtype(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::kFloat64:
      return f(double{});
    case Dtype::kBFloat16:
      return f(BFloat16{});
    case Dtype::kFloat16:
      return f(Float16{});
    default:
      return f(float{});
  }
}

}  // namespace laser
