#include "cuda/columns.hpp"
#include "cuda/orthonormalize.cuh"
#include "cuda/orthonormalize.hpp"

namespace laser {

int64_t normalize_partials(int64_t n, int64_t l, int64_t count) { return column_partials(n, l, count) + count * l; }

template <typename T>
cudaError_t normalize_columns(Block<T> x, Selection sel, double* partial, cudaStream_t stream) {
  double* norm2 = partial + column_partials(x.rows, x.cols, x.count);
  const cudaError_t status = column_norms2<T>(x, norm2, partial, sel, stream);
  return status != cudaSuccess ? status : elementwise(sel, x.rows, x.cols, Normalize<T>{x, norm2}, stream);
}

template <typename T>
cudaError_t cholesky_inverse(Block<const T> s, Block<T> work, Block<T> inverse, double* deviation, int* shifted,
                             Selection sel, cudaStream_t stream) {
  constexpr int W = kPanel<T>;
  const int64_t l = s.cols, panels = (l + W - 1) / W;
  const dim3 threads(kPanelThreads);
  cudaError_t status = launch(start_kernel<T>, dim3(sel.count), threads, 0, stream, s, work, deviation, shifted, sel);
  for (int64_t p = 0; p < panels && status == cudaSuccess; ++p) {
    const int64_t j0 = p * W, below = panels - 1 - p;
    status = launch(panel_kernel<T>, dim3(sel.count), threads, 0, stream, work, inverse, j0, deviation, shifted, sel);
    if (below > 0 && status == cudaSuccess) {
      status = launch(column_kernel<T>, dim3(unsigned(sel.count * below)), threads, 0, stream, work, inverse, j0, below,
                      deviation, sel);
    }
    if (below > 0 && status == cudaSuccess) {
      status = launch(trailing_kernel<T>, dim3(unsigned(sel.count * below * below)), threads, 0, stream, work, j0,
                      below, deviation, sel);
    }
  }
  return status != cudaSuccess ? status
                               : launch(inverse_kernel<T>, dim3(unsigned(sel.count * panels)), threads, 0, stream, work,
                                        inverse, panels, deviation, sel);
}

template cudaError_t normalize_columns(Block<float>, Selection, double*, cudaStream_t);
template cudaError_t normalize_columns(Block<double>, Selection, double*, cudaStream_t);
template cudaError_t cholesky_inverse(Block<const float>, Block<float>, Block<float>, double*, int*, Selection,
                                      cudaStream_t);
template cudaError_t cholesky_inverse(Block<const double>, Block<double>, Block<double>, double*, int*, Selection,
                                      cudaStream_t);

}  // namespace laser
