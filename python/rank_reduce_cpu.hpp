// One call on the CPU: prepare, a route of the driver, and the result in the weight's own
// orientation and dtype.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "core/request.hpp"
#include "cpu/kernels.hpp"

namespace laser {

// Fills one certificate per matrix. Nothing is written for a matrix whose status is neither ok nor
// uncertified, nor for any when one of them is not finite. `dense` may be the weight itself.
void rank_reduce_cpu(const Weight& weight, const Request& request, const Weight* dense, const Factors* factors,
                     Certificate* certificates);

// ||A - left right^T 2^exponent||, rounded and not, of matrix b; writes `out`. left (rows, r),
// right (cols, r).
template <typename T>
cpu::Residual reconstruct_cpu(Block<const T> left, Block<const T> right, int exponent, const Weight& weight, int64_t b,
                              const Weight& out);

// prepare, for matrix b, in parallel over rows, with the scale found on the way.
struct Prepared {
  cpu::Stats stats;
  int exponent;
};
Prepared prepare_cpu(const Weight& weight, int64_t b, bool wide);

}  // namespace laser
