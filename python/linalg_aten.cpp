#include "linalg_aten.hpp"

#include <algorithm>
#include <optional>
#include <string>

#include "aten.hpp"
#include "cpu/kernels.hpp"

namespace laser {
namespace {

using aten::call;
using aten::ScalarType;
using aten::take;
using aten::Tensor;
using aten::view;

// Columns of a Gram matrix formed at a time: wide enough for the product's rate, narrow enough to skip nearly half.
constexpr int64_t kGramBlock = 256;

// Copies a result of ATen (any strides) into a dense block.
template <typename T>
void copy_into(const Tensor& from, Block<T> to) {
  Tensor target = view(to);
  torch::stable::copy_(target, from);
}

// LAPACK returns eigenvalues ascending; the core wants them, and the columns of w, descending.
template <typename T>
void reverse(const T* values, Block<T> w, double* theta) {
  const int64_t l = w.cols;
  for (int64_t b = 0; b < w.count; ++b) {
    for (int64_t j = 0; j < l; ++j) {
      theta[b * l + j] = double(values[b * l + l - 1 - j]);
    }
    for (int64_t i = 0; i < w.rows; ++i) {
      T* row = w.data + b * w.stride + i * w.row_stride;
      std::reverse(row, row + l);
    }
  }
}

}  // namespace

template <typename T>
void LinalgAten<T>::copy(Block<const T> from, Block<T> to) {
  copy_into(view(from), to);
}

template <typename T>
void LinalgAten<T>::multiply(Block<const T> a, Block<const T> b, Block<T> c) {
  auto stack = call(c.count == 1 ? "aten::mm" : "aten::bmm", "out", view(a), view(b), view(c));
  take(stack[0]);
}

template <typename T>
void LinalgAten<T>::round(Block<const T> from, Block<BFloat16> to) {
  copy_into(view(from), to);
}

// ATen rounds the sums to bfloat16 once, when it stores them.
template <typename T>
void LinalgAten<T>::multiply_half(Block<const BFloat16> a, Block<const T> b, Block<T> c) {
  Tensor rounded = torch::stable::new_empty(view(b), view(b).sizes(), ScalarType::BFloat16);
  torch::stable::copy_(rounded, view(b));
  auto stack = call(c.count == 1 ? "aten::mm" : "aten::bmm", "", view(a), rounded);
  copy_into(take(stack[0]), c);
}

// ATen has no symmetric product: block columns of the lower half, then a mirror, are 56 % of the flops at n = 2048.
template <typename T>
void LinalgAten<T>::gram(Block<const T> a, Block<T> g) {
  const int64_t n = a.cols;
  if (n <= kGramBlock) {
    multiply(a.transposed(), a, g);
    return;
  }
  for (int64_t b = 0; b < a.count; ++b) {
    const Block<const T> one = a.matrix(b);
    const Block<T> out = g.matrix(b);
    for (int64_t j = 0; j < n; j += kGramBlock) {
      const int64_t width = std::min(kGramBlock, n - j);
      multiply(one.columns(j, n - j).transposed(), one.columns(j, width), out.corner(j, j, n - j, width));
      for (int64_t i = j; i < j + width; ++i) {  // rows of the block column's transpose
        for (int64_t k = std::max(i + 1, j + width); k < n; ++k) {
          out.at(0, i, k) = out.at(0, k, i);
        }
      }
    }
  }
}

template <typename T>
void LinalgAten<T>::sketch(Block<T> q, uint64_t seed, const int64_t* keys) {
  for (int64_t b = 0; b < q.count; ++b) {
    cpu::sketch(q.matrix(b), seed, keys[b]);
  }
}

template <typename T>
void LinalgAten<T>::normalize_columns(Block<T> x) {
  for (int64_t b = 0; b < x.count; ++b) {
    cpu::normalize_columns(x.matrix(b));
  }
}

template <typename T>
void LinalgAten<T>::ritz_residuals(Block<const T> x, Block<const T> z, const double* theta, double* out) {
  for (int64_t b = 0; b < x.count; ++b) {
    cpu::ritz_residuals(x.matrix(b), z.matrix(b), theta + b * x.cols, out + b * x.cols);
  }
}

template <typename T>
void LinalgAten<T>::chebyshev(Block<const T> x, Block<const T> z, const double* cut, int factor, Block<T> out) {
  for (int64_t b = 0; b < x.count; ++b) {
    cpu::chebyshev(x.matrix(b), z.matrix(b), cut[b], factor, out.matrix(b));
  }
}

template <typename T>
void LinalgAten<T>::cholesky(Block<const T> s, Block<T> factor, int* failed) {
  auto stack = call("aten::linalg_cholesky_ex", "", view(s), false, false);
  const Tensor l = take(stack[0]), info = take(stack[1]);
  copy_into(l, factor);
  const int32_t* code = info.const_data_ptr<int32_t>();
  for (int64_t b = 0; b < s.count; ++b) {
    failed[b] = code[b] != 0;
  }
}

template <typename T>
void LinalgAten<T>::solve_triangular(Block<const T> factor, Block<T> x) {
  auto stack = call("aten::linalg_solve_triangular", "", view(factor.transposed()), view(x), true, false, false);
  copy_into(take(stack[0]), x);
}

template <typename T>
void LinalgAten<T>::householder(Block<T> x) {
  auto stack = call("aten::linalg_qr", "", view(x), std::string("reduced"));
  const Tensor q = take(stack[0]), r = take(stack[1]);
  copy_into(q, x);
}

template <typename T>
void LinalgAten<T>::small_eigh(Block<const T> h, Block<T> w, double* theta) {
  auto stack = call("aten::linalg_eigh", "", view(h), std::string("L"));
  const Tensor values = take(stack[0]), vectors = take(stack[1]);
  copy_into(vectors, w);
  reverse(values.const_data_ptr<T>(), w, theta);
}

template <typename T>
void LinalgAten<T>::small_svd(Block<const T> s, Block<T> u, double* sigma, Block<T> vt) {
  auto stack = call("aten::linalg_svd", "", view(s), false, std::optional<std::string>{});
  const Tensor left = take(stack[0]), values = take(stack[1]), right = take(stack[2]);
  copy_into(left, u);
  copy_into(right, vt);
  std::copy(values.const_data_ptr<T>(), values.const_data_ptr<T>() + s.count * std::min(s.rows, s.cols), sigma);
}

template <typename T>
void LinalgAten<T>::squared_norm(Block<const T> x, double* out) {
  for (int64_t b = 0; b < x.count; ++b) {
    out[b] = cpu::squared_norm(x.data + b * x.stride, x.rows * x.cols);
  }
}

template class LinalgAten<float>;
template class LinalgAten<double>;

}  // namespace laser
