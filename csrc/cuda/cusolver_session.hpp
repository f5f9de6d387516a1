// What eigh_cusolver.cpp and svd_cusolver.cpp share: cuSOLVER's handles, workspace, checks and matrix layout.
#pragma once
#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/context.hpp"
#include "cuda/dense_solvers.hpp"
#include "cuda/descend.hpp"

namespace laser {

struct CusolverSolver::Session {
  void *handle = nullptr, *params = nullptr, *jacobi = nullptr;
};

template <typename T>
constexpr int kSolverType = std::is_same_v<T, double> ? CUDA_R_64F : CUDA_R_32F;

inline std::string sizes(int64_t rows, int64_t cols) { return std::to_string(rows) + "x" + std::to_string(cols); }

inline std::string named(int status) {
  return std::string(cusolver_status_name(status)) + " (" + std::to_string(status) + ")";
}

// Statuses by which cuSOLVER refuses a problem, NaN in it included; another routine, or fewer matrices, may do.
inline bool refused(int status) {
  const bool so = status == CUSOLVER_STATUS_INVALID_VALUE || status == CUSOLVER_STATUS_EXECUTION_FAILED ||
                  status == CUSOLVER_STATUS_INTERNAL_ERROR || status == CUSOLVER_STATUS_NOT_SUPPORTED;
  if (so) {
    cudaGetLastError();  // a launch of cuSOLVER's that failed; our next one would report it
  }
  return so;
}

inline void check_cusolver(int status, const char* step, const char* function, int64_t count, int64_t rows,
                           int64_t cols) {
  if (status == CUSOLVER_STATUS_SUCCESS) {
    return;
  }
  const std::string text = std::string("[laser_kernels] ") + step + ": " + function + ": " + named(status) + " on " +
                           std::to_string(count) + " matrices of " + sizes(rows, cols);
  if (status == CUSOLVER_STATUS_ALLOC_FAILED) {
    throw OutOfMemory(text);
  }
  throw std::runtime_error(text);
}

// Packed column-major matrices.
template <typename T>
Block<T> column_major(T* data, int64_t count, int64_t rows, int64_t cols) {
  return Block<T>::dense(data, count, cols, rows).transposed();
}

template <typename T>
Block<T> columns_reversed(Block<T> x) {
  return {x.data + (x.cols - 1) * x.col_stride, x.count, x.rows, x.cols, x.stride, x.row_stride, -x.col_stride};
}

// SolverWorkspace for one routine and one shape at a time.
class SolverWorkspace {
 public:
  explicit SolverWorkspace(const CusolverSolver::Allocate& allocate) : allocate_(allocate) {}
  void reserve(size_t device_bytes, size_t host_bytes) {
    if (!device_ || device_bytes > device_size_) {
      device_.reset();
      device_ = allocate_(std::max<size_t>(device_bytes, 1));
      device_size_ = device_bytes;
    }
    if (host_bytes > host_.size()) {
      host_.resize(host_bytes);
    }
  }
  void* device() const { return device_.get(); }
  void* host() { return host_.empty() ? nullptr : host_.data(); }

 private:
  const CusolverSolver::Allocate& allocate_;
  std::shared_ptr<void> device_;
  size_t device_size_ = 0;
  std::vector<char> host_;
};

template <typename T>
class SolverScratch {
 public:
  SolverScratch(const CusolverSolver::Allocate& allocate, int64_t n) : memory_(allocate(size_t(n) * sizeof(T))) {}
  T* get() const { return static_cast<T*>(memory_.get()); }

 private:
  std::shared_ptr<void> memory_;
};

}  // namespace laser
