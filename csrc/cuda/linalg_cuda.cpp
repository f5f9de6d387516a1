#include "cuda/linalg_cuda.hpp"

#include <algorithm>
#include <type_traits>

#include "cuda/columns.hpp"
#include "cuda/dense_solvers.hpp"
#include "cuda/judge.hpp"
#include "cuda/orthonormalize.hpp"
#include "cuda/sketch.hpp"
#include "cuda/small_eigh.hpp"

namespace laser {
namespace {

// bfloat16 slices of a float32 operand: three hold its 24 significant bits.
constexpr int kAllSlices = 3;

}  // namespace

template <typename T>
LinalgCuda<T>::LinalgCuda(const CudaContext& context, int64_t count, const Operand<T>& operand)
    : context_(context),
      operand_(operand),
      count_(count),
      index_(context, count),
      addresses_(context, 3 * count),
      deviation_(context, count),
      shifted_(context, count),
      defect_(context, count),
      diagonal_(context, count) {
  batch_ = {true, count, {nullptr, int(count)}, addresses_.get()};
}

template <typename T>
template <typename E>
E* LinalgCuda<T>::room(const CudaContext& context, DeviceArray<E>& scratch, int64_t n) {
  if (n > scratch.size()) {
    scratch = DeviceArray<E>();  // given back first
    scratch = DeviceArray<E>(context, n);
  }
  return scratch.get();
}

template <typename T>
int64_t linalg_cuda_bytes(int64_t rows, int64_t block) {
  const int64_t slices = std::is_same_v<T, float> ? kAllSlices * rows * block * int64_t(sizeof(BFloat16)) : 0;
  return slices + rows * block * int64_t(sizeof(T)) + 8 * (column_partials(rows, block, 1) + block + 64) +
         8 * normalize_partials(rows, block, 1);
}

template <typename T>
void LinalgCuda<T>::select(const std::vector<int64_t>& matrices) {
  const std::vector<int> index(matrices.begin(), matrices.end());
  const int count = int(index.size());
  laser::check(
      cudaMemcpyAsync(index_.get(), index.data(), index.size() * sizeof(int), cudaMemcpyHostToDevice, context_.stream),
      "select", count, 0, 0);
  batch_ = {count == count_, count, {count == count_ ? nullptr : index_.get(), count}, addresses_.get()};
}

template <typename T>
void LinalgCuda<T>::multiply_sliced(Block<const BFloat16> a, Block<const T> b, Block<T> c, int slices) {
  if constexpr (std::is_same_v<T, float>) {
    const int64_t part = b.count * b.rows * b.cols;
    BFloat16* data = room(context_, slices_, slices * part);
    const Block<BFloat16> first = Block<BFloat16>::dense(data, b.count, b.rows, b.cols);
    check(slice(b, first, slices, part, batch_.selection, context_.stream), "slice", b.count, b.rows, b.cols);
    for (int k = 0; k < slices; ++k) {
      const Block<const BFloat16> some = Block<BFloat16>::dense(data + k * part, b.count, b.rows, b.cols);
      laser::multiply<BFloat16, float>(context_, a, some, c, k == 0 ? 0.0f : 1.0f, batch_);
    }
  }
}

template <typename T>
void LinalgCuda<T>::forward(Block<const T> q, Block<T> y, Precision precision) {
  if (std::is_same_v<T, float> && (precision == Precision::kHalf || operand_.exact)) {
    multiply_sliced(operand_.rounded, q, y, precision == Precision::kHalf ? 1 : kAllSlices);
  } else {
    multiply(operand_.weight, q, y);
  }
}

template <typename T>
void LinalgCuda<T>::backward(Block<const T> y, Block<T> x, Precision precision) {
  if (std::is_same_v<T, float> && (precision == Precision::kHalf || operand_.exact)) {
    multiply_sliced(operand_.rounded.transposed(), y, x, precision == Precision::kHalf ? 1 : kAllSlices);
  } else {
    multiply(operand_.weight.transposed(), y, x);
  }
}

template <typename T>
void LinalgCuda<T>::weight_gram(Block<T> g) {
  if constexpr (std::is_same_v<T, float>) {
    if (operand_.exact) {
      laser::multiply<BFloat16, float>(context_, operand_.rounded.transposed(), operand_.rounded, g, 0.0f, batch_);
      check(mirror(g, batch_.selection, context_.stream), "gram", g.count, g.rows, g.cols);
      return;
    }
  }
  gram(operand_.weight, g);
}

template <typename T>
void LinalgCuda<T>::copy(Block<const T> from, Block<T> to) {
  check(laser::copy(from, to, batch_.selection, context_.stream), "copy", to.count, to.rows, to.cols);
}

template <typename T>
void LinalgCuda<T>::multiply(Block<const T> a, Block<const T> b, Block<T> c) {
  laser::multiply<T, T>(context_, a, b, c, T(0), batch_);
}

template <typename T>
void LinalgCuda<T>::gram(Block<const T> a, Block<T> g) {
  multiply(a.transposed(), a, g);
  check(mirror(g, batch_.selection, context_.stream), "gram", g.count, g.rows, g.cols);
}

template <typename T>
void LinalgCuda<T>::round(Block<const T> from, Block<BFloat16> to) {
  check(slice(from, to, 1, 0, batch_.selection, context_.stream), "round", to.count, to.rows, to.cols);
}

template <typename T>
void LinalgCuda<T>::multiply_half(Block<const BFloat16> a, Block<const T> b, Block<T> c) {
  multiply_sliced(a, b, c, 1);
}

template <typename T>
void LinalgCuda<T>::sketch(Block<T> q, uint64_t seed, const int64_t* keys) {
  check(laser::sketch(q, seed, keys, context_.stream), "sketch", q.count, q.rows, q.cols);
}

// Every pass: S = X^T X, X <- X L^-T. The last pass leaves its findings for judge().
template <typename T>
void LinalgCuda<T>::orthonormalize(Block<T> x, Block<T> gram, Block<T> factor, int passes) {
  const int64_t n = x.rows, l = x.cols;
  double* partial = room(context_, partials_, normalize_partials(n, l, x.count));
  // factor holds the inverse; behind it in `other` is what the product writes, and the factorization's scratch.
  T* data = room(context_, block_, x.count * (n * l + l * l));
  const Block<T> other = Block<T>::dense(data, x.count, n, l);
  const Block<T> work = Block<T>::dense(data + x.count * n * l, x.count, l, l);
  for (int pass = 0; pass < passes; ++pass) {
    if (pass != 1) {  // one pass leaves unit columns, unless it met dependent ones; those need a third
      check(normalize_columns(x, batch_.selection, partial, context_.stream), "normalize_columns", x.count, n, l);
    }
    this->gram(x, gram);
    check(cholesky_inverse<T>(gram, work, factor, deviation_.get(), shifted_.get(), batch_.selection, context_.stream),
          "orthonormalize", x.count, n, l);
    multiply(x, factor.transposed(), other);
    copy(other, x);
  }
  check(find_defects(deviation_.get(), shifted_.get(), defect_.get(), batch_.selection, context_.stream),
        "orthonormalize", x.count, n, l);
}

template <typename T>
void LinalgCuda<T>::chebyshev(Block<const T> x, Block<const T> z, const Progress* progress, int factor, Block<T> out) {
  check(laser::chebyshev(x, z, progress, factor, out, batch_.selection, context_.stream), "chebyshev", x.count, x.rows,
        x.cols);
}

template <typename T>
void LinalgCuda<T>::ritz_residuals(Block<const T> x, Block<const T> z, const double* theta, double* out) {
  double* partial = room(context_, partials_, column_partials(x.rows, x.cols, x.count));
  check(laser::ritz_residuals(x, z, theta, out, partial, batch_.selection, context_.stream), "ritz_residuals", x.count,
        x.rows, x.cols);
}

template <typename T>
void LinalgCuda<T>::squared_norm(Block<const T> x, double* out) {
  double* partial = room(context_, partials_, column_partials(x.rows, x.cols, x.count));
  check(laser::squared_norm(x, out, partial, batch_.selection, context_.stream), "squared_norm", x.count, x.rows,
        x.cols);
}

template <typename T>
void LinalgCuda<T>::small_eigh(Block<const T> h, Block<T> w, double* theta) {
  if (h.cols <= jacobi_limit<T>(context_.shared_limit)) {
    check(laser::small_eigh(h, w, theta, batch_.selection, context_.stream), "small_eigh", h.count, h.rows, h.cols);
  } else {
    context_.solver->eigh(h, w, theta, batch_.selection);
  }
}

template <typename T>
void LinalgCuda<T>::small_svd(Block<const T> s, Block<T> u, double* sigma, Block<T> vt) {
  T* values = room(context_, values_, s.count * s.cols);
  context_.solver->svd(s, u, values, vt, batch_.selection);
  const Block<const T> row = Block<T>::dense(values, s.count, 1, s.cols);
  check(widen_row(row, sigma, batch_.selection, context_.stream), "small_svd", s.count, s.rows, s.cols);
}

template <typename T>
bool LinalgCuda<T>::diagonal(Block<const T> m, Block<T> u, double* sigma) {
  check(cudaMemsetAsync(diagonal_.get(), 1, size_t(m.count) * sizeof(int), context_.stream), "diagonal", m.count,
        m.rows,
        m.cols);  // matrices that are not selected do not count
  check(laser::diagonal(m, u, sigma, diagonal_.get(), batch_.selection, context_.stream), "diagonal", m.count, m.rows,
        m.cols);
  std::vector<int> host(m.count);
  check(
      cudaMemcpyAsync(host.data(), diagonal_.get(), host.size() * sizeof(int), cudaMemcpyDeviceToHost, context_.stream),
      "diagonal", m.count, m.rows, m.cols);
  check(cudaStreamSynchronize(context_.stream), "diagonal", m.count, m.rows, m.cols);
  return std::all_of(host.begin(), host.end(), [](int d) { return d != 0; });
}

template <typename T>
void LinalgCuda<T>::judge(const RitzStep& step) {
  RitzStep ours = step;
  ours.defect = defect_.get();
  check(laser::judge(ours, batch_.selection, context_.stream), "judge", count_, step.n, step.block);
}

template <typename T>
void LinalgCuda<T>::judge_exact(const ExactStep& step) {
  check(laser::judge_exact(step, batch_.selection, context_.stream), "judge", count_, step.n, step.n);
}

template <typename T>
void LinalgCuda<T>::read(const Progress* progress, std::vector<Progress>& host) {
  check(cudaMemcpyAsync(host.data(), progress, host.size() * sizeof(Progress), cudaMemcpyDeviceToHost, context_.stream),
        "read", count_, 0, 0);
  check(cudaStreamSynchronize(context_.stream), "read", count_, 0, 0);
}

template class LinalgCuda<float>;
template class LinalgCuda<double>;
template int64_t linalg_cuda_bytes<float>(int64_t, int64_t);
template int64_t linalg_cuda_bytes<double>(int64_t, int64_t);

}  // namespace laser
