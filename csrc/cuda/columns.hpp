// The steps between products: copies and roundings of blocks, the Chebyshev recurrence, column sums, and the factors in
// the caller's form. Blocks are whole batches; row-major ones are fast. Every launcher works on the selected matrices.
#pragma once
#include <cuda_runtime.h>

#include "core/block.hpp"
#include "core/certificate.hpp"
#include "core/dtype.hpp"
#include "cuda/selection.hpp"

namespace laser {

template <typename T>
cudaError_t copy(Block<const T> from, Block<T> to, Selection sel, cudaStream_t stream);

// Linalg::truncate.
template <typename T>
cudaError_t truncate(Block<T> x, const int64_t* ranks, Selection sel, cudaStream_t stream);

// The slices of from (slices.hpp), the k-th at to.data + k * part.
template <typename T>
cudaError_t slice(Block<const T> from, Block<BFloat16> to, int slices, int64_t part, Selection sel,
                  cudaStream_t stream);

// to = the sum of the `parts` blocks that lie side by side in from, the last ones first; of each, to.cols columns.
template <typename T>
cudaError_t add_columns(Block<const T> from, int parts, Block<T> to, Selection sel, cudaStream_t stream);

// g(i, j) = g(j, i) for i < j, square g.
template <typename T>
cudaError_t mirror(Block<T> g, Selection sel, cudaStream_t stream);

// Linalg::chebyshev.
template <typename T>
cudaError_t chebyshev(Block<const T> x, Block<const T> z, const Progress* progress, int factor, Block<T> out,
                      Selection sel, cudaStream_t stream);

// Doubles of scratch for the column sums of a block.
int64_t column_partials(int64_t rows, int64_t cols, int64_t count);

// out[b * cols + j] = ||x(:, j) - theta[b * cols + j] z(:, j)||^2.
template <typename T>
cudaError_t ritz_residuals(Block<const T> x, Block<const T> z, const double* theta, double* out, double* partial,
                           Selection sel, cudaStream_t stream);

// out[b * cols + j] = ||x(:, j)||^2.
template <typename T>
cudaError_t column_norms2(Block<const T> x, double* out, double* partial, Selection sel, cudaStream_t stream);

// out[b] = <x[b], y[b]>.
template <typename T>
cudaError_t dot(Block<const T> x, Block<const T> y, double* out, double* partial, Selection sel, cudaStream_t stream);

// Linalg::recur, in two launches; next may be neither of the others.
int64_t recurrence_partials(int64_t rows, int64_t count);
template <typename T>
cudaError_t recurrence(Block<const T> before, Block<const T> now, Block<T> next, double* sums, double* partial,
                       Selection sel, cudaStream_t stream);

// Linalg::diagonal, per matrix: diagonal[b], sigma, and the signs of u's columns.
template <typename T>
cudaError_t diagonal(Block<const T> m, Block<T> u, double* sigma, int* diagonal, Selection sel, cudaStream_t stream);

// sign[b * cols + j] = -1 where the entry of largest magnitude in column j of u is negative, else 1.
template <typename T>
cudaError_t column_signs(Block<const T> u, double* sign, Selection sel, cudaStream_t stream);

// to(i, j) = from(i, j) * scale[b * cols + j], rounded to To.
template <typename T, typename To>
cudaError_t scale_columns(Block<const T> from, const double* scale, Block<To> to, Selection sel, cudaStream_t stream);

// out[b * cols + j] = row(b, 0, j).
template <typename T>
cudaError_t widen_row(Block<const T> row, double* out, Selection sel, cudaStream_t stream);

}  // namespace laser
