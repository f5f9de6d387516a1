// Sums of blocks, and of their elements; symmetric blocks.
#include <algorithm>

#include "cpu/kernels.hpp"

namespace laser::cpu {
namespace {

// Side of the squares by which a transpose is read: two of them fit a core's first cache.
constexpr int64_t kSquare = 32;

template <typename T>
LASER_SIMD void combine(T alpha, const T* x, T beta, const T* y, int64_t n, T* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = alpha * x[i] + beta * y[i];
  }
}

template <typename T>
LASER_SIMD void scale_row(T scale, const T* x, int64_t n, T* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = scale * x[i];
  }
}

}  // namespace

template <typename T>
void affine(Block<const T> x, double scale, double shift, Block<T> out) {
  for (int64_t i = 0; i < x.rows; ++i) {
    scale_row(T(scale), &x.at(0, i, 0), x.cols, &out.at(0, i, 0));
    out.at(0, i, i) += T(shift);
  }
}

template <typename T>
void add(double alpha, Block<const T> x, double beta, Block<T> y) {
  for (int64_t i = 0; i < x.rows; ++i) {
    combine(T(alpha), &x.at(0, i, 0), T(beta), &y.at(0, i, 0), x.cols, &y.at(0, i, 0));
  }
}

// A pair of squares at a time, so that (i, j) and (j, i) come from the same sum.
template <typename T>
void add_symmetric(double alpha, Block<const T> y, double beta, Block<T> x) {
  const int64_t n = x.rows;
  for (int64_t i0 = 0; i0 < n; i0 += kSquare) {
    for (int64_t j0 = 0; j0 <= i0; j0 += kSquare) {
      for (int64_t i = i0; i < std::min(i0 + kSquare, n); ++i) {
        for (int64_t j = j0; j < std::min(j0 + kSquare, i + 1); ++j) {
          const T both = T(alpha) * (y.at(0, i, j) + y.at(0, j, i));
          const T lower = both + T(beta) * x.at(0, i, j), upper = both + T(beta) * x.at(0, j, i);
          x.at(0, i, j) = lower;
          x.at(0, j, i) = upper;
        }
      }
    }
  }
}

template <typename T>
void mirror(Block<T> x) {
  const int64_t n = x.rows;
  for (int64_t i0 = 0; i0 < n; i0 += kSquare) {
    for (int64_t j0 = i0; j0 < n; j0 += kSquare) {
      for (int64_t i = i0; i < std::min(i0 + kSquare, n); ++i) {
        for (int64_t j = std::max(j0, i + 1); j < std::min(j0 + kSquare, n); ++j) {
          x.at(0, i, j) = x.at(0, j, i);
        }
      }
    }
  }
}

template <typename T>
LASER_SIMD double dot(const T* x, const T* y, int64_t n) {
  double sum[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int k = 0; k < 8; ++k) {
      sum[k] += double(x[i + k]) * double(y[i + k]);
    }
  }
  for (; i < n; ++i) {
    sum[0] += double(x[i]) * double(y[i]);
  }
  return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

template void affine(Block<const float>, double, double, Block<float>);
template void affine(Block<const double>, double, double, Block<double>);
template void add(double, Block<const float>, double, Block<float>);
template void add(double, Block<const double>, double, Block<double>);
template void add_symmetric(double, Block<const float>, double, Block<float>);
template void add_symmetric(double, Block<const double>, double, Block<double>);
template void mirror(Block<float>);
template void mirror(Block<double>);
template double dot(const float*, const float*, int64_t);
template double dot(const double*, const double*, int64_t);

}  // namespace laser::cpu
