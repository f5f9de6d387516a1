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
  double captured;       // sum of the leading `rank` Ritz values at the previous step; at first what a random
                         // subspace captures on average: ||A||^2 rank / n
  double gain = -1;      // how much the previous step added; negative: there was none
  double promised = 1;   // damping of the filter before the last
  double damping = 1;    // bound on how much of the error energy the last filter left
  double bound = 0;      // latest excess bound
  double remainder = 0;  // latest ||A||^2 - captured
  double cut = 0;        // upper end of the damped interval, 0: plain power
  double at_rank = 1;    // theta_rank on the interval's scale: 2 theta_rank / cut - 1 (only where cut > 0)
  int looks = 0;         // Rayleigh-Ritz steps judged so far
  int degree = 1;        // of the next filter, at most
  Status status = Status::kRunning;
};

// Judges one Rayleigh-Ritz step. theta: `block` Ritz values, descending; full: the block spans the
// whole space. Updates everything in `p`, including the next filter's degree and cut;
// `multiplies_left` is what max_iter still allows.
void judge(const double* theta, int64_t rank, int64_t block, bool full, double norm2, const Tolerance& t,
           int64_t multiplies_left, Progress& p);

// Tells `p` that a filter of this degree (<= p.degree) was applied.
void filtered(int degree, Progress& p);

// Energy that a rank-r truncation may lose when the operator was perturbed by entries of size
// `error` in its own eigenbasis: second-order perturbation, each pair capped by its first-order
// value (a cluster at the cut may swap freely).
double perturbation_loss(const double* lambda, int64_t n, int64_t rank, double error);

// Status and bound of an exact route from `loss` above. remainder = ||A||^2 - captured.
Status judge_exact(double loss, double remainder, double norm2, const Tolerance& t, double& bound);

}  // namespace laser
