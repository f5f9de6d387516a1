// Batched symmetric eigenproblems that fit the shared memory of one block.
#pragma once
#include <cuda_runtime.h>

#include "core/block.hpp"
#include "cuda/selection.hpp"

namespace laser {

// The largest l that `shared_bytes` of shared memory hold.
template <typename T>
int64_t jacobi_limit(size_t shared_bytes);

// h w = w diag(theta) for symmetric h (count, l, l), l <= jacobi_limit; w its eigenvectors in columns, theta (count, l)
// descending. Backward stable: errors of a few eps ||h||_F. A matrix with NaN gives NaN, and only itself.
template <typename T>
cudaError_t small_eigh(Block<const T> h, Block<T> w, double* theta, Selection sel, cudaStream_t stream);

}  // namespace laser
