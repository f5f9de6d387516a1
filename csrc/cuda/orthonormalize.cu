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

namespace {

// keep: the flags of before, and nothing for the matrices that have failed.
template <typename T>
cudaError_t tries(int count_of_tries, T least, bool keep, Block<const T> s, Block<T> work, Block<T> inverse,
                  double* deviation, int* shifted, Selection sel, cudaStream_t stream) {
  const unsigned panels = unsigned((s.cols + kPanel<T> - 1) / kPanel<T>), count = unsigned(sel.count);
  if (count == 0 || panels == 0) {
    return cudaSuccess;
  }
  const dim3 threads(kPanelThreads);
  const unsigned beside = panels - 1;  // tiles below the diagonal of panel p, and left of it
  cudaError_t status = cudaSuccess;
  for (int attempt = 0; attempt < count_of_tries && status == cudaSuccess; ++attempt) {
    status = launch(start_kernel<T>, dim3(count * panels), threads, 0, stream, s, work, inverse, panels, attempt, least,
                    deviation, shifted, sel);
    if (attempt == 0 && status == cudaSuccess) {
      status =
          launch(conclude_kernel<T>, dim3(count), threads, 0, stream, s, inverse, least, keep, deviation, shifted, sel);
    }
    for (unsigned p = 0; p < panels && status == cudaSuccess; ++p) {
      const unsigned below = (panels * (panels + 1) - (p + 1) * (p + 2)) / 2;  // tiles of the rows below
      status = launch(panel_kernel<T>, dim3(count), threads, 0, stream, work, inverse, int64_t(p) * kPanel<T>, attempt,
                      deviation, shifted, sel);
      if (beside > 0 && status == cudaSuccess) {
        status = launch(column_kernel<T>, dim3(count * beside), threads, 0, stream, work, inverse, p, beside, attempt,
                        deviation, shifted, sel);
      }
      if (below > 0 && status == cudaSuccess) {
        status = launch(trailing_kernel<T>, dim3(count * below), threads, 0, stream, work, inverse, p, below, attempt,
                        deviation, shifted, sel);
      }
    }
  }
  return status;
}

}  // namespace

template <typename T>
cudaError_t cholesky_inverse(Block<const T> s, Block<T> work, Block<T> inverse, double* deviation, int* shifted,
                             Selection sel, cudaStream_t stream) {
  return tries(2, T(kDeadLength2), false, s, work, inverse, deviation, shifted, sel, stream);
}

template <typename T>
cudaError_t factor_inverse(Block<const T> s, Block<T> work, Block<T> inverse, double* deviation, int* shifted,
                           Selection sel, cudaStream_t stream) {
  return tries(1, T(0), true, s, work, inverse, deviation, shifted, sel, stream);
}

template cudaError_t normalize_columns(Block<float>, Selection, double*, cudaStream_t);
template cudaError_t normalize_columns(Block<double>, Selection, double*, cudaStream_t);
template cudaError_t cholesky_inverse(Block<const float>, Block<float>, Block<float>, double*, int*, Selection,
                                      cudaStream_t);
template cudaError_t cholesky_inverse(Block<const double>, Block<double>, Block<double>, double*, int*, Selection,
                                      cudaStream_t);
template cudaError_t factor_inverse(Block<const float>, Block<float>, Block<float>, double*, int*, Selection,
                                    cudaStream_t);
template cudaError_t factor_inverse(Block<const double>, Block<double>, Block<double>, double*, int*, Selection,
                                    cudaStream_t);

}  // namespace laser
