// From the product form A_r = left right^T to U, sigma, V.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/orthonormalize.hpp"
#include "core/truncated_svd.hpp"

namespace laser {
namespace {

// Off-diagonal part of U^T left that may be dropped, in units of eps sigma_1: rounding level.
constexpr double kDiagonal = 8.0;

template <typename T>
bool is_diagonal(Block<T> m) {
  for (int64_t b = 0; b < m.count; ++b) {
    double off = 0, top = 0;
    for (int64_t i = 0; i < m.rows; ++i) {
      for (int64_t j = 0; j < m.cols; ++j) {
        const double v = std::abs(double(m.at(b, i, j)));
        (i == j ? top : off) = std::max(i == j ? top : off, v);
      }
    }
    if (!(off <= kDiagonal * std::numeric_limits<T>::epsilon() * top)) {
      return false;
    }
  }
  return true;
}

// to = from first column to last, same shapes.
template <typename T>
void copy(Block<T> from, Block<T> to) {
  std::copy(from.data, from.data + from.count * from.rows * from.cols, to.data);
}

}  // namespace

template <typename T>
void factors(Linalg<T>& la, Block<T> left, Block<T> right, double* sigma, T* core, T* product) {
  const int64_t count = left.count, r = left.cols, square = count * r * r;
  const Block<T> a = Block<T>::dense(core, count, r, r), b = Block<T>::dense(core + square, count, r, r);
  const Block<T> u = Block<T>::dense(core + 2 * square, count, r, r);
  const Block<T> vt = Block<T>::dense(core + 3 * square, count, r, r);
  const Block<T> wide = Block<T>::dense(product, count, left.rows, r);
  std::vector<int> failed(count);

  copy(left, wide);
  orthonormalize(la, left, a, b, failed);
  la.multiply(left.transposed(), wide, a);  // left = U M, M nearly diagonal
  if (is_diagonal(a)) {
    for (int64_t i = 0; i < count; ++i) {
      double above = std::numeric_limits<double>::infinity();
      for (int64_t j = 0; j < r; ++j) {  // neighbours may be out of order by rounding
        const double value = a.at(i, j, j);
        above = sigma[i * r + j] = std::min(std::abs(value), above);
        for (int64_t k = 0; value < 0 && k < left.rows; ++k) {  // Householder chose the other sign
          left.at(i, k, j) = -left.at(i, k, j);
        }
      }
    }
    return;
  }
  la.small_svd(a, u, sigma, vt);
  la.multiply(left, u, wide);
  copy(wide, left);
  const Block<T> rotated = Block<T>::dense(product, count, right.rows, r);  // rows of right <= rows of left
  la.multiply(right, vt.transposed(), rotated);
  copy(rotated, right);
}

template void factors(Linalg<float>&, Block<float>, Block<float>, double*, float*, float*);
template void factors(Linalg<double>&, Block<double>, Block<double>, double*, double*, double*);

}  // namespace laser
