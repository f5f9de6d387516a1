#include "linalg_aten.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <string>

#include "aten.hpp"
#include "cpu/kernels.hpp"
#include "cpu/orthonormalize.hpp"
#include "products_aten.hpp"

namespace laser {
namespace {

using aten::call;
using aten::copy_into;
using aten::ScalarType;
using aten::take;
using aten::Tensor;
using aten::view;

// Off-diagonal part of a matrix that may be dropped, in units of eps times its largest entry: rounding level.
constexpr double kDiagonal = 8.0;

// What cpu::orthonormalize computes with.
struct Tools {
  template <typename T>
  void gram(Block<T> x, Block<T> s) {
    aten::gram<T>(x, s);
  }

  // failed[b] = 1 where s[b] is not numerically positive definite (factor[b] is then undefined).
  template <typename T>
  void cholesky(Block<const T> s, Block<T> factor, int* failed) {
    auto stack = call("aten::linalg_cholesky_ex", "", view(s), false, false);
    const Tensor l = take(stack[0]), info = take(stack[1]);
    copy_into(l, factor);
    const int32_t* code = info.const_data_ptr<int32_t>();
    for (int64_t b = 0; b < s.count; ++b) {
      failed[b] = code[b] != 0;
    }
  }

  template <typename T>
  void solve_triangular(Block<T> factor, Block<T> x) {
    auto stack = call("aten::linalg_solve_triangular", "", view(factor.transposed()), view(x), true, false, false);
    copy_into(take(stack[0]), x);
  }

