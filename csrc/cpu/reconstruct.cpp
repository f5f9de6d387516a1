// The last pass of a reconstruction: scale, round to the weight's dtype, write, and measure, while
// the tile is in cache.
#include <cmath>
#include <type_traits>

#include "core/dtype.hpp"
#include "cpu/kernels.hpp"

namespace laser::cpu {
namespace {

constexpr int kLanes = 16;

// Whether squares of differences may leave the range of double, so that each difference is scaled, not their sum.
template <typename E>
constexpr bool kScalesEach = std::is_same_v<E, double>;

// One row. `weight` and `out` may be the same memory: each element is read before it is written. unit: 1 / scale.
template <typename T, typename E>
LASER_SIMD void store_row(const T* tile, int64_t cols, T scale, double unit, const E* weight, E* out, Residual* total) {
  const double by = kScalesEach<E> ? unit : 1.0;
  double unrounded[kLanes] = {}, rounded[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= cols; j += kLanes) {
    for (int k = 0; k < kLanes; ++k) {
      const double a = double(widen(weight[j + k])), x = double(tile[j + k]) * double(scale);  // may be subnormal in T
      E y;
      narrow(T(tile[j + k] * scale), y);
      const double before = (a - x) * by, after = (a - double(widen(y))) * by;
      unrounded[k] += before * before;
      rounded[k] += after * after;
      out[j + k] = y;
    }
  }
  for (; j < cols; ++j) {  // the same once more: a lambda for both made the pass a tenth slower
    const double a = double(widen(weight[j])), x = double(tile[j]) * double(scale);
    E y;
    narrow(T(tile[j] * scale), y);
    const double before = (a - x) * by, after = (a - double(widen(y))) * by;
    unrounded[0] += before * before;
    rounded[0] += after * after;
    out[j] = y;
  }
  for (int k = 0; k < kLanes; ++k) {
    total->unrounded += unrounded[k];
    total->rounded += rounded[k];
  }
}

}  // namespace

template <typename T>
Residual store(Block<const T> tile, int exponent, const Weight& a, int64_t b, int64_t first, const Weight& out) {
  return with_dtype(a.dtype, [&](auto element) {
    using E = decltype(element);
    Residual total;
    const T scale = std::ldexp(T(1), exponent);
    const double unit = std::ldexp(1.0, -exponent);
    for (int64_t i = 0; i < tile.rows; ++i) {
      const E* weight = static_cast<const E*>(a.data) + b * a.stride + (first + i) * a.row_stride;
      E* to = static_cast<E*>(const_cast<void*>(out.data)) + b * out.stride + (first + i) * out.row_stride;
      store_row(tile.data + i * tile.row_stride, tile.cols, scale, unit, weight, to, &total);
    }
    const double rest = kScalesEach<E> ? 1.0 : unit * unit;
    total.unrounded *= rest;
    total.rounded *= rest;
    return total;
  });
}

template Residual store(Block<const float>, int, const Weight&, int64_t, int64_t, const Weight&);
template Residual store(Block<const double>, int, const Weight&, int64_t, int64_t, const Weight&);

}  // namespace laser::cpu
