// Finite check, ||A||_F^2 and the power-of-two scale of every weight, in one pass; and the weights as the driver works
// on them.
#pragma once
#include <cuda_runtime.h>

#include "core/block.hpp"
#include "core/weight.hpp"

namespace laser {

// What is known of one weight.
struct Prepared {
  double norm2;  // ||A||_F^2 of A times 2^-exponent
  double top;    // max |a| as it is; Inf or NaN if there is one
  int exponent;  // scale_exponent(top)
};

// Doubles of scratch.
int64_t prepare_partials(int64_t rows, int64_t count);

// out[b], device memory, for all matrices of the batch; safe: as for scale_exponent. Reads A once (float64 weights of
// extreme size twice).
cudaError_t prepare(const Weight& weight, int safe, Prepared* out, double* partial, cudaStream_t stream);

// out (count, rows, cols) = A[first + b] * 2^-exponent.
template <typename T>
cudaError_t load(const Weight& weight, int64_t first, const Prepared* prepared, Block<T> out, cudaStream_t stream);

// The same in float32, cut into `slices` (slices.hpp), the k-th at out.data + k * part.
cudaError_t load_slices(const Weight& weight, int64_t first, const Prepared* prepared, Block<BFloat16> out, int slices,
                        int64_t part, cudaStream_t stream);

}  // namespace laser
