#include <climits>

#include "cuda/descend.cuh"
#include "cuda/descend.hpp"

namespace laser {
namespace {

template <typename T>
cudaError_t transfer(Block<const T> from, Selection source, Block<T> to, Selection target, cudaStream_t stream) {
  const int64_t down = (to.rows + kTile - 1) / kTile, across = (to.cols + kTile - 1) / kTile;
  const int64_t blocks = source.count * down * across;
  if (blocks == 0) {
    return cudaSuccess;
  }
  if (blocks > INT_MAX) {
    return cudaErrorInvalidValue;
  }
  return launch(transfer_kernel<T>, dim3(unsigned(blocks)), dim3(kTile * kTileWarps), 0, stream, from, source, to,
                target, unsigned(down * across), unsigned(across));
}

}  // namespace

template <typename T>
cudaError_t gather_matrices(Block<const T> from, Block<T> to, Selection sel, cudaStream_t stream) {
  return transfer(from, sel, to, {nullptr, sel.count}, stream);
}

template <typename T>
cudaError_t scatter_matrices(Block<const T> from, Block<T> to, Selection sel, cudaStream_t stream) {
  return transfer(from, {nullptr, sel.count}, to, sel, stream);
}

template <typename T>
cudaError_t descending_values(const T* values, int64_t n, double* theta, Selection sel, cudaStream_t stream) {
  const int64_t blocks = (sel.count * n + 255) / 256;
  return blocks == 0
             ? cudaSuccess
             : launch(descending_values_kernel<T>, dim3(unsigned(blocks)), dim3(256), 0, stream, values, n, theta, sel);
}

#define LASER_INSTANTIATE(T)                                                                \
  template cudaError_t gather_matrices(Block<const T>, Block<T>, Selection, cudaStream_t);  \
  template cudaError_t scatter_matrices(Block<const T>, Block<T>, Selection, cudaStream_t); \
  template cudaError_t descending_values(const T*, int64_t, double*, Selection, cudaStream_t)

LASER_INSTANTIATE(float);
LASER_INSTANTIATE(double);

}  // namespace laser
