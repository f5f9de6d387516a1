// A_r = left right^T in the weight's dtype, with its residual, from one pass over A.
#pragma once
#include <cuda_runtime.h>

#include "core/block.hpp"
#include "core/weight.hpp"
#include "cuda/selection.hpp"

namespace laser {

// Bytes of scratch, T the type of the factors.
template <typename T>
int64_t reconstruct_scratch(const Weight& weight, int64_t rank);

// out[b] = left[b] right[b]^T 2^exponent[b], rounded once to the dtype of weight and out, and residual2[2 b], [2 b + 1]
// = ||A - A_r||_F^2 before and after that rounding, in units of 4^exponent[b]. left (count, rows, r), right (count,
// cols, r) dense; out may be the weight itself. exponent null: 0. float factors are multiplied on tensor cores, in
// bfloat16 slices: to 2^-16 relative for 16-bit weights, to 2^-23 for float32 ones; double ones in double.
template <typename T>
cudaError_t reconstruct(Block<const T> left, Block<const T> right, const int* exponent, const Weight& weight,
                        const Weight& out, Selection sel, double* residual2, void* scratch, cudaStream_t stream);

}  // namespace laser
