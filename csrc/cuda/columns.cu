#include <limits>

#include "cuda/columns.cuh"
#include "cuda/columns.hpp"

namespace laser {
namespace {

int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }

template <typename Term>
cudaError_t column_sums(const Term& term, int64_t rows, int64_t cols, double* partial, Selection sel,
                        cudaStream_t stream) {
  const int64_t strips = parts(cols, 32), chunks = parts(rows, kSumRows);
  return launch(column_sums_kernel<Term>, dim3(unsigned(sel.count * chunks * strips)), dim3(256), 0, stream, term, rows,
                cols, strips, chunks, partial, sel);
}

template <typename Term>
cudaError_t sums_per_column(const Term& term, int64_t rows, int64_t cols, double* out, double* partial, Selection sel,
                            cudaStream_t stream) {
  const cudaError_t status = column_sums(term, rows, cols, partial, sel, stream);
  return status != cudaSuccess ? status
                               : launch(add_chunks_kernel, dim3(unsigned(parts(sel.count * cols, 128))), dim3(128), 0,
                                        stream, partial, cols, parts(rows, kSumRows), out, sel);
}

}  // namespace

template <typename T>
cudaError_t copy(Block<const T> from, Block<T> to, Selection sel, cudaStream_t stream) {
  return elementwise(sel, to.rows, to.cols, Copy<T>{from, to}, stream);
}

template <typename T>
cudaError_t truncate(Block<T> x, const int64_t* ranks, Selection sel, cudaStream_t stream) {
  return elementwise(sel, x.rows, x.cols, Truncate<T>{x, ranks}, stream);
}

template <typename T>
cudaError_t slice(Block<const T> from, Block<BFloat16> to, int slices, int64_t part, Selection sel,
                  cudaStream_t stream) {
  return elementwise(sel, to.rows, to.cols, Slice<T>{from, to, slices, part}, stream);
}

template <typename T>
cudaError_t add_columns(Block<const T> from, int parts, Block<T> to, Selection sel, cudaStream_t stream) {
  return elementwise(sel, to.rows, to.cols, AddColumns<T>{from, parts, from.cols / parts, to}, stream);
}

template <typename T>
cudaError_t mirror(Block<T> g, Selection sel, cudaStream_t stream) {
  const int64_t tiles = parts(g.rows, 32);
  return launch(mirror_kernel<T>, dim3(unsigned(sel.count * tiles * tiles)), dim3(256), 0, stream, g, tiles, sel);
}

template <typename T>
cudaError_t chebyshev(Block<const T> x, Block<const T> z, const Progress* progress, int factor, Block<T> out,
                      Selection sel, cudaStream_t stream) {
  return elementwise(sel, x.rows, x.cols, Chebyshev<T>{x, z, progress, factor, out}, stream);
}

int64_t column_partials(int64_t rows, int64_t cols, int64_t count) { return count * parts(rows, kSumRows) * cols; }

template <typename T>
cudaError_t ritz_residuals(Block<const T> x, Block<const T> z, const double* theta, double* out, double* partial,
                           Selection sel, cudaStream_t stream) {
  return sums_per_column(ResidualTerm<T>{x, z, theta}, x.rows, x.cols, out, partial, sel, stream);
}

template <typename T>
cudaError_t column_norms2(Block<const T> x, double* out, double* partial, Selection sel, cudaStream_t stream) {
  return sums_per_column(ProductTerm<T>{x, x}, x.rows, x.cols, out, partial, sel, stream);
}

template <typename T>
cudaError_t dot(Block<const T> x, Block<const T> y, double* out, double* partial, Selection sel, cudaStream_t stream) {
  const cudaError_t status = column_sums(ProductTerm<T>{x, y}, x.rows, x.cols, partial, sel, stream);
  return status != cudaSuccess ? status
                               : launch(add_all_kernel, dim3(sel.count), dim3(256), 0, stream, partial,
                                        parts(x.rows, kSumRows) * x.cols, out, sel);
}

