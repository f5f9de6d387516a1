// CPU kernels of the ops where ATen is not best: one pass over memory, float64 sums, same bits at
// any thread count.
#pragma once
#include <cstdint>

#include "core/block.hpp"
#include "core/weight.hpp"

// Two builds of a hot loop, picked when the library is loaded; GCC and Clang on x86-64 Linux, else
// the plain one.
#if defined(__x86_64__) && defined(__ELF__) && defined(__GNUC__) && !defined(__SANITIZE_ADDRESS__)
#define LASER_SIMD __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define LASER_SIMD
#endif

namespace laser::cpu {

struct Stats {
  double norm2 = 0;  // ||A||_F^2, of A times 2^-exponent
  double top = 0;    // max |a|; Inf or NaN if there is one

  void add(const Stats& other) {
    norm2 += other.norm2;
    top = other.top <= top || top != top ? top : other.top;  // NaN stays
  }
};

// Rows first .. last of matrix b, as if divided by 2^exponent.
Stats prepare(const Weight& a, int64_t b, int64_t first, int64_t last, int exponent);

// out (last - first, cols) = rows first .. last of matrix b, times 2^-exponent.
template <typename T>
void load(const Weight& a, int64_t b, int64_t first, int64_t last, int exponent, T* out);

// The sketch of one matrix: q (rows, cols) from (seed, key).
template <typename T>
void sketch(Block<T> q, uint64_t seed, int64_t key);

// x(:, j) /= ||x(:, j)||, zero columns stay; one matrix, row-major.
template <typename T>
void normalize_columns(Block<T> x);

// out[j] = ||x(:, j) - theta[j] z(:, j)||^2 over the columns of x; one matrix, row-major.
template <typename T>
void ritz_residuals(Block<const T> x, Block<const T> z, const double* theta, double* out);

// Linalg::chebyshev for one matrix.
template <typename T>
void chebyshev(Block<const T> x, Block<const T> z, double slope, int factor, Block<T> out);

struct Residual {
  double unrounded = 0;  // ||A - X||^2
  double rounded = 0;    // ||A - out||^2
};

// Rows first .. first + tile.rows of matrix b: out = tile * 2^exponent, rounded once to out's
// dtype, and both residuals against the weight, which may be `out` itself; in units of 2^exponent, so that squares
// stay in range. tile is row-major.
template <typename T>
Residual store(Block<const T> tile, int exponent, const Weight& a, int64_t b, int64_t first, const Weight& out);

template <typename T>
double dot(const T* x, const T* y, int64_t n);

// Linalg::affine, add and add_symmetric for one matrix, row-major.
template <typename T>
void affine(Block<const T> x, double scale, double shift, Block<T> out);
template <typename T>
void add(double alpha, Block<const T> x, double beta, Block<T> y);
template <typename T>
void add_symmetric(double alpha, Block<const T> y, double beta, Block<T> x);

// x(i, j) = x(j, i) above the diagonal of one matrix, row-major.
template <typename T>
void mirror(Block<T> x);

}  // namespace laser::cpu
