// The last pass of a reconstruction: scale, round to the weight's dtype, write, and measure, while
// the tile is in cache.
#include <cmath>

#include "core/dtype.hpp"
#include "cpu/kernels.hpp"

namespace laser::cpu {
namespace {

constexpr int kLanes = 16;

// One row. `weight` and `out` may be the same memory: each element is read before it is written. unit: 1 / scale.
template <typename T, typename E>
LASER_SIMD void store_row(const T* tile, int64_t cols, T scale, double unit, const E* weight, E* out, Residual* total) {
  double unrounded[kLanes] = {}, rounded[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= cols; j += kLanes) {
    for (int k = 0; k < kLanes; ++k) {
      const double a = double(widen(weight[j + k])) * unit;
      E y;
      narrow(T(tile[j + k] * scale), y);
      const double before = a - double(tile[j + k]), after = a - double(widen(y)) * unit;
      unrounded[k] += before * before;
      rounded[k] += after * after;
      out[j + k] = y;
    }
  }
  for (; j < cols; ++j) {
    const double a = double(widen(weight[j])) * unit;
    E y;
    narrow(T(tile[j] * scale), y);
    const double before = a - double(tile[j]), after = a - double(widen(y)) * unit;
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
    return total;
  });
}

template Residual store(Block<const float>, int, const Weight&, int64_t, int64_t, const Weight&);
template Residual store(Block<const double>, int, const Weight&, int64_t, int64_t, const Weight&);

}  // namespace laser::cpu
