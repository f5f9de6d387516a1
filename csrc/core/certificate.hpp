// When to stop, and what may be promised: pure functions of Ritz values, no matrix in sight.
#pragma once
#include <cstdint>

namespace laser {

// Ends up in Info.status; the numbers are part of the ops' contract (laser_kernels/ops.py names
// them).
enum class Status : int {
  kOk = 0,            // excess <= bound <= tol, or residual at rounding level
  kUncertified = 1,   // tol was not given: nothing was judged
  kNotConverged = 2,  // max_iter reached, or out of reach at the observed rate
  kPrecision = 3,     // the working precision cannot tell: redo in float64 or exactly
  kNonFinite = 4,     // NaN or Inf in the weight
  kRunning = 5,       // not judged yet; never leaves the driver
};

// eps: unit roundoff spacing of the working type (2^-23, 2^-52); floor: residual <= floor * ||A||
// counts as zero.
struct Tolerance {
  double tol;  // asked excess; negative: none asked
  double eps;
  double floor;
};

// What the driver remembers of one matrix between two Rayleigh-Ritz steps.
struct Progress {
  double missing = -1;   // latest estimate of the energy that the optimum holds beyond the captured; negative: none yet
  double bound = 0;      // latest excess bound
  double remainder = 0;  // latest ||A||^2 - captured
  double cut = 0;        // upper end of the interval that the next filter damps, 0: plain power
  int degree = 1;        // of the next filter, at most
  bool half = true;      // products may round their operands to bfloat16
  Status status = Status::kRunning;
};

// Judges one Rayleigh-Ritz step. theta: `block` Ritz values, descending; residual2: ||G v_i - theta_i v_i||^2 of as
// many Ritz vectors; n: dimension of the space, which the block may span. Updates everything in `p`, including the next
// filter's degree and cut; `multiplies_left` is what max_iter still allows.
void judge(const double* theta, const double* residual2, int64_t rank, int64_t block, int64_t n, double norm2,
           const Tolerance& t, int64_t multiplies_left, Progress& p);

// Energy that a rank-r truncation may lose when the operator was perturbed by entries of size
// `error` in its own eigenbasis: second-order perturbation, each pair capped by its first-order
// value (a cluster at the cut may swap freely).
double perturbation_loss(const double* lambda, int64_t n, int64_t rank, double error);

// Status and bound of an exact route from `loss` above. remainder = ||A||^2 - captured.
Status judge_exact(double loss, double remainder, double norm2, const Tolerance& t, double& bound);

}  // namespace laser
