// prepare: finite check, norm and scale in one pass. load: the weight in the working type.
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "core/dtype.hpp"
#include "cpu/kernels.hpp"

namespace laser::cpu {
namespace {

// Independent sums, so that the loop vectorises without reassociating; so many that the compiler keeps it a loop.
constexpr int kLanes = 64;

// |x| as an unsigned integer: NaN above Inf above every finite value, and integer maxima lose
// neither.
inline uint32_t magnitude_bits(float x) { return float_to_bits(x) & 0x7FFFFFFFu; }
inline uint64_t magnitude_bits(double x) {
  uint64_t u;
  std::memcpy(&u, &x, 8);
  return u & 0x7FFFFFFFFFFFFFFFu;
}
inline double magnitude(uint32_t bits) { return bits_to_float(bits); }
inline double magnitude(uint64_t bits) {
  double x;
  std::memcpy(&x, &bits, 8);
  return x;
}

template <typename E>
LASER_SIMD Stats row_stats(const E* row, int64_t cols, double scale) {
  using Bits = decltype(magnitude_bits(widen(E{})));
  double sum[kLanes] = {};
  Bits top[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= cols; j += kLanes) {
    for (int k = 0; k < kLanes; ++k) {
      const auto x = widen(row[j + k]);
      const double scaled = double(x) * scale;
      sum[k] += scaled * scaled;
      top[k] = std::max(top[k], magnitude_bits(x));
    }
  }
  for (; j < cols; ++j) {
    const auto x = widen(row[j]);
    const double scaled = double(x) * scale;
    sum[0] += scaled * scaled;
    top[0] = std::max(top[0], magnitude_bits(x));
  }
  Stats s;
  Bits most = 0;
  for (int k = 0; k < kLanes; ++k) {
    s.norm2 += sum[k];
    most = std::max(most, top[k]);
  }
  s.top = magnitude(most);
  return s;
}

template <typename E, typename T>
LASER_SIMD void load_row(const E* row, int64_t cols, T scale, T* out) {
  for (int64_t j = 0; j < cols; ++j) {
    out[j] = T(widen(row[j])) * scale;
  }
}

}  // namespace

Stats prepare(const Weight& a, int64_t b, int64_t first, int64_t last, int exponent) {
  return with_dtype(a.dtype, [&](auto element) {
    using E = decltype(element);
    Stats total;
    for (int64_t i = first; i < last; ++i) {
      const E* row = static_cast<const E*>(a.data) + b * a.stride + i * a.row_stride;
      const Stats s = row_stats(row, a.cols, std::ldexp(1.0, -exponent));
      total.add(s);
      if (!std::isfinite(total.top)) {
        return total;
      }
    }
    return total;
  });
}

template <typename T>
void load(const Weight& a, int64_t b, int64_t first, int64_t last, int exponent, T* out) {
  with_dtype(a.dtype, [&](auto element) {
    using E = decltype(element);
    for (int64_t i = first; i < last; ++i, out += a.cols) {
      const E* row = static_cast<const E*>(a.data) + b * a.stride + i * a.row_stride;
      if (std::abs(exponent) > 100) {  // 2^-exponent may leave the working type although the products do not
        for (int64_t j = 0; j < a.cols; ++j) {
          out[j] = T(std::ldexp(double(widen(row[j])), -exponent));
        }
      } else {
        load_row(row, a.cols, std::ldexp(T(1), -exponent), out);
      }
    }
  });
}

template void load(const Weight&, int64_t, int64_t, int64_t, int, float*);
template void load(const Weight&, int64_t, int64_t, int64_t, int, double*);

}  // namespace laser::cpu
