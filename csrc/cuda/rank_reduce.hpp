// One call of low_rank or truncated_svd on the GPU: prepare, a route of the driver, and the result in the weight's own
// orientation and dtype.
#pragma once
#include "core/request.hpp"
#include "core/weight.hpp"
#include "cuda/context.hpp"

namespace laser {

// Fills one certificate per matrix, in device memory. Nothing is written for a matrix whose status is neither ok nor
// uncertified, nor for any when one of them is not finite. `dense` may be the weight itself.
//
// Matrices go in groups that fit the context's memory_limit, smaller ones where the device has less. With a tolerance,
// the host waits after prepare, after each Rayleigh-Ritz step, and before it writes; without one, where neither a dense
// solver nor factors are needed and all are of one rank, it never does, and a CUDA graph can hold the call (non-finite
// weights are then reported, but written too).
void rank_reduce_cuda(const CudaContext& context, const Weight& weight, const Request& request, const Weight* dense,
                      const Factors* factors, Certificate* certificates);

}  // namespace laser
