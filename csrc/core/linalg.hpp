// What the driver asks of a device. Two implementations: python/linalg_aten.cpp (CPU, ATen through the dispatcher) and
// csrc/cuda/linalg_cuda.cpp (cuBLAS and our kernels). Blocks and the arrays of RitzStep and ExactStep lie in the
// implementation's memory; only `read`, `diagonal` and dense solvers may wait for a device.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/block.hpp"
#include "core/certificate.hpp"
#include "core/dtype.hpp"

namespace laser {

enum class Precision {
  kFull,  // as good as products in T
  kHalf,  // operands may be rounded to bfloat16; sums are float32
  kPair,  // operands may be rounded to the sum of two bfloat16 numbers: 16 significant bits
};

template <typename T>
class Linalg {
 public:
  virtual ~Linalg() = default;

  // The calls that follow are about these matrices of the batch, ascending; a new object is about all of them.
  virtual void select(const std::vector<int64_t>& matrices) = 0;

  // --- products with the weights A (m, n), m >= n, that the object was made for; kFull or kHalf
  virtual void forward(Block<const T> q, Block<T> y, Precision precision) = 0;   // y = A q
  virtual void backward(Block<const T> y, Block<T> x, Precision precision) = 0;  // x = A^T y
  virtual void weight_gram(Block<T> g) = 0;                                      // g = A^T A, exactly symmetric

  // --- products of blocks
  virtual void copy(Block<const T> from, Block<T> to) = 0;
  virtual void multiply(Block<const T> a, Block<const T> b, Block<T> c) = 0;  // c = a b, for any strides: kFull
  virtual void gram(Block<const T> a, Block<T> g) = 0;                        // g = a^T a, exactly symmetric
  virtual void round(Block<const T> from, Block<BFloat16> to) = 0;
  virtual void multiply_half(Block<const BFloat16> a, Block<const T> b, Block<T> c) = 0;  // Precision::kHalf
  // c = a b with both operands rounded; double blocks are multiplied in full. A CPU gains nothing by rounding, and does
  // it only to show what a GPU would compute.
  virtual void multiply_rounded(Block<const T> a, Block<const T> b, Block<T> c, Precision precision) = 0;

  // --- square matrices, and sums of blocks
  // out[b] = scale[b] x[b] + shift[b] I; scale and shift on the host. out may be x.
  virtual void affine(Block<const T> x, const double* scale, const double* shift, Block<T> out) = 0;
  virtual void add(double alpha, Block<const T> x, double beta, Block<T> y) = 0;  // y <- alpha x + beta y
  // x <- alpha (y + y^T) + beta x, exactly symmetric where x was.
  virtual void add_symmetric(double alpha, Block<const T> y, double beta, Block<T> x) = 0;
  // s = L L^T, w = L^-1, lower triangular with zeros above. failed[b] = 0 where every pivot was well above rounding in
  // s, whose diagonal should be about 1 or larger; else w[b] = 0.
  virtual void inverse_factor(Block<const T> s, Block<T> w, double* failed) = 0;
  // x(:, j) <- 0 where j >= ranks[b].
  virtual void truncate(Block<T> x, const int64_t* ranks) = 0;
  virtual void dot(Block<const T> x, Block<const T> y, double* out) = 0;  // out[b] = <x[b], y[b]>, in float64
  virtual void trace(Block<const T> x, double* out) = 0;
  // A step of Chebyshev's recurrence, `next` holding the matrix times `now`, and two of its moments:
  // next <- 2 next - before, sums[b] = <now, now>, sums[count + b] = <now, next>.
  virtual void recur(Block<const T> before, Block<const T> now, Block<T> next, double* sums) {
    add(-1, before, 2, next);
    dot(now, now, sums);
    dot(now, next, sums + now.count);
  }

  // --- columns
  // q(i, j) = the integer of philox.hpp for (seed, keys[b], i, j); keys on the host, one per matrix of the batch.
  virtual void sketch(Block<T> q, uint64_t seed, const int64_t* keys) = 0;
  // x (count, n, l) <- an orthonormal basis of its columns, n >= l; columns that depend on the others are replaced by
  // arbitrary orthonormal ones. gram, factor: scratch (count, l, l). passes: of CholeskyQR. One gives a basis that is
  // only good enough to be multiplied on; with more, an implementation may stop as soon as nothing is left to do, and
  // one that cannot look reports through Progress::broken where they did not suffice.
  virtual void orthonormalize(Block<T> x, Block<T> gram, Block<T> factor, int passes) = 0;
  // One step of the three-term recurrence on [0, cut]: out = factor ((2 / cut) x - z) - out, factor 1 or 2; factor 1
  // ignores what `out` held. 2 / cut = progress[b].slope; 0 asks for the plain power: out = x.
  virtual void chebyshev(Block<const T> x, Block<const T> z, const Progress* progress, int factor, Block<T> out) = 0;
  // out[b, j] = ||x(:, j) - theta[b, j] z(:, j)||^2.
  virtual void ritz_residuals(Block<const T> x, Block<const T> z, const double* theta, double* out) = 0;

  // --- small dense problems
  // Symmetric eigenproblem, values descending: h w = w diag(theta), theta (count, l).
  virtual void small_eigh(Block<const T> h, Block<T> w, double* theta) = 0;
  // SVD of small square matrices: s = u diag(sigma) vt; sigma (count, l) descending.
  virtual void small_svd(Block<const T> s, Block<T> u, double* sigma, Block<T> vt) = 0;
  // Whether every m (count, l, l) is diagonal to rounding. sigma[b, j] = |m_jj|, made non-increasing; columns of u that
  // belong to negative m_jj change sign.
  virtual bool diagonal(Block<const T> m, Block<T> u, double* sigma) = 0;

  // --- certificates (certificate.hpp)
  virtual void judge(const RitzStep& step) = 0;
  virtual void judge_exact(const ExactStep& step) = 0;

  // --- between the implementation's memory and the host's
  virtual void fetch(const void* from, void* host, size_t bytes) = 0;
  virtual void send(const void* host, void* to, size_t bytes) = 0;
  // As many as `host` has room for.
  template <typename E>
  void read(const E* from, std::vector<E>& host) {
    fetch(from, host.data(), host.size() * sizeof(E));
  }
};

}  // namespace laser
