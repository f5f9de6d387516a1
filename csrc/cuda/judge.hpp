// The certificate (core/certificate.hpp) on the device, one block per matrix.
#pragma once
#include <cuda_runtime.h>

#include "core/certificate.hpp"
#include "cuda/selection.hpp"

namespace laser {

// defect[b] = whether a basis is not orthonormal after its last pass of CholeskyQR, from what that pass met
// (orthonormalize.hpp): a shift, or a Gram matrix too far from I for one pass.
cudaError_t find_defects(const double* deviation, const int* shifted, int* defect, Selection sel, cudaStream_t stream);

cudaError_t judge(const RitzStep& step, Selection sel, cudaStream_t stream);
cudaError_t judge_exact(const ExactStep& step, Selection sel, cudaStream_t stream);

}  // namespace laser
