// Jacobi's eigenvalue method and an SVD upon it, in float64, for matrices of a few dozen columns, column-major.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

namespace laser {

struct Eigen {
  std::vector<double> values, vectors;
};

// a: both triangles are taken from the lower one.
template <typename T>
Eigen symmetric(const T* a, int64_t n) {
  std::vector<double> s(n * n), v(n * n, 0.0);
  for (int64_t j = 0; j < n; ++j) {
    v[j * n + j] = 1;
    for (int64_t i = j; i < n; ++i) {
      s[j * n + i] = s[i * n + j] = a[j * n + i];
    }
  }
  for (int sweep = 0; sweep < 30; ++sweep) {
    double off = 0, all = 0;
    for (int64_t e = 0; e < n * n; ++e) {
      all += s[e] * s[e];
      off += e / n == e % n ? 0 : s[e] * s[e];
    }
    if (!(off > 1e-30 * all)) {
      break;
    }
    for (int64_t p = 0; p < n; ++p) {
      for (int64_t q = p + 1; q < n; ++q) {
        if (s[p * n + q] == 0) {
          continue;
        }
        const double tau = (s[q * n + q] - s[p * n + p]) / (2 * s[p * n + q]);
        const double t = (tau < 0 ? -1 : 1) / (std::abs(tau) + std::hypot(1, tau)), c = 1 / std::hypot(1, t);
        const auto rotate = [c, t](double& x, double& y) {
          const double old = x;
          x = c * (old - t * y);
          y = c * (t * old + y);
        };
        for (int64_t k = 0; k < n; ++k) {
          rotate(s[p * n + k], s[q * n + k]);
        }
        for (int64_t k = 0; k < n; ++k) {
          rotate(s[k * n + p], s[k * n + q]);
          rotate(v[p * n + k], v[q * n + k]);
        }
      }
    }
  }
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) { return s[x * n + x] < s[y * n + y]; });
  Eigen out{std::vector<double>(n), std::vector<double>(n * n)};
  for (int64_t j = 0; j < n; ++j) {
    out.values[j] = s[order[j] * n + order[j]];
    std::copy_n(&v[order[j] * n], n, &out.vectors[j * n]);
  }
  return out;
}

// Singular values descending, u (m, n), v (n, n): eigenvectors of A^T A give v, then columns of A v are made orthogonal
// to those before them; what rounding leaves of the small ones is replaced by unit vectors.
template <typename T>
void singular(const T* a, int64_t m, int64_t n, T* s, T* u, T* v) {
  std::vector<double> gram(n * n, 0.0), left(m * n);
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t k = 0; k < n; ++k) {
      for (int64_t i = 0; i < m; ++i) {
        gram[k * n + j] += double(a[j * m + i]) * double(a[k * m + i]);
      }
    }
  }
  const Eigen eigen = symmetric(gram.data(), n);
  double top = 0;
  for (int64_t j = 0; j < n; ++j) {
    const double* right = &eigen.vectors[(n - 1 - j) * n];
    double* const x = &left[j * m];
    for (int64_t i = 0; i < m; ++i) {
      x[i] = 0;
      for (int64_t k = 0; k < n; ++k) {
        x[i] += double(a[k * m + i]) * right[k];
      }
    }
    const auto norm = [&] { return std::sqrt(std::inner_product(x, x + m, x, 0.0)); };
    const auto clean = [&] {
      for (int64_t k = 0; k < 2 * j; ++k) {
        const double* other = &left[k % j * m];
        const double overlap = std::inner_product(x, x + m, other, 0.0);
        for (int64_t i = 0; i < m; ++i) {
          x[i] -= overlap * other[i];
        }
      }
    };
    const double size = norm();
    top = std::max(top, size);
    s[j] = T(size <= 1e-7 * top ? 0 : size);
    clean();
    for (int64_t unit = 0; !(norm() > 1e-7 * top) || s[j] == T(0); ++unit) {
      if (size != size || unit == m) {
        break;  // NaN
      }
      std::fill_n(x, m, 0.0);
      x[unit] = 1;
      clean();
      if (norm() > 0.5 / std::sqrt(double(m))) {
        break;
      }
    }
    const double length = norm();
    for (int64_t i = 0; i < m; ++i) {
      u[j * m + i] = T(x[i] / length);
    }
    for (int64_t i = 0; i < m; ++i) {
      x[i] /= length;
    }
    std::transform(right, right + n, v + j * n, [](double y) { return T(y); });
  }
}

}  // namespace laser
