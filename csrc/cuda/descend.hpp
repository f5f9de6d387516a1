// How matrices enter and leave a solver whose matrices are column-major, packed, and sorted the other way round.
#pragma once
#include <cuda_runtime.h>

#include "core/block.hpp"
#include "cuda/selection.hpp"

namespace laser {

// to[s] = from[sel[s]]. Any strides, negative ones included; fast where each side has one of 1. No overlap.
template <typename T>
cudaError_t gather_matrices(Block<const T> from, Block<T> to, Selection sel, cudaStream_t stream);

// to[sel[s]] = from[s], likewise.
template <typename T>
cudaError_t scatter_matrices(Block<const T> from, Block<T> to, Selection sel, cudaStream_t stream);

// theta[sel[s] * n + j] = values[s * n + n - 1 - j].
template <typename T>
cudaError_t descending_values(const T* values, int64_t n, double* theta, Selection sel, cudaStream_t stream);

}  // namespace laser
