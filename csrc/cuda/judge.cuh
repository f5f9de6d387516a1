// Work:    one block of kJudgeThreads per matrix: r (l - r) pairs for the trades, 4 r Chebyshev values.
// Memory:  3 l doubles per matrix.
#pragma once
#include "core/certificate.hpp"
#include "cuda/batch.cuh"
#include "cuda/reduce.cuh"

namespace laser {

constexpr int kJudgeThreads = 128;

// Where ||Gram - I||_F = d < 1, one pass of CholeskyQR leaves only roundings times (1 + d) / (1 - d) behind.
constexpr double kNearlyOrthonormal = 0.9;

struct BlockTeam {
  double* scratch;  // 32 doubles of shared memory

  __device__ int64_t first() const { return threadIdx.x; }
  __device__ int64_t step() const { return blockDim.x; }
  __device__ double sum(double x) const { return block_reduce(x, Sum(), scratch); }
  __device__ void sync() const { __syncthreads(); }
};

// One resident block is enough; without saying so, ptxas for sm_100 spills.
__global__ void __launch_bounds__(kJudgeThreads, 1) judge_kernel(RitzStep step, Selection sel) {
  __shared__ double scratch[32];
  judge(BlockTeam{scratch}, step, sel[blockIdx.x]);
}

__global__ void __launch_bounds__(kJudgeThreads) judge_exact_kernel(ExactStep step, Selection sel) {
  __shared__ double scratch[32];
  judge_exact(BlockTeam{scratch}, step, sel[blockIdx.x]);
}

__global__ void find_defects_kernel(const double* __restrict__ deviation, const int* __restrict__ shifted, int* defect,
                                    Selection sel) {
  const int s = blockIdx.x * blockDim.x + threadIdx.x;
  if (s < sel.count) {
    const int64_t b = sel[s];
    defect[b] = shifted[b] != 0 || !(deviation[b] < kNearlyOrthonormal);
  }
}

}  // namespace laser
