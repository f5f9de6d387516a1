// From the product form A_r = left right^T to U, sigma, V.
#include "core/truncated_svd.hpp"

namespace laser {
namespace {

// Passes of CholeskyQR: left's columns are nearly orthogonal, but may have norms at rounding level.
constexpr int kPasses = 4;

}  // namespace

ScratchSize factors_scratch(int64_t count, int64_t rows, int64_t rank) {
  return {count * (4 * rank * rank + rows * rank), 0};
}

template <typename T>
void factors(Linalg<T>& la, Block<T> left, Block<T> right, double* sigma, const Scratch<T>& scratch) {
  const int64_t count = left.count, r = left.cols, square = count * r * r;
  T* next = scratch.elements;
  const Block<T> a = Block<T>::dense(next, count, r, r), b = Block<T>::dense(next + square, count, r, r);
  const Block<T> u = Block<T>::dense(next + 2 * square, count, r, r);
  const Block<T> vt = Block<T>::dense(next + 3 * square, count, r, r);
  const Block<T> wide = Block<T>::dense(next + 4 * square, count, left.rows, r);

  la.copy(left, wide);
  la.orthonormalize(left, a, b, kPasses);
  la.multiply(left.transposed(), wide, a);  // left = U M, M nearly diagonal
  if (la.diagonal(a, left, sigma)) {
    return;
  }
  la.small_svd(a, u, sigma, vt);
  la.multiply(left, u, wide);
  la.copy(wide, left);
  const Block<T> rotated = Block<T>::dense(wide.data, count, right.rows, r);  // rows of right <= rows of left
  la.multiply(right, vt.transposed(), rotated);
  la.copy(rotated, right);
}

template void factors(Linalg<float>&, Block<float>, Block<float>, double*, const Scratch<float>&);
template void factors(Linalg<double>&, Block<double>, Block<double>, double*, const Scratch<double>&);

}  // namespace laser
