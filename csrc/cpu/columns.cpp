// The elementwise steps of the filter: column norms, the Chebyshev recurrence.
// Blocks are row-major.
#include <algorithm>
#include <cmath>
#include <vector>

#include "core/dtype.hpp"
#include "cpu/kernels.hpp"

namespace laser::cpu {
namespace {

template <typename T>
LASER_SIMD void add_squares(const T* row, int64_t n, double* sum) {
  for (int64_t j = 0; j < n; ++j) {
    sum[j] += double(row[j]) * double(row[j]);
  }
}

template <typename T>
LASER_SIMD void add_residuals(const T* x, const T* z, const double* theta, int64_t n, double* sum) {
  for (int64_t j = 0; j < n; ++j) {
    const double r = double(x[j]) - theta[j] * double(z[j]);
    sum[j] += r * r;
  }
}

template <typename T>
LASER_SIMD void scale_row(T* row, int64_t n, const T* factor) {
  for (int64_t j = 0; j < n; ++j) {
    row[j] *= factor[j];
  }
}

template <typename T>
LASER_SIMD void shifted(const T* x, const T* z, int64_t n, T twice_over_cut, T* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = twice_over_cut * x[i] - z[i];
  }
}

template <typename T>
LASER_SIMD void recurrence(const T* x, const T* z, int64_t n, T twice_over_cut, T* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = 2 * (twice_over_cut * x[i] - z[i]) - out[i];
  }
}

}  // namespace

template <typename T>
void normalize_columns(Block<T> x) {
  std::vector<double> sum(x.cols, 0.0);
  std::vector<T> factor(x.cols);
  for (int64_t i = 0; i < x.rows; ++i) {
    add_squares(x.data + i * x.row_stride, x.cols, sum.data());
  }
  for (int64_t j = 0; j < x.cols; ++j) {
    factor[j] = sum[j] > 0 ? T(1 / std::sqrt(sum[j])) : T(0);
  }
  for (int64_t i = 0; i < x.rows; ++i) {
    scale_row(x.data + i * x.row_stride, x.cols, factor.data());
  }
}

template <typename T>
void ritz_residuals(Block<const T> x, Block<const T> z, const double* theta, double* out) {
  std::fill(out, out + x.cols, 0.0);
  for (int64_t i = 0; i < x.rows; ++i) {
    add_residuals(x.data + i * x.row_stride, z.data + i * z.row_stride, theta, x.cols, out);
  }
}

template <typename T>
void chebyshev(Block<const T> x, Block<const T> z, double slope, int factor, Block<T> out) {
  const int64_t n = x.rows * x.cols;
  if (slope == 0) {
    for (int64_t i = 0; i < n; ++i) {
      out.data[i] = x.data[i];
    }
  } else if (factor == 1) {
    shifted(x.data, z.data, n, T(slope), out.data);
  } else {
    recurrence(x.data, z.data, n, T(slope), out.data);
  }
}

template void normalize_columns(Block<float>);
template void normalize_columns(Block<double>);
template void ritz_residuals(Block<const float>, Block<const float>, const double*, double*);
template void ritz_residuals(Block<const double>, Block<const double>, const double*, double*);
template void chebyshev(Block<const float>, Block<const float>, double, int, Block<float>);
template void chebyshev(Block<const double>, Block<const double>, double, int, Block<double>);

}  // namespace laser::cpu
