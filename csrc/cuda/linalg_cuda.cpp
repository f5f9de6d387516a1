#include "cuda/linalg_cuda.hpp"

#include <algorithm>
#include <numeric>
#include <type_traits>
#include <utility>

#include "cuda/columns.hpp"
#include "cuda/dense_solvers.hpp"
#include "cuda/judge.hpp"
#include "cuda/orthonormalize.hpp"
#include "cuda/sketch.hpp"
#include "cuda/small_eigh.hpp"
#include "cuda/squares.hpp"

namespace laser {
namespace {

// bfloat16 slices of a float32 operand: three hold its 24 significant bits.
constexpr int kAllSlices = 3;

// From this side on, six products of bfloat16 slices are taken for one in float32: by the rates of
// laser_kernels/dispatch.py they are more than twice as fast, but for sm_120's, where they take three times as long;
// and slicing reads and writes little beside them. Not measured.
constexpr int64_t kSlicedSide = 512;

// Matrices up to this side are factored by our kernels, larger ones by halves: there cuBLAS does most of the work.
constexpr int64_t kSmallest = 256;

// The upper left part of what factor_halves divides: a multiple of kSmallest, half of n or a little more.
int64_t half_of(int64_t n) { return n <= kSmallest ? 0 : ((n + 1) / 2 + kSmallest - 1) / kSmallest * kSmallest; }

// Columns of a slice that lies beside others: 16 bytes of bfloat16 numbers, or a multiple.
int64_t pitch_of(int64_t cols) { return (cols + 7) / 8 * 8; }

// Whether a product of float32 blocks (m, k) (k, n) is made of slices.
template <typename T>
bool in_slices(int64_t m, int64_t k, int64_t n) {
  return std::is_same_v<T, float> && std::min({m, k, n}) >= kSlicedSide;
}

// Whether two blocks are one.
template <typename T>
bool identical(const Block<T>& a, const Block<T>& b) {
  return a.data == b.data && a.rows == b.rows && a.cols == b.cols && a.stride == b.stride &&
         a.row_stride == b.row_stride && a.col_stride == b.col_stride;
}

// Scratch of inverse_factor for one matrix: a copy, the largest L21, and the smallest block's.
int64_t factor_elements(int64_t n) {
  const int64_t half = half_of(n), small = std::min(n, kSmallest);
  return n * n + half * half + small * small;
}

}  // namespace

template <typename T>
LinalgCuda<T>::LinalgCuda(const CudaContext& context, int64_t count, const Operand<T>& operand)
    : context_(context),
      operand_(operand),
      count_(count),
      index_(context, count),
      addresses_(context, 3 * (count + 1)),
      deviation_(context, count),
      shifted_(context, count),
      defect_(context, count),
      diagonal_(context, count) {
  batch_ = {0, {nullptr, int(count)}, addresses_.get()};
  selected_.resize(count);
  std::iota(selected_.begin(), selected_.end(), 0);
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
int64_t linalg_cuda_bytes(int64_t rows, int64_t block, int64_t square) {
  const int64_t side = rows * pitch_of(block), other = std::max(square * square, block * block);
  const int64_t sliced = side + (block >= kSlicedSide ? other : 0);
  const int64_t slices = kAllSlices * (sliced * int64_t(sizeof(BFloat16)) + side * int64_t(sizeof(T)));
  return (std::is_same_v<T, float> ? slices : 0) + rows * block * int64_t(sizeof(T)) +
         8 * (column_partials(rows, block, 1) + block + 64) + 8 * normalize_partials(rows, block, 1);
}

// All slices of two operands; what inverse_factor takes.
template <typename T>
int64_t linalg_cuda_square_bytes(int64_t n) {
  const int64_t slices = std::is_same_v<T, float> ? 2 * kAllSlices * n * n * int64_t(sizeof(BFloat16)) : 0;
  return slices + factor_elements(n) * int64_t(sizeof(T));
}

int weight_slices(Dtype dtype, int64_t side) {
  const bool fast = side >= kSlicedSide;
  return dtype == Dtype::kBFloat16 ? 1 : dtype == Dtype::kFloat16 ? 2 : dtype == Dtype::kFloat32 && fast ? 3 : 0;
}

template <typename T>
void LinalgCuda<T>::select(const std::vector<int64_t>& matrices) {
  const std::vector<int> index(matrices.begin(), matrices.end());
  const int count = int(index.size());
  laser::check(
      cudaMemcpyAsync(index_.get(), index.data(), index.size() * sizeof(int), cudaMemcpyHostToDevice, context_.stream),
      "select", count, 0, 0);
  selected_ = matrices;
  const bool neighbours = count > 0 && matrices.back() - matrices.front() == count - 1;
  batch_ = {neighbours ? matrices.front() : -1, {count == count_ ? nullptr : index_.get(), count}, addresses_.get()};
}

// One product per slice of a, with all the slices of b that matter, side by side, so that a's are read once. Columns of
// `orders` that belong to b_j collect what is of one order of magnitude, i + j; at last these are added up, smallest
// first. A slice takes `pitch` columns, so that each begins on 16 bytes; those beyond l hold anything, and make
// anything of the same columns only.
//
//               b0   b1   b2
//            +----+----+----+
//         a0 | 00 | 01 | 02 |
//         a1 |    | 10 | 11 |
//         a2 |    |    | 20 |
//            +----+----+----+
template <typename T>
void LinalgCuda<T>::multiply_sliced(const Slices& a, int count, Block<const T> b, Block<T> c, int cut) {
  if constexpr (std::is_same_v<T, float>) {
    const int64_t l = b.cols, pitch = pitch_of(l), all = cut * pitch;
    const Block<BFloat16> side =
        Block<BFloat16>::dense(room(context_, slices_, b.count * b.rows * all), b.count, b.rows, all);
    check(slice(b, side.first_columns(l), cut, pitch, batch_.selection, context_.stream), "slice", b.count, b.rows, l);
    if (cut == 1) {
      laser::multiply<BFloat16, float>(context_, a[0], side.first_columns(l), c, 0.0f, batch_);
      return;
    }
    const Block<T> orders = Block<T>::dense(room(context_, orders_, c.count * c.rows * all), c.count, c.rows, all);
    for (int i = 0; i < count; ++i) {
      const int64_t columns = all - i * pitch;
      laser::multiply<BFloat16, float>(context_, a[i], side.first_columns(columns), orders.columns(i * pitch, columns),
                                       i == 0 ? 0.0f : 1.0f, batch_);
    }
    check(add_columns<T>(orders, cut, c, batch_.selection, context_.stream), "multiply", c.count, c.rows, l);
  }
}

template <typename T>
void LinalgCuda<T>::multiply_weight(const Operand<T>& a, Block<const T> b, Block<T> c, Precision precision) {
  if (std::is_same_v<T, float> && precision == Precision::kHalf) {
    multiply_sliced(a.slices, 1, b, c, 1);
  } else if (a.count > 0) {
    multiply_sliced(a.slices, a.count, b, c, kAllSlices);
  } else {
    multiply(a.weight, b, c);
  }
}

template <typename T>
void LinalgCuda<T>::forward(Block<const T> q, Block<T> y, Precision precision) {
  multiply_weight(operand_, q, y, precision);
}

template <typename T>
void LinalgCuda<T>::backward(Block<const T> y, Block<T> x, Precision precision) {
  multiply_weight({operand_.weight.transposed(), operand_.slices.transposed(), operand_.count}, y, x, precision);
}

template <typename T>
void LinalgCuda<T>::weight_gram(Block<T> g) {
  if (operand_.count > 0) {
    add_products(operand_.slices.transposed(), operand_.slices, operand_.count, kAllSlices, g, T(1), T(0));
  } else {
    multiply(operand_.weight.transposed(), operand_.weight, g);
  }
  check(mirror(g, batch_.selection, context_.stream), "gram", g.count, g.rows, g.cols);
}

template <typename T>
void LinalgCuda<T>::copy(Block<const T> from, Block<T> to) {
  check(laser::copy(from, to, batch_.selection, context_.stream), "copy", to.count, to.rows, to.cols);
}

template <typename T>
void LinalgCuda<T>::multiply(Block<const T> a, Block<const T> b, Block<T> c) {
  multiply_full(a, b, c, T(1), T(0));
}

template <typename T>
void LinalgCuda<T>::gram(Block<const T> a, Block<T> g) {
  multiply_full(a.transposed(), a, g, T(1), T(0));
  check(mirror(g, batch_.selection, context_.stream), "gram", g.count, g.rows, g.cols);
}

template <typename T>
void LinalgCuda<T>::round(Block<const T> from, Block<BFloat16> to) {
  check(slice(from, to, 1, 0, batch_.selection, context_.stream), "round", to.count, to.rows, to.cols);
}

template <typename T>
void LinalgCuda<T>::multiply_half(Block<const BFloat16> a, Block<const T> b, Block<T> c) {
  multiply_sliced({a, 0}, 1, b, c, 1);
}

template <typename T>
Slices LinalgCuda<T>::sliced(Block<const T> x, int slices, BFloat16* data) {
  const bool by_rows = x.col_stride == 1;
  const Block<const T> base = by_rows ? x : x.transposed();
  const int64_t part = x.count * x.rows * x.cols;
  const Block<BFloat16> first = Block<BFloat16>::dense(data, base.count, base.rows, base.cols);
  check(slice(base, first, slices, part, batch_.selection, context_.stream), "slice", x.count, x.rows, x.cols);
  return {by_rows ? first : first.transposed(), part};
}

template <typename T>
void LinalgCuda<T>::add_products(const Slices& a, const Slices& b, int count, int orders, Block<T> c, T alpha, T beta) {
  if constexpr (std::is_same_v<T, float>) {
    for (int order = std::min(orders, 2 * count - 1) - 1, first = true; order >= 0; --order) {  // the smallest first
      for (int i = std::max(0, order - count + 1); i <= std::min(order, count - 1); ++i, first = false) {
        laser::multiply<BFloat16, float>(context_, a[i], b[order - i], c, first ? beta : 1.0f, batch_, alpha);
      }
    }
  }
}

// One product, three, or six.
template <typename T>
void LinalgCuda<T>::multiply_slices(Block<const T> a, Block<const T> b, Block<T> c, int slices, T alpha, T beta) {
  const int64_t part_a = a.count * a.rows * a.cols, part_b = b.count * b.rows * b.cols;
  const bool same = identical(a, b), mirrored = identical(a, b.transposed());
  const int64_t elements = part_a + (same || mirrored ? 0 : part_b);
  BFloat16* data = room(context_, slices_, slices * elements);
  const Slices left = sliced(a, slices, data);
  const Slices right = same ? left : mirrored ? left.transposed() : sliced(b, slices, data + slices * part_a);
  add_products(left, right, slices, slices, c, alpha, beta);
}

// As good as products in T: in slices where those are faster.
template <typename T>
void LinalgCuda<T>::multiply_full(Block<const T> a, Block<const T> b, Block<T> c, T alpha, T beta) {
  if (in_slices<T>(a.rows, a.cols, b.cols)) {
    multiply_slices(a, b, c, kAllSlices, alpha, beta);
  } else {
    laser::multiply<T, T>(context_, a, b, c, beta, batch_, alpha);
  }
}

template <typename T>
void LinalgCuda<T>::multiply_rounded(Block<const T> a, Block<const T> b, Block<T> c, Precision precision) {
  if (std::is_same_v<T, double> || precision == Precision::kFull) {
    multiply(a, b, c);
  } else {
    multiply_slices(a, b, c, precision == Precision::kHalf ? 1 : 2, T(1), T(0));
  }
}

template <typename T>
void LinalgCuda<T>::affine(Block<const T> x, const double* scale, const double* shift, Block<T> out) {
  for (int64_t b : selected_) {
    check(laser::affine<T>(x.matrix(b), scale[b], shift[b], out.matrix(b), Selection{nullptr, 1}, context_.stream),
          "affine", 1, x.rows, x.cols);
  }
}

template <typename T>
void LinalgCuda<T>::add(double alpha, Block<const T> x, double beta, Block<T> y) {
  check(laser::add(alpha, x, beta, y, batch_.selection, context_.stream), "add", x.count, x.rows, x.cols);
}

template <typename T>
void LinalgCuda<T>::add_symmetric(double alpha, Block<const T> y, double beta, Block<T> x) {
  check(laser::add_symmetric(alpha, y, beta, x, batch_.selection, context_.stream), "add_symmetric", x.count, x.rows,
        x.cols);
}

//      +-----+-----+
//      | L11 |     |     W11 = L11^-1;  L21 = S21 W11^T;  W22 = L22^-1, L22 L22^T = S22 - L21 L21^T;
//      +-----+-----+     W21 = -W22 (L21 W11)
//      | L21 | L22 |
//      +-----+-----+
template <typename T>
void LinalgCuda<T>::factor_halves(Block<T> s, Block<T> w, Block<T> side, Block<T> work) {
  const int64_t n = s.rows;
  if (n <= kSmallest) {
    check(factor_inverse<T>(s, work.corner(0, 0, n, n), w, deviation_.get(), shifted_.get(), batch_.selection,
                            context_.stream),
          "inverse_factor", s.count, n, n);
    return;
  }
  const int64_t half = half_of(n), rest = n - half;
  const Block<T> s21 = s.corner(half, 0, rest, half), s22 = s.corner(half, half, rest, rest);
  const Block<T> w11 = w.corner(0, 0, half, half), w22 = w.corner(half, half, rest, rest);
  const Block<T> l21 = side.corner(0, 0, rest, half);
  check(zero(w.corner(0, half, half, rest), batch_.selection, context_.stream), "inverse_factor", s.count, half, rest);
  factor_halves(s.corner(0, 0, half, half), w11, side, work);
  multiply_full(s21, w11.transposed(), l21, T(1), T(0));
  multiply_full(l21, l21.transposed(), s22, T(-1), T(1));
  multiply_full(l21, w11, s21, T(1), T(0));
  factor_halves(s22, w22, side, work);
  multiply_full(w22, s21, w.corner(half, 0, rest, half), T(-1), T(0));
}

template <typename T>
void LinalgCuda<T>::inverse_factor(Block<const T> s, Block<T> w, double* failed) {
  const int64_t n = s.rows, small = std::min(n, kSmallest), half = half_of(n);
  T* data = room(context_, block_, s.count * factor_elements(n));
  const Block<T> side = Block<T>::dense(data, s.count, half, half);  // of whole panels: what follows stays aligned
  const Block<T> unit = Block<T>::dense(data + s.count * half * half, s.count, n, n);
  const Block<T> work = Block<T>::dense(data + s.count * (n * n + half * half), s.count, small, small);
  check(cudaMemsetAsync(shifted_.get(), 0, size_t(count_) * sizeof(int), context_.stream), "inverse_factor", s.count, n,
        n);
  double* root = room(context_, partials_, s.count * n);
  check(equilibrate(s, root, unit, shifted_.get(), batch_.selection, context_.stream), "inverse_factor", s.count, n, n);
  factor_halves(unit, w, side, work);
  check(scale_columns<T, T>(w, root, w, batch_.selection, context_.stream), "inverse_factor", s.count, n, n);
  check(find_failures<T>(w, shifted_.get(), failed, batch_.selection, context_.stream), "inverse_factor", s.count, n,
        n);
  check(zero_failed(failed, w, batch_.selection, context_.stream), "inverse_factor", s.count, n, n);
}

template <typename T>
void LinalgCuda<T>::truncate(Block<T> x, const int64_t* ranks) {
  check(laser::truncate(x, ranks, batch_.selection, context_.stream), "truncate", x.count, x.rows, x.cols);
}

template <typename T>
void LinalgCuda<T>::dot(Block<const T> x, Block<const T> y, double* out) {
  double* partial = room(context_, partials_, column_partials(x.rows, x.cols, x.count));
  check(laser::dot(x, y, out, partial, batch_.selection, context_.stream), "dot", x.count, x.rows, x.cols);
}

template <typename T>
void LinalgCuda<T>::recur(Block<const T> before, Block<const T> now, Block<T> next, double* sums) {
  double* partial = room(context_, partials_, recurrence_partials(now.rows, now.count));
  check(recurrence(before, now, next, sums, partial, batch_.selection, context_.stream), "recur", now.count, now.rows,
        now.cols);
}

template <typename T>
void LinalgCuda<T>::trace(Block<const T> x, double* out) {
  check(laser::trace(x, out, batch_.selection, context_.stream), "trace", x.count, x.rows, x.cols);
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
  const bool sliced = in_slices<T>(l, n, l);
  const int64_t part = kAllSlices * x.count * n * l;
  Block<T> now = x, next = other;
  for (int pass = 0; pass < passes; ++pass) {
    if (pass % 2 == 0) {  // a pass leaves unit columns, but for dependent ones, whose length tells them in the next
      check(normalize_columns(now, batch_.selection, partial, context_.stream), "normalize_columns", x.count, n, l);
    }
    BFloat16* slices = sliced ? room(context_, slices_, part + kAllSlices * x.count * l * l) : nullptr;
    const Slices left = sliced ? this->sliced(now, kAllSlices, slices) : Slices{};  // both products read them
    if (sliced) {
      add_products(left.transposed(), left, kAllSlices, kAllSlices, gram, T(1), T(0));
      check(mirror(gram, batch_.selection, context_.stream), "gram", x.count, l, l);
    } else {
      this->gram(now, gram);
    }
    check(cholesky_inverse<T>(gram, work, factor, deviation_.get(), shifted_.get(), batch_.selection, context_.stream),
          "orthonormalize", x.count, n, l);
    if (sliced) {
      const Slices right = this->sliced(factor.transposed(), kAllSlices, slices + part);
      add_products(left, right, kAllSlices, kAllSlices, next, T(1), T(0));
    } else {
      multiply(now, factor.transposed(), next);
    }
    std::swap(now, next);
  }
  if (now.data != x.data) {
    copy(now, x);
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
  std::vector<int> status(s.count, 0);
  context_.solver->svd(s, u, values, vt, batch_.selection, status.data());
  for (int64_t b : selected_) {
    if (status[b] != 0) {
      unsolved_.push_back(b);
    }
  }
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
void LinalgCuda<T>::fetch(const void* from, void* host, size_t bytes) {
  check(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, context_.stream), "fetch", count_, 0, 0);
  check(cudaStreamSynchronize(context_.stream), "fetch", count_, 0, 0);
}

template <typename T>
void LinalgCuda<T>::send(const void* host, void* to, size_t bytes) {
  check(cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, context_.stream), "send", count_, 0, 0);
  check(cudaStreamSynchronize(context_.stream), "send", count_, 0, 0);
}

template class LinalgCuda<float>;
template class LinalgCuda<double>;
template int64_t linalg_cuda_bytes<float>(int64_t, int64_t, int64_t);
template int64_t linalg_cuda_bytes<double>(int64_t, int64_t, int64_t);
template int64_t linalg_cuda_square_bytes<float>(int64_t);
template int64_t linalg_cuda_square_bytes<double>(int64_t);

}  // namespace laser
