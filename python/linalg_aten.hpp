// The driver's interface (core/linalg.hpp) on the CPU: products and LAPACK by ATen, the rest by
// csrc/cpu.
#pragma once
#include <memory>
#include <vector>

#include "core/linalg.hpp"

namespace laser {

template <typename T>
class LinalgAten final : public Linalg<T> {
 public:
  // weight: A; rounded: A in bfloat16, needed for products of Precision::kHalf.
  explicit LinalgAten(Block<const T> weight = {}, Block<const BFloat16> rounded = {})
      : weight_(weight), rounded_(rounded) {}

  void select(const std::vector<int64_t>& matrices) override;
  void forward(Block<const T> q, Block<T> y, Precision precision) override;
  void backward(Block<const T> y, Block<T> x, Precision precision) override;
  void weight_gram(Block<T> g) override;
  void copy(Block<const T> from, Block<T> to) override;
  void multiply(Block<const T> a, Block<const T> b, Block<T> c) override;
  void gram(Block<const T> a, Block<T> g) override;
  void round(Block<const T> from, Block<BFloat16> to) override;
  void multiply_half(Block<const BFloat16> a, Block<const T> b, Block<T> c) override;
  void multiply_rounded(Block<const T> a, Block<const T> b, Block<T> c, Precision precision) override;
  void affine(Block<const T> x, const double* scale, const double* shift, Block<T> out) override;
  void add(double alpha, Block<const T> x, double beta, Block<T> y) override;
  void add_symmetric(double alpha, Block<const T> y, double beta, Block<T> x) override;
  void inverse_factor(Block<const T> s, Block<T> w, double* failed) override;
  void truncate(Block<T> x, const int64_t* ranks) override;
  void dot(Block<const T> x, Block<const T> y, double* out) override;
  void trace(Block<const T> x, double* out) override;
  void sketch(Block<T> q, uint64_t seed, const int64_t* keys) override;
  void orthonormalize(Block<T> x, Block<T> gram, Block<T> factor, int passes) override;
  void chebyshev(Block<const T> x, Block<const T> z, const Progress* progress, int factor, Block<T> out) override;
  void ritz_residuals(Block<const T> x, Block<const T> z, const double* theta, double* out) override;
  void small_eigh(Block<const T> h, Block<T> w, double* theta) override;
  void small_svd(Block<const T> s, Block<T> u, double* sigma, Block<T> vt) override;
  bool diagonal(Block<const T> m, Block<T> u, double* sigma) override;
  void judge(const RitzStep& step) override;
  void judge_exact(const ExactStep& step) override;
  void fetch(const void* from, void* host, size_t bytes) override;
  void send(const void* host, void* to, size_t bytes) override;

 private:
  template <typename F, typename... Blocks>
  void together(const F& f, Blocks... blocks) const;
  template <typename F, typename... Blocks>
  void one_by_one(int64_t count, const F& f, Blocks... blocks) const;

  Block<const T> weight_;
  Block<const BFloat16> rounded_;
  bool all_ = true;
  std::vector<int64_t> selected_;
};

}  // namespace laser
