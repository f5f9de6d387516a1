// One call on the CPU: prepare, a route of the driver, and the result in the weight's own
// orientation and dtype.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "cpu/kernels.hpp"

namespace laser {

enum class RouteKind { kRandomized, kGramEigh, kFullSvd };

struct Request {
  RouteKind route;
  int64_t rank;
  int64_t block;  // RANDOMIZED: columns of the basis
  bool gram;      // RANDOMIZED: iterate on A^T A
  bool wide;      // float64 instead of float32
  bool half;      // RANDOMIZED, not wide: early products with operands rounded to bfloat16
  double tol;     // negative: none
  int64_t max_iter;
  uint64_t seed;
  const std::vector<int64_t>* keys;  // one per matrix
};

// One row of the certificate tensor, in this order (laser_kernels/ops.py names the columns).
struct Certificate {
  double status;
  double norm;       // ||A||_F
  double unrounded;  // ||A - A_r||_F before rounding to the weight's dtype; factors: from the
                     // captured energy
  double residual;   // ||A - A_r||_F as written
  double bound;      // excess bound
  double iterations;
};
constexpr int64_t kCertificateColumns = sizeof(Certificate) / sizeof(double);

// Where the factors go; all null: the dense product goes to `dense` instead.
struct Factors {
  void* u = nullptr;   // (count, rows, rank)
  void* s = nullptr;   // (count, rank)
  void* vh = nullptr;  // (count, rank, cols)
};

// Fills one certificate per matrix. Nothing is written for a matrix whose status is neither ok nor
// uncertified, nor for any when one of them is not finite. `dense` may be the weight itself.
void rank_reduce_cpu(const Weight& weight, const Request& request, const Weight* dense,
                     const Factors* factors, Certificate* certificates);

// ||A - left right^T 2^exponent||, rounded and not, of matrix b; writes `out`. left (rows, r),
// right (cols, r).
template <typename T>
cpu::Residual reconstruct_cpu(Block<const T> left, Block<const T> right, int exponent, const Weight& weight,
                              int64_t b, const Weight& out);

// prepare, for matrix b, in parallel over rows, with the scale found on the way.
struct Prepared {
  cpu::Stats stats;
  int exponent;
};
Prepared prepare_cpu(const Weight& weight, int64_t b, bool wide);

}  // namespace laser
