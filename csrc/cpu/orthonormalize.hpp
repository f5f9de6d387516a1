// CholeskyQR in passes until nothing is left to do, with a shifted retry and a last resort. `Tools` computes on blocks:
//   gram(x, s), cholesky(s, factor, failed), solve_triangular(factor, x): x <- x factor^-T, householder(x)
// Ref: Fukaya, Kannan, Nakatsukasa, Yamamoto, Yanagisawa: Shifted CholeskyQR (SISC 2020, arXiv 1809.11085).
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/block.hpp"
#include "cpu/kernels.hpp"

namespace laser::cpu {

// Where ||gram - I||_F = d < 1, the squared condition of x is at most (1 + d) / (1 - d) = 19, and one
// pass leaves only that many roundings behind.
inline constexpr double kNearlyOrthonormal = 0.9;

// A first shift of 1e-6 sqrt(l) in fp32, times 10 until the
// factorization succeeds; that is 8 eps sqrt(l) with unit columns.
inline constexpr double kFirstShift = 8.0;
inline constexpr double kShiftGrowth = 10.0;
inline constexpr int kShiftTries = 4;
inline constexpr int kPasses = 4;

// Largest ||gram - I||_F of the batch.
template <typename T>
double deviation(Block<T> gram) {
  double worst = 0;
  for (int64_t b = 0; b < gram.count; ++b) {
    double sum = 0;
    for (int64_t i = 0; i < gram.rows; ++i) {
      for (int64_t j = 0; j < gram.cols; ++j) {
        const double d = double(gram.at(b, i, j)) - (i == j ? 1.0 : 0.0);
        sum += d * d;
      }
    }
    worst = sum <= worst ? worst : sum;  // also takes NaN
  }
  return std::sqrt(worst);
}

template <typename T>
bool any(const std::vector<int>& failed, Block<T> gram) {
  return std::any_of(failed.begin(), failed.begin() + gram.count, [](int f) { return f != 0; });
}

// Cholesky of gram, with a growing diagonal shift for the matrices that need one. True if any was
// shifted; `failed` tells which could not be helped.
template <typename Tools, typename T>
bool shifted_cholesky(Tools& tools, Block<T> gram, Block<T> factor, std::vector<int>& failed) {
  tools.template cholesky<T>(gram, factor, failed.data());
  double shift = kFirstShift * std::numeric_limits<T>::epsilon() * std::sqrt(double(gram.cols));
  bool shifted = false;
  for (int attempt = 0; attempt < kShiftTries && any(failed, gram); ++attempt, shift *= kShiftGrowth) {
    shifted = true;
    for (int64_t b = 0; b < gram.count; ++b) {
      for (int64_t i = 0; failed[b] && i < gram.cols; ++i) {
        gram.at(b, i, i) += T(shift);
      }
    }
    tools.template cholesky<T>(gram, factor, failed.data());
  }
  return shifted;
}

// x (count, n, l) <- an orthonormal basis of its columns, in place; n >= l. Columns that depend on
// the others are replaced by arbitrary orthonormal ones. gram, factor: scratch (count, l, l). rough: one pass, which
// may leave them short of orthonormal.
template <typename Tools, typename T>
void orthonormalize(Tools& tools, Block<T> x, Block<T> gram, Block<T> factor, bool rough) {
  std::vector<int> failed(x.count);
  const double rounding = 4 * std::numeric_limits<T>::epsilon() * std::sqrt(double(x.cols));
  for (int64_t b = 0; b < x.count; ++b) {
    normalize_columns(x.matrix(b));
  }
  for (int pass = 0; pass < kPasses; ++pass) {
    tools.gram(x, gram);
    const double before = deviation(gram);
    if (before <= rounding) {
      return;
    }
    const bool shifted = shifted_cholesky(tools, gram, factor, failed);
    if (any(failed, gram)) {
      break;
    }
    tools.solve_triangular(factor, x);
    if (rough || (!shifted && before < kNearlyOrthonormal)) {
      return;
    }
  }
  tools.householder(x);
}

}  // namespace laser::cpu
