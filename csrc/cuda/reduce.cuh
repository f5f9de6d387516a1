// Sums and maxima over a warp and over a block; every thread of it gets the result, always added in the same order.
#pragma once
#include "cuda/portable.cuh"

namespace laser {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

struct Sum {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

template <typename T, typename Op>
__device__ __forceinline__ T warp_reduce(T value, Op op) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    value = op(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  return value;
}

// All threads of the block call it; blockDim.x is a multiple of 32, at most 1024. `scratch`: 32 values of T in shared
// memory, free to be reused as soon as the call returns.
template <typename T, typename Op>
__device__ __forceinline__ T block_reduce(T value, Op op, T* scratch) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  value = warp_reduce(value, op);
  if (lane == 0) {
    scratch[warp] = value;
  }
  __syncthreads();
  T total = scratch[0];
  for (int w = 1; w < int(blockDim.x) / kWarpSize; ++w) {
    total = op(total, scratch[w]);
  }
  __syncthreads();  // everybody has read: the next call may write
  return total;
}

}  // namespace laser
