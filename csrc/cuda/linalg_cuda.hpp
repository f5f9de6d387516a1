// The driver's interface (core/linalg.hpp) on an NVIDIA GPU: products by cuBLAS, dense eigenproblems too large for a
// block's shared memory by the context's solver, the rest by our kernels. Everything is enqueued on one stream; only
// fetch, send, diagonal and the dense solvers wait for it.
#pragma once
#include <memory>
#include <vector>

#include "core/linalg.hpp"
#include "cuda/context.hpp"
#include "cuda/products.hpp"
#include "cuda/selection.hpp"
#include "cuda/slices.hpp"

namespace laser {

// The weights in the forms that products need: in T, or as a sum of `count` slices; where that is 0, products in full
// precision take `weight`, and the first slice, if there is one, is A rounded to bfloat16.
template <typename T>
struct Operand {
  Block<const T> weight;
  Slices slices;
  int count;
};

// Slices that weights of a type are given in, for work in float32; 0: as they are.
int weight_slices(Dtype dtype, int64_t side);

template <typename T>
class LinalgCuda final : public Linalg<T> {
 public:
  LinalgCuda(const CudaContext& context, int64_t count, const Operand<T>& operand = {});

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
  void recur(Block<const T> before, Block<const T> now, Block<T> next, double* sums) override;
  void small_eigh(Block<const T> h, Block<T> w, double* theta) override;
  void small_svd(Block<const T> s, Block<T> u, double* sigma, Block<T> vt) override;
  bool diagonal(Block<const T> m, Block<T> u, double* sigma) override;
  void judge(const RitzStep& step) override;
  void judge_exact(const ExactStep& step) override;
  void fetch(const void* from, void* host, size_t bytes) override;
  void send(const void* host, void* to, size_t bytes) override;

  const Batch& batch() const { return batch_; }
  // Matrices that small_svd had no answer for.
  const std::vector<int64_t>& unsolved() const { return unsolved_; }

 private:
  // Scratch that grows and is kept.
  template <typename E>
  static E* room(const CudaContext& context, DeviceArray<E>& scratch, int64_t n);
  // c = a b, a the weight or its transpose.
  void multiply_weight(const Operand<T>& a, Block<const T> b, Block<T> c, Precision precision);
  // c = a b where a is `count` slices and b, much narrower, is cut into `cut`; those of lesser order are left out.
  void multiply_sliced(const Slices& a, int count, Block<const T> b, Block<T> c, int cut);
  // x's slices, dense in x's orientation, at data.
  Slices sliced(Block<const T> x, int slices, BFloat16* data);
  // c = alpha a b + beta c with both cut into `slices` of bfloat16; float only.
  void multiply_slices(Block<const T> a, Block<const T> b, Block<T> c, int slices, T alpha, T beta);
  // c = the sum of alpha a_i b_j + beta c, i and j < count, i + j < orders.
  void add_products(const Slices& a, const Slices& b, int count, int orders, Block<T> c, T alpha, T beta);
  void multiply_full(Block<const T> a, Block<const T> b, Block<T> c, T alpha, T beta);
  // w = L^-1, s = L L^T, by halves; s is overwritten. side: scratch, (n/2, n/2); work: for the smallest blocks.
  void factor_halves(Block<T> s, Block<T> w, Block<T> side, Block<T> work);

  const CudaContext& context_;
  Operand<T> operand_;
  int64_t count_;
  Batch batch_;
  DeviceArray<int> index_;                        // (count) selection on the device
  DeviceArray<void*> addresses_;                  // (3 (count + 1))
  DeviceArray<double> deviation_;                 // (count) of the last CholeskyQR pass
  DeviceArray<int> shifted_, defect_, diagonal_;  // (count)
  DeviceArray<double> partials_;
  std::vector<int64_t> selected_, unsolved_;
  DeviceArray<BFloat16> slices_;
  DeviceArray<T> block_, values_, orders_;
};

// Bytes of scratch per matrix that an object takes beyond what the driver's own scratch counts. square: side of the
// matrix that blocks are multiplied by, 0: the weight.
template <typename T>
int64_t linalg_cuda_bytes(int64_t rows, int64_t block, int64_t square);
// And beyond that where it multiplies and factors square matrices.
template <typename T>
int64_t linalg_cuda_square_bytes(int64_t n);

}  // namespace laser
