// The driver's interface (core/linalg.hpp) on the CPU: products and LAPACK by ATen, the rest by
// csrc/cpu.
#pragma once
#include "core/linalg.hpp"

namespace laser {

template <typename T>
class LinalgAten final : public Linalg<T> {
 public:
  void copy(Block<const T> from, Block<T> to) override;
  void multiply(Block<const T> a, Block<const T> b, Block<T> c) override;
  void round(Block<const T> from, Block<BFloat16> to) override;
  void multiply_half(Block<const BFloat16> a, Block<const T> b, Block<T> c) override;
  void gram(Block<const T> a, Block<T> g) override;
  void sketch(Block<T> q, uint64_t seed, const int64_t* keys) override;
  void normalize_columns(Block<T> x) override;
  void ritz_residuals(Block<const T> x, Block<const T> z, const double* theta, double* out) override;
  void chebyshev(Block<const T> x, Block<const T> z, const double* cut, int factor, Block<T> out) override;
  void cholesky(Block<const T> s, Block<T> factor, int* failed) override;
  void solve_triangular(Block<const T> factor, Block<T> x) override;
  void householder(Block<T> x) override;
  void small_eigh(Block<const T> h, Block<T> w, double* theta) override;
  void small_svd(Block<const T> s, Block<T> u, double* sigma, Block<T> vt) override;
  void squared_norm(Block<const T> x, double* out) override;
};

}  // namespace laser