int64_t recurrence_partials(int64_t rows, int64_t count) { return 2 * count * parts(rows, kRecurrenceRows); }

template <typename T>
cudaError_t recurrence(Block<const T> before, Block<const T> now, Block<T> next, double* sums, double* partial,
                       Selection sel, cudaStream_t stream) {
  const int64_t chunks = parts(now.rows, kRecurrenceRows);
  const cudaError_t status = launch(recurrence_kernel<T>, dim3(unsigned(sel.count * chunks)), dim3(256), 0, stream,
                                    before, now, next, chunks, partial, sel);
  return status != cudaSuccess ? status
                               : launch(add_recurrence_kernel, dim3(unsigned(2 * sel.count)), dim3(128), 0, stream,
                                        partial, chunks, now.count, sums, sel);
}

template <typename T>
cudaError_t diagonal(Block<const T> m, Block<T> u, double* sigma, int* diagonal, Selection sel, cudaStream_t stream) {
  return launch(diagonal_kernel<T>, dim3(sel.count), dim3(256), 0, stream, m, u,
                double(std::numeric_limits<T>::epsilon()), sigma, diagonal, sel);
}

template <typename T>
cudaError_t column_signs(Block<const T> u, double* sign, Selection sel, cudaStream_t stream) {
  const int64_t strips = parts(u.cols, 32);
  return launch(column_signs_kernel<T>, dim3(unsigned(sel.count * strips)), dim3(256), 0, stream, u, strips, sign, sel);
}

template <typename T, typename To>
cudaError_t scale_columns(Block<const T> from, const double* scale, Block<To> to, Selection sel, cudaStream_t stream) {
  return elementwise(sel, from.rows, from.cols, ScaleColumns<T, To>{from, scale, to}, stream);
}

template <typename T>
cudaError_t widen_row(Block<const T> row, double* out, Selection sel, cudaStream_t stream) {
  return elementwise(sel, 1, row.cols, WidenRow<T>{row, out}, stream);
}

#define LASER_INSTANTIATE(T)                                                                                      \
  template cudaError_t copy(Block<const T>, Block<T>, Selection, cudaStream_t);                                   \
  template cudaError_t truncate(Block<T>, const int64_t*, Selection, cudaStream_t);                               \
  template cudaError_t slice(Block<const T>, Block<BFloat16>, int, int64_t, Selection, cudaStream_t);             \
  template cudaError_t add_columns(Block<const T>, int, Block<T>, Selection, cudaStream_t);                       \
  template cudaError_t mirror(Block<T>, Selection, cudaStream_t);                                                 \
  template cudaError_t chebyshev(Block<const T>, Block<const T>, const Progress*, int, Block<T>, Selection,       \
                                 cudaStream_t);                                                                   \
  template cudaError_t ritz_residuals(Block<const T>, Block<const T>, const double*, double*, double*, Selection, \
                                      cudaStream_t);                                                              \
  template cudaError_t column_norms2(Block<const T>, double*, double*, Selection, cudaStream_t);                  \
  template cudaError_t dot(Block<const T>, Block<const T>, double*, double*, Selection, cudaStream_t);            \
  template cudaError_t recurrence(Block<const T>, Block<const T>, Block<T>, double*, double*, Selection,          \
                                  cudaStream_t);                                                                  \
  template cudaError_t diagonal(Block<const T>, Block<T>, double*, int*, Selection, cudaStream_t);                \
  template cudaError_t widen_row(Block<const T>, double*, Selection, cudaStream_t);                               \
  template cudaError_t column_signs(Block<const T>, double*, Selection, cudaStream_t);                            \
  template cudaError_t scale_columns(Block<const T>, const double*, Block<float>, Selection, cudaStream_t);       \
  template cudaError_t scale_columns(Block<const T>, const double*, Block<double>, Selection, cudaStream_t)

LASER_INSTANTIATE(float);
LASER_INSTANTIATE(double);

}  // namespace laser
