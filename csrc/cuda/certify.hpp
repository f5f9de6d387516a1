// From what the driver found out to the rows of the certificate tensor and to singular values in the caller's scale.
#pragma once
#include <cuda_runtime.h>

#include "core/request.hpp"
#include "cuda/prepare.hpp"
#include "cuda/selection.hpp"

namespace laser {

// norm2[b], exponent[b] of matrices 0 .. count - 1, side by side.
cudaError_t unpack(const Prepared* prepared, int64_t count, double* norm2, int* exponent, cudaStream_t stream);

// out (count, 2) = ||A||_F and max |a|, in the caller's scale.
cudaError_t norms(const Prepared* prepared, int64_t count, double* out, cudaStream_t stream);

// certificates[b] of matrices 0 .. count - 1; kNonFinite where the weight is. progress null: only that is judged.
// locked: as in certificate_of.
cudaError_t certify(const Progress* progress, const Prepared* prepared, int64_t count, int64_t rows, int64_t cols,
                    double eps, double tol, int64_t locked, Certificate* certificates, cudaStream_t stream);

// Enters residual2 (count, 2) of the selected matrices, as reconstruct measured it.
cudaError_t measured(const double* residual2, const int* exponent, double noise, double slack, bool in_place,
                     Certificate* certificates, Selection sel, cudaStream_t stream);

// out[b * pitch + j] = sigma[b * rank + j] * 2^exponent[b] of the selected matrices.
template <typename F>
cudaError_t singular_values(const double* sigma, int64_t rank, const int* exponent, F* out, int64_t pitch,
                            Selection sel, cudaStream_t stream);

// x <- sqrt(x), n values.
cudaError_t square_roots(double* x, int64_t n, cudaStream_t stream);

}  // namespace laser
