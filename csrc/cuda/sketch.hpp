// The random block that the iteration starts from.
#pragma once
#include <cuda_runtime.h>

#include "core/block.hpp"

namespace laser {

// q(i, j) = the integer of philox.hpp for (seed, keys[b], i, j), the same bits as csrc/cpu/sketch.cpp; keys on the
// host, one per matrix of the batch: they travel with the launch, so that a CUDA graph may hold it.
template <typename T>
cudaError_t sketch(Block<T> q, uint64_t seed, const int64_t* keys, cudaStream_t stream);

}  // namespace laser
