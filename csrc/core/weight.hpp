// What a caller hands in: a batch of weights in their own dtype, orientation and strides.
#pragma once
#include <cmath>
#include <cstdint>

#include "core/dtype.hpp"

namespace laser {

// Element (i, j) of matrix b at b * stride + i * row_stride + j.
struct Weight {
  const void* data;
  Dtype dtype;
  int64_t count, rows, cols;
  int64_t stride, row_stride;
};

// Squares, summed over up to 2^30 entries, must stay in range above, and those of entries 2^-24 (2^-53) times the
// largest below: |exponent| <= (127 - 30) / 2 in float, (1023 - 30) / 2 in double. kUnscaled: weights are taken as they
// are.
constexpr int kSafe = 30, kSafeWide = 400, kUnscaled = 1 << 20;

// The power of two to divide by so that neither A nor A^T A leaves the range of the working type; 0 where entries of
// size `top` are within 2^-safe .. 2^safe.
LASER_HOST_DEVICE inline int scale_exponent(double top, int safe) {
  if (!(top > 0) || top > 1.7976931348623157e308) {
    return 0;
  }
  int e;
  frexp(top, &e);
  e = e - 1 < -1000 ? -1000 : e - 1 > 1000 ? 1000 : e - 1;  // 2^-e must itself be a number
  return e >= -safe && e <= safe ? 0 : e;
}

}  // namespace laser
