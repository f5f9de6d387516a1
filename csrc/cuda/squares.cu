#include "cuda/squares.cuh"
#include "cuda/squares.hpp"

namespace laser {

template <typename T>
cudaError_t affine(Block<const T> x, double scale, double shift, Block<T> out, Selection sel, cudaStream_t stream) {
  return elementwise(sel, x.rows, x.cols, Affine<T>{x, T(scale), T(shift), out}, stream);
}

template <typename T>
cudaError_t add(double alpha, Block<const T> x, double beta, Block<T> y, Selection sel, cudaStream_t stream) {
  return elementwise(sel, x.rows, x.cols, Add<T>{T(alpha), x, T(beta), y}, stream);
}

template <typename T>
cudaError_t add_symmetric(double alpha, Block<const T> y, double beta, Block<T> x, Selection sel, cudaStream_t stream) {
  const int64_t tiles = (x.rows + 31) / 32;
  return launch(add_symmetric_kernel<T>, dim3(unsigned(sel.count * tiles * tiles)), dim3(256), 0, stream, T(alpha), y,
                T(beta), x, tiles, sel);
}

template <typename T>
cudaError_t trace(Block<const T> x, double* out, Selection sel, cudaStream_t stream) {
  return launch(trace_kernel<T>, dim3(sel.count), dim3(256), 0, stream, x, out, sel);
}

template <typename T>
cudaError_t equilibrate(Block<const T> s, double* root, Block<T> unit, int* shifted, Selection sel,
                        cudaStream_t stream) {
  const cudaError_t status = elementwise(sel, 1, s.cols, Roots<T>{s, root, shifted}, stream);
  return status != cudaSuccess ? status : elementwise(sel, s.rows, s.cols, Equilibrate<T>{s, root, unit}, stream);
}

template <typename T>
cudaError_t zero(Block<T> x, Selection sel, cudaStream_t stream) {
  return elementwise(sel, x.rows, x.cols, Zero<T>{x}, stream);
}

template <typename T>
cudaError_t find_failures(Block<const T> w, const int* shifted, double* failed, Selection sel, cudaStream_t stream) {
  return launch(find_failures_kernel<T>, dim3(sel.count), dim3(256), 0, stream, w, shifted, failed, sel);
}

template <typename T>
cudaError_t zero_failed(const double* failed, Block<T> w, Selection sel, cudaStream_t stream) {
  return elementwise(sel, w.rows, w.cols, ZeroFailed<T>{failed, w}, stream);
}

#define LASER_INSTANTIATE(T)                                                                             \
  template cudaError_t affine(Block<const T>, double, double, Block<T>, Selection, cudaStream_t);        \
  template cudaError_t add(double, Block<const T>, double, Block<T>, Selection, cudaStream_t);           \
  template cudaError_t add_symmetric(double, Block<const T>, double, Block<T>, Selection, cudaStream_t); \
  template cudaError_t trace(Block<const T>, double*, Selection, cudaStream_t);                          \
  template cudaError_t equilibrate(Block<const T>, double*, Block<T>, int*, Selection, cudaStream_t);    \
  template cudaError_t zero(Block<T>, Selection, cudaStream_t);                                          \
  template cudaError_t find_failures(Block<const T>, const int*, double*, Selection, cudaStream_t);      \
  template cudaError_t zero_failed(const double*, Block<T>, Selection, cudaStream_t)

LASER_INSTANTIATE(float);
LASER_INSTANTIATE(double);

}  // namespace laser
