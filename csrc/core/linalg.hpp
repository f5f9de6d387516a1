// What the driver asks of a device. Two implementations: python/linalg_aten.cpp (CPU, ATen through
// the dispatcher) and, with the CUDA backend, csrc/cuda/. Every function works on the whole batch
// of a Block.
#pragma once
#include <cstdint>

#include "core/block.hpp"

namespace laser {

// A value of 8 significant bits, only ever multiplied by the implementations.
struct BFloat16 {
  uint16_t bits;
};

template <typename T>
class Linalg {
 public:
  virtual ~Linalg() = default;

  virtual void copy(Block<const T> from, Block<T> to) = 0;

  // c = a b, for any strides.
  virtual void multiply(Block<const T> a, Block<const T> b, Block<T> c) = 0;

  virtual void round(Block<const T> from, Block<BFloat16> to) = 0;

  // c = a b with b rounded to bfloat16, sums in float32; c may be rounded to bfloat16 on the way.
  virtual void multiply_half(Block<const BFloat16> a, Block<const T> b, Block<T> c) = 0;

  // g = a^T a, exactly symmetric.
  virtual void gram(Block<const T> a, Block<T> g) = 0;

  // q(i, j) = the integer of philox.hpp for (seed, keys[b], i, j).
  virtual void sketch(Block<T> q, uint64_t seed, const int64_t* keys) = 0;

  // Each column divided by its 2-norm; a zero column stays zero.
  virtual void normalize_columns(Block<T> x) = 0;

  // out[b, j] = ||x(:, j) - theta[b, j] z(:, j)||^2; theta and out (count, cols) on the host.
  virtual void ritz_residuals(Block<const T> x, Block<const T> z, const double* theta, double* out) = 0;

  // One step of the three-term recurrence on [0, cut[b]]: out = factor ((2 / cut) x - z) - out,
  // factor 1 or 2; factor 1 ignores what `out` held. cut[b] = 0 asks for the plain power: out = x.
  virtual void chebyshev(Block<const T> x, Block<const T> z, const double* cut, int factor, Block<T> out) = 0;

  // Lower factor of s; failed[b] = 1 where s[b] is not numerically positive definite (factor[b] is
  // then undefined).
  virtual void cholesky(Block<const T> s, Block<T> factor, int* failed) = 0;

  // x <- x factor^-T.
  virtual void solve_triangular(Block<const T> factor, Block<T> x) = 0;

  // x <- the orthonormal factor of its Householder QR.
  virtual void householder(Block<T> x) = 0;

  // Symmetric eigenproblem, values descending: h w = w diag(theta); theta (count, l) on the host.
  virtual void small_eigh(Block<const T> h, Block<T> w, double* theta) = 0;

  // SVD of small square matrices: s = u diag(sigma) vt; sigma (count, l) on the host, descending.
  virtual void small_svd(Block<const T> s, Block<T> u, double* sigma, Block<T> vt) = 0;

  // out[b] = sum of squares of x[b], accumulated in float64.
  virtual void squared_norm(Block<const T> x, double* out) = 0;
};

}  // namespace laser
