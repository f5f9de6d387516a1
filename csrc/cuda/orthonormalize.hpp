// The steps of CholeskyQR that are not products. A pass over a block X (n, l): S = X^T X, L L^T = S, X <- X L^-T.
// Nothing waits for the host: what a pass met is left in device memory.
#pragma once
#include <cuda_runtime.h>

#include "core/block.hpp"
#include "cuda/selection.hpp"

namespace laser {

// Doubles of scratch.
int64_t normalize_partials(int64_t n, int64_t l, int64_t count);

// x(:, j) /= ||x(:, j)||, sums in float64. A zero column becomes a random one of about unit length (philox.hpp, keyed
// by the matrix's number), so that a block of dependent columns gets its rank back. x (count, n, l) row-major.
template <typename T>
cudaError_t normalize_columns(Block<T> x, Selection sel, double* partial, cudaStream_t stream);

// For each selected s = X^T X (count, l, l): deviation[b] = ||s - I||_F, NaN where s has one; inverse <- L^-1, lower
// triangular, dense; I where nothing is left to do. shifted[b] != 0: more passes are needed. Flags: 1, a pivot was at
// rounding level and s was factored with a shift; 2, a pivot was so even then; 4, s had columns that are only rounding.
// Such columns become zero by X L^-T, for normalize_columns to refill. work: scratch like s.
template <typename T>
cudaError_t cholesky_inverse(Block<const T> s, Block<T> work, Block<T> inverse, double* deviation, int* shifted,
                             Selection sel, cudaStream_t stream);

// The same where s is a diagonal block of a larger matrix of unit diagonal, or what elimination left of one: no shift;
// shifted[b] is set and never cleared, and where it is set inverse[b] is undefined.
template <typename T>
cudaError_t factor_inverse(Block<const T> s, Block<T> work, Block<T> inverse, double* deviation, int* shifted,
                           Selection sel, cudaStream_t stream);

}  // namespace laser