  template <typename T>
  void householder(Block<T> x) {
    auto stack = call("aten::linalg_qr", "", view(x), std::string("reduced"));
    const Tensor q = take(stack[0]), r = take(stack[1]);
    copy_into(q, x);
  }
};

// Whether every pivot of s = L L^T is above the rounding of its diagonal entry.
template <typename T>
bool pivots_hold(Block<const T> s, Block<const T> factor) {
  const double least = cpu::kFirstShift * std::numeric_limits<T>::epsilon() * std::sqrt(double(s.cols));
  for (int64_t i = 0; i < s.cols; ++i) {
    const double pivot = double(factor.at(0, i, i)) * double(factor.at(0, i, i));
    if (!(pivot > least * double(s.at(0, i, i)))) {
      return false;
    }
  }
  return true;
}

// The two leading slices of x in bfloat16, in x's type.
template <typename T>
std::pair<Tensor, Tensor> sliced(Block<const T> x) {
  const auto leading = [](const Tensor& from) {
    Tensor half = torch::stable::new_empty(from, from.sizes(), ScalarType::BFloat16);
    torch::stable::copy_(half, from);
    Tensor back = torch::stable::new_empty(from, from.sizes());
    torch::stable::copy_(back, half);
    return back;
  };
  const Tensor first = leading(view(x));
  return {first, leading(torch::stable::subtract(view(x), first))};
}

template <typename T>
bool is_diagonal(Block<const T> m) {
  double off = 0, top = 0;
  for (int64_t i = 0; i < m.rows; ++i) {
    for (int64_t j = 0; j < m.cols; ++j) {
      const double v = std::abs(double(m.at(0, i, j)));
      (i == j ? top : off) = std::max(i == j ? top : off, v);
    }
  }
  return off <= kDiagonal * std::numeric_limits<T>::epsilon() * top;
}

// A copy of a batch without the entries far below rounding: MKL's divide and conquer gives up on some matrices that
// have subnormal ones.
template <typename T>
Tensor without_dust(Block<const T> s) {
  Tensor copy = torch::stable::new_empty(view(s), view(s).sizes());
  copy_into(view(s), aten::block<T>(copy));
  T* const data = copy.mutable_data_ptr<T>();
  const int64_t each = s.rows * s.cols;
  for (int64_t b = 0; b < s.count; ++b) {
    T* const one = data + b * each;
    T top = 0;
    for (int64_t e = 0; e < each; ++e) {
      top = std::max(top, std::abs(one[e]));
    }
    const T least = top * std::numeric_limits<T>::epsilon() * std::numeric_limits<T>::epsilon();
    for (int64_t e = 0; e < each; ++e) {
      one[e] = std::abs(one[e]) < least ? T(0) : one[e];
    }
  }
  return copy;
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

// f(blocks...) on the selected matrices: in one call where that is the whole batch.
template <typename T>
template <typename F, typename... Blocks>
void LinalgAten<T>::together(const F& f, Blocks... blocks) const {
  if (all_) {
    f(blocks...);
    return;
  }
  for (int64_t b : selected_) {
    f(blocks.matrix(b)...);
  }
}

// f(b, blocks.matrix(b)...) for each selected b.
template <typename T>
template <typename F, typename... Blocks>
void LinalgAten<T>::one_by_one(int64_t count, const F& f, Blocks... blocks) const {
  for (int64_t i = 0; i < (all_ ? count : int64_t(selected_.size())); ++i) {
    const int64_t b = all_ ? i : selected_[i];
    f(b, blocks.matrix(b)...);
  }
}

template <typename T>
void LinalgAten<T>::select(const std::vector<int64_t>& matrices) {
  all_ = false;
  selected_ = matrices;
}

template <typename T>
void LinalgAten<T>::forward(Block<const T> q, Block<T> y, Precision precision) {
  precision == Precision::kHalf ? together(aten::multiply_half<T>, rounded_, q, y)
                                : together(aten::multiply<T>, weight_, q, y);
}

template <typename T>
void LinalgAten<T>::backward(Block<const T> y, Block<T> x, Precision precision) {
  precision == Precision::kHalf ? together(aten::multiply_half<T>, rounded_.transposed(), y, x)
                                : together(aten::multiply<T>, weight_.transposed(), y, x);
}

template <typename T>
void LinalgAten<T>::weight_gram(Block<T> g) {
  together(aten::gram<T>, weight_, g);
}

template <typename T>
void LinalgAten<T>::copy(Block<const T> from, Block<T> to) {
  together([](Block<const T> a, Block<T> b) { copy_into(view(a), b); }, from, to);
}

template <typename T>
void LinalgAten<T>::multiply(Block<const T> a, Block<const T> b, Block<T> c) {
  together(aten::multiply<T>, a, b, c);
}

template <typename T>
void LinalgAten<T>::gram(Block<const T> a, Block<T> g) {
  together(aten::gram<T>, a, g);
}

template <typename T>
void LinalgAten<T>::round(Block<const T> from, Block<BFloat16> to) {
  together([](Block<const T> a, Block<BFloat16> b) { copy_into(view(a), b); }, from, to);
}

template <typename T>
void LinalgAten<T>::multiply_half(Block<const BFloat16> a, Block<const T> b, Block<T> c) {
  together(aten::multiply_half<T>, a, b, c);
}

// bfloat16 numbers, kept in float32: products of them are exact there, so that their sums are what a GPU computes but
// for the order.
template <typename T>
void LinalgAten<T>::multiply_rounded(Block<const T> a, Block<const T> b, Block<T> c, Precision precision) {
  if (std::is_same_v<T, double> || precision == Precision::kFull) {
    multiply(a, b, c);
    return;
  }
  one_by_one(
      c.count,
      [&](int64_t, Block<const T> x, Block<const T> y, Block<T> to) {
        const auto [x0, x1] = sliced(x);
        const auto [y0, y1] = sliced(y);
        auto stack = call("aten::mm", "out", x0, y0, view(to));
        take(stack[0]);
        if (precision == Precision::kPair) {
          for (const auto& [left, right] : {std::pair{x0, y1}, std::pair{x1, y0}}) {
            auto other = call("aten::mm", "", left, right);
            Tensor small = take(other[0]);
            cpu::add<T>(1, aten::block<T>(small), 1, to);
          }
        }
      },
      a, b, c);
}

template <typename T>
void LinalgAten<T>::affine(Block<const T> x, const double* scale, const double* shift, Block<T> out) {
  one_by_one(
      x.count, [&](int64_t b, Block<const T> from, Block<T> to) { cpu::affine(from, scale[b], shift[b], to); }, x, out);
}

template <typename T>
void LinalgAten<T>::add(double alpha, Block<const T> x, double beta, Block<T> y) {
  one_by_one(x.count, [&](int64_t, Block<const T> from, Block<T> to) { cpu::add(alpha, from, beta, to); }, x, y);
}

template <typename T>
void LinalgAten<T>::add_symmetric(double alpha, Block<const T> y, double beta, Block<T> x) {
  one_by_one(
      x.count, [&](int64_t, Block<const T> from, Block<T> to) { cpu::add_symmetric(alpha, from, beta, to); }, y, x);
}

template <typename T>
void LinalgAten<T>::inverse_factor(Block<const T> s, Block<T> w, double* failed) {
  one_by_one(
      s.count,
      [&](int64_t b, Block<const T> one, Block<T> inverse) {
        Tools tools;
        int code = 0;
        tools.cholesky<T>(one, inverse, &code);
        failed[b] = code != 0 || !pivots_hold<T>(one, inverse);
        if (failed[b] == 0) {
          Tensor identity = torch::stable::new_zeros(view(inverse), view(inverse).sizes());
          for (int64_t i = 0; i < one.rows; ++i) {
            identity.mutable_data_ptr<T>()[i * one.cols + i] = T(1);
          }
          auto stack = call("aten::linalg_solve_triangular", "", view(inverse), identity, false, true, false);
          copy_into(take(stack[0]), inverse);
        } else {
          copy_into(torch::stable::new_zeros(view(inverse), view(inverse).sizes()), inverse);
        }
      },
      s, w);
}

template <typename T>
void LinalgAten<T>::truncate(Block<T> x, const int64_t* ranks) {
  one_by_one(
      x.count,
      [&](int64_t b, Block<T> one) {
        for (int64_t i = 0; i < one.rows; ++i) {
          for (int64_t j = ranks[b]; j < one.cols; ++j) {
            one.at(0, i, j) = T(0);
          }
        }
      },
      x);
}

template <typename T>
void LinalgAten<T>::dot(Block<const T> x, Block<const T> y, double* out) {
  one_by_one(
      x.count,
      [&](int64_t b, Block<const T> a, Block<const T> c) { out[b] = cpu::dot(a.data, c.data, a.rows * a.cols); }, x, y);
}

template <typename T>
void LinalgAten<T>::trace(Block<const T> x, double* out) {
  one_by_one(
      x.count,
      [&](int64_t b, Block<const T> one) {
        out[b] = 0;
        for (int64_t i = 0; i < one.cols; ++i) {
          out[b] += double(one.at(0, i, i));
        }
      },
      x);
}

template <typename T>
void LinalgAten<T>::sketch(Block<T> q, uint64_t seed, const int64_t* keys) {
  one_by_one(q.count, [&](int64_t b, Block<T> one) { cpu::sketch(one, seed, keys[b]); }, q);
}

// Looks after every pass, so that it knows how many are needed.
template <typename T>
void LinalgAten<T>::orthonormalize(Block<T> x, Block<T> gram, Block<T> factor, int passes) {
  together(
      [&](Block<T> a, Block<T> s, Block<T> f) {
        Tools tools;
        cpu::orthonormalize(tools, a, s, f, passes == 1);
      },
      x, gram, factor);
}

template <typename T>
void LinalgAten<T>::chebyshev(Block<const T> x, Block<const T> z, const Progress* progress, int factor, Block<T> out) {
  one_by_one(
      x.count,
      [&](int64_t b, Block<const T> from, Block<const T> before, Block<T> to) {
        cpu::chebyshev(from, before, progress[b].slope, factor, to);
      },
      x, z, out);
}

template <typename T>
void LinalgAten<T>::ritz_residuals(Block<const T> x, Block<const T> z, const double* theta, double* out) {
  one_by_one(
      x.count,
      [&](int64_t b, Block<const T> a, Block<const T> v) {
        cpu::ritz_residuals(a, v, theta + b * a.cols, out + b * a.cols);
      },
      x, z);
}

template <typename T>
void LinalgAten<T>::small_eigh(Block<const T> h, Block<T> w, double* theta) {
  const auto solve = [](Block<const T> s, Block<T> vectors, double* values) {
    auto stack = call("aten::linalg_eigh", "", without_dust(s), std::string("L"));
    const Tensor ascending = take(stack[0]), v = take(stack[1]);
    copy_into(v, vectors);
    reverse(ascending.const_data_ptr<T>(), vectors, values);
  };
  if (all_) {
    solve(h, w, theta);
    return;
  }
  one_by_one(
      h.count, [&](int64_t b, Block<const T> s, Block<T> vectors) { solve(s, vectors, theta + b * s.cols); }, h, w);
}

template <typename T>
void LinalgAten<T>::small_svd(Block<const T> s, Block<T> u, double* sigma, Block<T> vt) {
  one_by_one(
      s.count,
      [&](int64_t b, Block<const T> a, Block<T> left, Block<T> right) {
        auto stack = call("aten::linalg_svd", "", view(a), false, std::optional<std::string>{});
        const Tensor us = take(stack[0]), values = take(stack[1]), vs = take(stack[2]);
        copy_into(us, left);
        copy_into(vs, right);
        std::copy_n(values.const_data_ptr<T>(), a.cols, sigma + b * a.cols);
      },
      s, u, vt);
}

template <typename T>
bool LinalgAten<T>::diagonal(Block<const T> m, Block<T> u, double* sigma) {
  bool all = true;
  one_by_one(m.count, [&](int64_t, Block<const T> one) { all = all && is_diagonal(one); }, m);
  one_by_one(
      m.count,
      [&](int64_t b, Block<const T> one, Block<T> columns) {
        double above = std::numeric_limits<double>::infinity();
        for (int64_t j = 0; all && j < one.cols; ++j) {  // neighbours may be out of order by rounding
          const double value = one.at(0, j, j);
          above = sigma[b * one.cols + j] = std::min(std::abs(value), above);
          for (int64_t k = 0; value < 0 && k < columns.rows; ++k) {  // Householder chose the other sign
            columns.at(0, k, j) = -columns.at(0, k, j);
          }
        }
      },
      m, u);
  return all;
}

template <typename T>
void LinalgAten<T>::judge(const RitzStep& step) {
  one_by_one(weight_.count, [&](int64_t b) { laser::judge(SerialTeam{}, step, b); });
}

template <typename T>
void LinalgAten<T>::judge_exact(const ExactStep& step) {
  one_by_one(weight_.count, [&](int64_t b) { laser::judge_exact(SerialTeam{}, step, b); });
}

template <typename T>
void LinalgAten<T>::fetch(const void* from, void* host, size_t bytes) {
  std::memcpy(host, from, bytes);
}

template <typename T>
void LinalgAten<T>::send(const void* host, void* to, size_t bytes) {
  std::memcpy(to, host, bytes);
}

template class LinalgAten<float>;
template class LinalgAten<double>;

}  // namespace laser
