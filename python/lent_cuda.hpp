// What torch lends to a CUDA op: its current stream, cuBLAS handle and caching allocator on the tensor's device.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <memory>

#include "cuda/context.hpp"

namespace laser {

// Makes the tensor's device current for as long as it lives; the context must not outlive it.
class __attribute__((visibility("hidden"))) LentCuda {
 public:
  explicit LentCuda(const torch::stable::Tensor& tensor);
  ~LentCuda();
  LentCuda(const LentCuda&) = delete;

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  std::unique_ptr<DenseSolver> solver_;

 public:
  CudaContext context;
};

}  // namespace laser
