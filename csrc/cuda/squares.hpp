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

// unit(i, j) = s(i, j) / sqrt(s(i, i) s(j, j)), and lower <- 0 above the diagonal. failed[b] = 0; shifted[b] = 1 where
// a diagonal entry is not positive.
template <typename T>
cudaError_t equilibrate(Block<const T> s, Block<T> unit, Block<T> lower, int* shifted, double* failed, Selection sel,
                        cudaStream_t stream);

// w(i, j) /= sqrt(s(j, j)): with w = L^-1 of equilibrate's unit, then the one of s. failed[b] = 1 where shifted[b], or
// where w is not the inverse of a factor: its diagonal is not positive, or not a number.
template <typename T>
cudaError_t restore(Block<const T> s, Block<T> w, const int* shifted, double* failed, Selection sel,
                    cudaStream_t stream);

}  // namespace laser
