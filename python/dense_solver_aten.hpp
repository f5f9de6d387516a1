// DenseSolver by torch.linalg, for machines without cuSOLVER's functions: ATen through the dispatcher.
#pragma once
#include <cstdint>
#include <vector>

#include "cuda/dense_solvers.hpp"

namespace laser {

class DenseSolverAten final : public DenseSolver {
 public:
  DenseSolverAten(int device, cudaStream_t stream) : device_(device), stream_(stream) {}

  void eigh(Block<const float> h, Block<float> w, double* theta, Selection sel) override;
  void eigh(Block<const double> h, Block<double> w, double* theta, Selection sel) override;
  void svd(Block<const float> a, Block<float> u, float* sigma, Block<float> vt, Selection sel, int* status) override;
  void svd(Block<const double> a, Block<double> u, double* sigma, Block<double> vt, Selection sel,
           int* status) override;

 private:
  std::vector<int64_t> selected(Selection sel) const;

  int device_;
  cudaStream_t stream_;
};

}  // namespace laser
