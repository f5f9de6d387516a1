// What the caller lends a CUDA call: a stream, a cuBLAS handle, memory and dense solvers. csrc/cuda owns nothing.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

#include "cuda/vendor.hpp"

#ifndef LASER_CUDA_ARCHITECTURES
#define LASER_CUDA_ARCHITECTURES "an unknown set of architectures"
#endif

namespace laser {

class DenseSolver;

// The device has no memory left for what was asked; with fewer matrices at a time there may be enough.
struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct CudaContext {
  cudaStream_t stream;
  const Cublas* cublas;
  void* cublas_handle;
  // Device memory for work on the stream, aligned to 256 bytes. Throws OutOfMemory.
  std::function<std::shared_ptr<void>(size_t)> allocate;
  DenseSolver* solver;
  size_t shared_limit;   // bytes of shared memory that a block may have
  int64_t memory_limit;  // bytes of scratch that one group of matrices may take
};

// n elements of device memory, given back at the end of the scope.
template <typename T>
class DeviceArray {
 public:
  DeviceArray() = default;
  DeviceArray(const CudaContext& context, int64_t n)
      : memory_(context.allocate(size_t(n > 0 ? n : 1) * sizeof(T))), size_(n) {}
  T* get() const { return static_cast<T*>(memory_.get()); }
  int64_t size() const { return size_; }

 private:
  std::shared_ptr<void> memory_;
  int64_t size_ = 0;
};

// Throws with the step's name, the error's name and the sizes unless `status` is success.
inline void check(cudaError_t status, const char* step, int64_t count, int64_t rows, int64_t cols) {
  if (status == cudaSuccess) {
    return;
  }
  cudaGetLastError();  // or the next launch reports it once more
  std::string text = std::string("[laser_kernels] ") + step + ": " + cudaGetErrorName(status) + " (" +
                     cudaGetErrorString(status) + ") on " + std::to_string(count) + " matrices of " +
                     std::to_string(rows) + "x" + std::to_string(cols);
  if (status == cudaErrorNoKernelImageForDevice) {
    text +=
        ": this build holds code for " LASER_CUDA_ARCHITECTURES "; build again with LASER_CUDA_ARCHS set for this GPU";
  }
  if (status == cudaErrorMemoryAllocation) {
    throw OutOfMemory(text);
  }
  throw std::runtime_error(text);
}

}  // namespace laser
