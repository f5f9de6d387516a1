// Dense eigen- and singular value problems of any size. csrc/cuda asks through DenseSolver; CusolverSolver answers
// where cuSOLVER is to be had, and the caller lends another implementation where it is not.
#pragma once
#include <cuda_runtime.h>

#include <climits>
#include <cstdint>
#include <functional>
#include <memory>

#include "core/block.hpp"
#include "cuda/selection.hpp"
#include "cuda/vendor.hpp"

namespace laser {

// Blocks lie in device memory and do not overlap. Only selected matrices are touched. Both may wait for the stream.
// CusolverSolver tells which matrices it could not solve, as said below; torch.linalg in its place throws.
class DenseSolver {
 public:
  virtual ~DenseSolver() = default;

  // h w = w diag(theta): h (count, l, l) symmetric, w its eigenvectors in columns, theta (count, l) descending. A
  // matrix that cannot be solved has NaN in theta and zeros in w.
  virtual void eigh(Block<const float> h, Block<float> w, double* theta, Selection sel) = 0;
  virtual void eigh(Block<const double> h, Block<double> w, double* theta, Selection sel) = 0;

  // a = u diag(sigma) vt: a (count, m, n), m >= n, u (count, m, n), sigma (count, n) descending, vt (count, n, n).
  // status[b], on the host, becomes 0 for a selected matrix that is solved, else another number.
  virtual void svd(Block<const float> a, Block<float> u, float* sigma, Block<float> vt, Selection sel, int* status) = 0;
  virtual void svd(Block<const double> a, Block<double> u, double* sigma, Block<double> vt, Selection sel,
                   int* status) = 0;
};

// What goes into one call of cusolverDnXsyevBatched, which counts in int (JAX has met both limits).
struct BatchLimits {
  int64_t bytes = INT_MAX;
  int64_t matrices = 32 << 10;
};

// By cuSOLVER.
// eigh: as many matrices at a time as `limits` allow, then one wait for all; a matrix that failed is redone alone.
//       Takes as much scratch as one such batch, and cuSOLVER's own.
// svd:  one matrix at a time, one wait for each: polar decomposition (gesvdp), where that fails or has perturbed the
//       values QR (gesvd), where that fails Jacobi (gesvdj). Scratch: (2 m + n) n elements and cuSOLVER's own.
// The calling thread's device is `device`, the allocator's memory belongs to `stream` and may be dropped while the
// stream still uses it. One thread at a time uses an object; cuSOLVER's handles are kept for the next one.
class CusolverSolver final : public DenseSolver {
 public:
  using Allocate = std::function<std::shared_ptr<void>(size_t bytes)>;

  CusolverSolver(const Cusolver& table, int device, cudaStream_t stream, Allocate allocate, BatchLimits limits = {});
  ~CusolverSolver() override;
  CusolverSolver(const CusolverSolver&) = delete;

  void eigh(Block<const float> h, Block<float> w, double* theta, Selection sel) override;
  void eigh(Block<const double> h, Block<double> w, double* theta, Selection sel) override;
  void svd(Block<const float> a, Block<float> u, float* sigma, Block<float> vt, Selection sel, int* status) override;
  void svd(Block<const double> a, Block<double> u, double* sigma, Block<double> vt, Selection sel,
           int* status) override;

 private:
  struct Session;
  struct Pool;
  template <typename T>
  class Eigh;
  template <typename T>
  class Svd;
  const Session& session();

  const Cusolver& table_;
  int device_;
  cudaStream_t stream_;
  Allocate allocate_;
  BatchLimits limits_;
  std::unique_ptr<Session> session_;  // borrowed at the first call that needs one
};

}  // namespace laser
