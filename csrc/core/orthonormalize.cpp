#include "core/orthonormalize.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace laser {
namespace {

// Where ||gram - I||_F = d < 1, the squared condition of x is at most (1 + d) / (1 - d) = 19, and one
// pass leaves only that many roundings behind.
constexpr double kNearlyOrthonormal = 0.9;

// A first shift of 1e-6 sqrt(l) in fp32, times 10 until the
// factorization succeeds; that is 8 eps sqrt(l) with unit columns.
constexpr double kFirstShift = 8.0;
constexpr double kShiftGrowth = 10.0;
constexpr int kShiftTries = 4;
constexpr int kPasses = 4;

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
template <typename T>
bool shifted_cholesky(Linalg<T>& la, Block<T> gram, Block<T> factor, std::vector<int>& failed) {
  la.cholesky(gram, factor, failed.data());
  double shift = kFirstShift * std::numeric_limits<T>::epsilon() * std::sqrt(double(gram.cols));
  bool shifted = false;
  for (int attempt = 0; attempt < kShiftTries && any(failed, gram); ++attempt, shift *= kShiftGrowth) {
    shifted = true;
    for (int64_t b = 0; b < gram.count; ++b) {
      for (int64_t i = 0; failed[b] && i < gram.cols; ++i) {
        gram.at(b, i, i) += T(shift);
      }
    }
    la.cholesky(gram, factor, failed.data());
  }
  return shifted;
}

}  // namespace

template <typename T>
void orthonormalize(Linalg<T>& la, Block<T> x, Block<T> gram, Block<T> factor, std::vector<int>& failed) {
  const double rounding = 4 * std::numeric_limits<T>::epsilon() * std::sqrt(double(x.cols));
  la.normalize_columns(x);
  for (int pass = 0; pass < kPasses; ++pass) {
    la.gram(x, gram);
    const double before = deviation(gram);
    if (before <= rounding) {
      return;
    }
    const bool shifted = shifted_cholesky(la, gram, factor, failed);
    if (any(failed, gram)) {
      break;
    }
    la.solve_triangular(factor, x);
    if (!shifted && before < kNearlyOrthonormal) {
      return;
    }
  }
  la.householder(x);
}

template void orthonormalize(Linalg<float>&, Block<float>, Block<float>, Block<float>, std::vector<int>&);
template void orthonormalize(Linalg<double>&, Block<double>, Block<double>, Block<double>, std::vector<int>&);

}  // namespace laser
