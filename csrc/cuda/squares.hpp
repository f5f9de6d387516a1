// The steps between products of square matrices, and sums of blocks (Linalg::affine to trace). Blocks are whole
// batches, row-major; every launcher works on the selected matrices.
#pragma once
#include <cuda_runtime.h>

#include "core/block.hpp"
#include "cuda/selection.hpp"

namespace laser {

// out = scale x + shift I.
template <typename T>
cudaError_t affine(Block<const T> x, double scale, double shift, Block<T> out, Selection sel, cudaStream_t stream);

// y <- alpha x + beta y.
template <typename T>
cudaError_t add(double alpha, Block<const T> x, double beta, Block<T> y, Selection sel, cudaStream_t stream);

// x <- alpha (y + y^T) + beta x.
template <typename T>
cudaError_t add_symmetric(double alpha, Block<const T> y, double beta, Block<T> x, Selection sel, cudaStream_t stream);

template <typename T>
cudaError_t trace(Block<const T> x, double* out, Selection sel, cudaStream_t stream);

// unit(i, j) = s(i, j) root[i] root[j], root[i] = 1 / sqrt(s(i, i)), (count, n). shifted[b] = 1 where a diagonal
// entry is not positive.
template <typename T>
cudaError_t equilibrate(Block<const T> s, double* root, Block<T> unit, int* shifted, Selection sel,
                        cudaStream_t stream);

template <typename T>
cudaError_t zero(Block<T> x, Selection sel, cudaStream_t stream);

// failed[b] = 1 where shifted[b], or where w is not the inverse of a factor: its diagonal is not positive, or no
// number.
template <typename T>
cudaError_t find_failures(Block<const T> w, const int* shifted, double* failed, Selection sel, cudaStream_t stream);

// w[b] <- 0 where failed[b] is not 0.
template <typename T>
cudaError_t zero_failed(const double* failed, Block<T> w, Selection sel, cudaStream_t stream);

}  // namespace laser
