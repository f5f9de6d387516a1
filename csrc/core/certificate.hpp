// When to stop, and what may be promised: pure functions of Ritz values, no matrix in sight. They run on the host and,
// one block per matrix, on a GPU; DEVNOTES.md, "Certificate", has the reasons.
#pragma once
#include <cmath>
#include <cstdint>

#include "core/portable.hpp"

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
  kSpoiled = 6,       // written in place, but the residual is not what was certified
};

struct Tolerance {
  double tol;    // asked excess; negative: none asked
  double eps;    // unit roundoff spacing of the working type: 2^-23, 2^-52
  double noise;  // rounding in the captured energy, relative to ||A||^2
  double floor;  // residual <= floor * ||A|| counts as zero
};

// What is known of one matrix after a Rayleigh-Ritz step.
struct Progress {
  double missing = -1;   // latest estimate of the energy that the optimum holds beyond the captured; negative: none yet
  double bound = 0;      // latest excess bound
  double remainder = 0;  // latest ||A||^2 - captured
  double cut = 0;        // upper end of the interval that the next filter damps, 0: plain power
  double slope = 0;      // 2 / cut, 0 where cut is
  int64_t iterations = 0;  // multiplications by G so far; SPECTRAL: products of n x n matrices
  int projected = 0;       // SPECTRAL: columns of the basis that came from the projector
  int needed = 1;          // degree that the next filter needs
  int reach = 1;           // degree that it may have
  bool half = true;        // products may round their operands to bfloat16
  bool broken = false;     // the basis is not orthonormal: nothing was judged
  Status status = Status::kRunning;
};

// One Rayleigh-Ritz step of a batch. All arrays hold a row per matrix.
struct RitzStep {
  const double* theta;      // (count, block) Ritz values, descending
  const double* residual2;  // (count, block) ||G v_i - theta_i v_i||^2
  double* loss;             // (count, block) scratch
  const double* norm2;      // (count) ||A||_F^2
  const double* whole2;     // (count) what the tolerance's noise and floor are relative to, mostly norm2
  Progress* progress;       // (count) updated
  const int* defect;        // (count) nonzero where the basis is not orthonormal; null: it is
  int64_t rank, block, n;   // n: dimension of the space; a block of as many columns or more holds all of it
  Tolerance tolerance;
  int64_t multiplies, multiplies_left;  // done, and what max_iter still allows
  bool first;                           // progress holds nothing yet
  bool half;                            // where first: products have rounded their operands
  const int64_t* ranks;                 // (count) of each matrix; null: rank

  LASER_HOST_DEVICE int64_t rank_of(int64_t b) const { return ranks ? ranks[b] : rank; }
};

// The eigenvalues of G from a dense solver, for a batch.
struct ExactStep {
  const double* lambda;    // (count, n) descending
  const double* captured;  // (count) energy of the rank-r projection
  const double* norm2;     // (count)
  Progress* progress;      // (count) written
  int64_t rank, n;
  double error;  // size of the perturbation of G, entry by entry in its eigenbasis, in units of lambda_1
  Tolerance tolerance;
  const int64_t* ranks;  // (count) of each matrix; null: rank

  LASER_HOST_DEVICE int64_t rank_of(int64_t b) const { return ranks ? ranks[b] : rank; }
};

// Threads that work on one matrix together. A GPU's team is a block (csrc/cuda/judge.cuh); this is the host's.
struct SerialTeam {
  static int64_t first() { return 0; }
  static int64_t step() { return 1; }
  static double sum(double x) { return x; }
  static void sync() {}
};

namespace certificate {

// Safety on the estimated missing energy.
constexpr double kSafety = 2.5;

// The largest eigenvalue outside the block is taken to lie at most this many residual norms above the block's last Ritz
// value, or above the mean of those outside: one such norm reaches an eigenvalue.
constexpr double kReach = 1.0;

// Residuals are taken to be random in this share of the dimensions outside the block: they favour large eigenvalues.
constexpr double kSpread = 0.25;

// Rounding in the captured energy where sums round to nearest, in units of eps ||A||^2.
constexpr double kNoise = 4.0;

// An estimate that a filter leaves above this share of what it was has met rounding.
constexpr double kStalled = 0.9;

// A filter may amplify an outlier by at most this much more than the cut, times the unit roundoff
// below 1e-3, so that rounding of the outliers stays below 1e-3 of the directions at the cut (their
// angle enters the excess squared).
constexpr double kFilterRange = 1e-3;

constexpr int kMaxDegree = 4;

// Size of the perturbation that forming G and the eigensolver's backward error amount to, entry by entry in G's own
// eigenbasis, in units of eps lambda_1.
constexpr double kGramError = 12.0;

// Unit roundoff of bfloat16. Products round their operands to it where what that may cost is below these shares of
// tol, or of what the filter leaves to be found anyway.
constexpr double kHalfEps = 1.0 / 512;
constexpr double kHalfOfTol = 0.1;
constexpr double kHalfOfMissing = 0.1;

LASER_HOST_DEVICE inline double larger(double a, double b) { return a > b ? a : b; }
LASER_HOST_DEVICE inline double smaller(double a, double b) { return a < b ? a : b; }

// What losing `energy` adds to a residual of tail2 = residual^2, relative to it.
LASER_HOST_DEVICE inline double excess(double energy, double tail2) {
  return tail2 > 0 ? energy / (2 * tail2) : HUGE_VAL;
}

// Chebyshev polynomial of degree d at x >= 1, where it grows with d and with x.
LASER_HOST_DEVICE inline double chebyshev_value(int64_t degree, double x) {
  double before = 1, value = x = larger(x, 1.0);
  LASER_NO_UNROLL for (int64_t d = 1; d < degree && value < 1e150; ++d) {
    const double next = 2 * x * value - before;
    before = value;
    value = next;
  }
  return value;
}

// Energy that a Ritz vector of value theta and residual norm^2 residual2 may lack, `rest` being the largest eigenvalue
// outside the block. With components c_j on eigenvectors outside, residual2 = sum c_j^2 (theta - lambda_j)^2 and the
// loss is sum c_j^2 (theta - lambda_j): at most residual2 / (theta - rest), and, by Cauchy and Schwarz, at most `most`
// = |c| / |its part in the block| times the residual.
LASER_HOST_DEVICE inline double ritz_loss(double theta, double residual2, double rest, double most = 1) {
  const double residual = sqrt(residual2), gap = theta - rest;
  return gap * most > residual ? residual2 / gap : most * residual;
}

}  // namespace certificate

// Energy that a rank-r truncation may lose when the operator was perturbed by entries of size
// `error` in its own eigenbasis: second-order perturbation, each pair capped by its first-order
// value (a cluster at the cut may swap freely).
template <typename Team>
LASER_HOST_DEVICE double perturbation_loss(const Team& team, const double* lambda, int64_t n, int64_t rank,
                                           double error) {
  double loss = 0;
  for (int64_t i = team.first(); i < rank; i += team.step()) {
    LASER_NO_UNROLL for (int64_t j = rank; j < n; ++j) {
      const double gap = lambda[i] - lambda[j];
      loss += gap > error ? error * error / gap : certificate::larger(gap, 0.0);
    }
  }
  return team.sum(loss);
}

// Judges one Rayleigh-Ritz step of matrix b: updates its Progress, the next filter's degree and cut included.
template <typename Team>
LASER_HOST_DEVICE void judge(const Team& team, const RitzStep& step, int64_t b) {
  using namespace certificate;
  const int64_t rank = step.rank_of(b), block = step.block;
  const double* theta = step.theta + b * block;
  const double* residual2 = step.residual2 + b * block;
  double* loss = step.loss + b * block;
  const double norm2 = step.norm2[b];
  const Tolerance t = step.tolerance;
  Progress p;
  if (step.first) {
    p.half = step.half;
  } else {
    p = step.progress[b];
  }
  p.projected = 0;
  p.iterations = step.multiplies;
  p.broken = step.defect && step.defect[b] != 0;

  // What each of the leading Ritz vectors may lack: by itself, and by trading places with the block's others through
  // directions outside, of which `rest` is the largest eigenvalue.
  const bool full = block >= step.n;
  const double last = larger(theta[block - 1], 0.0), outside = larger(double(step.n - block), 1.0);
  double inside = 0;
  for (int64_t i = team.first(); i < block; i += team.step()) {
    inside += larger(theta[i], 0.0);
  }
  inside = team.sum(inside);
  const double rest = larger(last, (norm2 - inside) / outside) + kReach * sqrt(residual2[block - 1]);
  // A block that has not turned yet holds about block / n of each eigenvector.
  const double most = larger(1.0, sqrt(outside / double(block)));
  for (int64_t i = team.first(); i < block; i += team.step()) {
    loss[i] = full ? 0.0 : ritz_loss(larger(theta[i], 0.0), residual2[i], rest, most);
  }
  team.sync();
  const double dimensions = larger(kSpread * double(step.n - block), 1.0);
  double missing = 0, captured = 0, rounding = 0;
  for (int64_t i = team.first(); i < rank; i += team.step()) {
    const double value = larger(theta[i], 0.0);
    double total = loss[i];
    LASER_NO_UNROLL for (int64_t j = rank; j < block; ++j) {
      total += full ? 0.0 : ritz_loss(theta[i], loss[i] * loss[j] / dimensions, theta[j] + loss[j]);
    }
    loss[i] = total;
    missing += total;
    captured += value;
    rounding += ritz_loss(value, kHalfEps * value * kHalfEps * value, rest);
  }
  missing = full ? perturbation_loss(team, theta, block, rank, kGramError * t.eps * larger(theta[0], 0.0)) / kSafety
                 : team.sum(missing);
  captured = team.sum(captured);
  rounding = team.sum(rounding);

  const double noise = t.noise * step.whole2[b];
  const bool stalled = p.missing >= 0 && missing > kStalled * p.missing;
  p.missing = missing;
  p.remainder = larger(norm2 - captured, 0.0);
  const double floor2 = t.floor * t.floor * step.whole2[b];
  const bool exhausted = p.remainder + noise <= floor2;
  const double tail2 = p.remainder - noise - smaller(missing, p.remainder);  // at least this much is optimal
  const double denominator = 2 * larger(tail2, 0.1 * p.remainder);
  // Residuals from rounded operands do not show all that rounding costs.
  p.bound = exhausted ? 0.0 : (kSafety * missing + noise + (p.half ? rounding : 0.0)) / denominator;
  // Not NaN, which is also an eigensolver's word for what it could not solve.
  const bool sane = missing >= 0 && captured >= 0 && theta[0] >= theta[block - 1];
  if (p.broken) {
    p.missing = -1;
    p.status = step.multiplies_left <= 0 ? Status::kNotConverged : Status::kRunning;
  } else if (!sane) {
    p.status = Status::kPrecision;
  } else if (t.tol < 0) {
    p.status = step.multiplies_left <= 0 || full ? Status::kUncertified : Status::kRunning;
  } else if (exhausted || p.bound <= t.tol) {
    p.status = Status::kOk;
  } else if (full || (stalled && !p.half) || noise >= 0.5 * t.tol * denominator) {
    p.status = Status::kPrecision;
  } else if (step.multiplies_left <= 0) {
    p.status = Status::kNotConverged;
  } else {
    p.status = Status::kRunning;
  }

  if (p.status == Status::kRunning) {
    // The next filter: Chebyshev on [0, cut], cut = the block's last Ritz value, which never exceeds
    // lambda_block; the plain power where that is too small to divide by.
    const double top = theta[0], at_rank = larger(theta[rank - 1], 0.0);
    p.needed = p.reach = 1;
    p.cut = last <= t.eps / kFilterRange * top ? 0.0 : last;
    p.slope = p.cut > 0 ? 2 / p.cut : 0.0;
    if (p.cut == 0) {
      p.half = false;
    } else {
      const double x_rank = 2 * at_rank / p.cut - 1, x_top = 2 * top / p.cut - 1;
      const double asked = t.tol * denominator;
      const auto left_by = [&](int degree) {  // what a filter leaves of the missing energy
        double left = 0;
        for (int64_t i = team.first(); i < rank; i += team.step()) {
          const double growth = chebyshev_value(degree, 2 * theta[i] / p.cut - 1);
          left += loss[i] / (growth * growth);
        }
        return team.sum(left);
      };
      p.needed = kMaxDegree;
      if (t.tol >= 0) {
        // Out of reach even if the estimate is pessimistic, and all that is left were one filter of four times the
        // degree?
        const double best = chebyshev_value(4 * step.multiplies_left, x_rank);
        if (kSafety * missing > asked * best * best) {
          p.status = Status::kNotConverged;
        }
        for (p.needed = 1; p.needed < kMaxDegree && kSafety * left_by(p.needed) > asked; ++p.needed) {
        }
      }
      for (p.reach = kMaxDegree;
           p.reach > 1 && chebyshev_value(p.reach, x_top) > kFilterRange / t.eps * chebyshev_value(p.reach, x_rank);
           --p.reach) {
      }
      p.needed = p.needed < p.reach ? p.needed : p.reach;
      const double left = left_by(p.needed);
      p.half = p.half && !stalled && rounding <= larger(kHalfOfTol * asked, kHalfOfMissing * left);
    }
  }
  team.sync();  // every thread has read the Progress of before
  if (team.first() == 0) {
    step.progress[b] = p;
  }
}

// Status and bound of matrix b after a dense solver.
template <typename Team>
LASER_HOST_DEVICE void judge_exact(const Team& team, const ExactStep& step, int64_t b) {
  const double* lambda = step.lambda + b * step.n;
  const double norm2 = step.norm2[b], noise = step.tolerance.noise * norm2;
  const double loss = perturbation_loss(team, lambda, step.n, step.rank_of(b), step.error * lambda[0]);
  Progress p;
  p.remainder = certificate::larger(norm2 - step.captured[b], 0.0);
  if (!(lambda[0] >= lambda[step.n - 1])) {  // NaN: not solved
    p.bound = HUGE_VAL;
    p.status = Status::kPrecision;
  } else if (p.remainder + noise <= step.tolerance.floor * step.tolerance.floor * norm2) {
    p.bound = 0;
    p.status = Status::kOk;
  } else {
    p.bound = certificate::excess(loss, certificate::larger(p.remainder - noise, 0.1 * p.remainder));
    // Below 10 noise the remainder itself is mostly rounding, and nothing relative to it can be
    // promised.
    const bool certified = p.remainder > 10 * noise && p.bound <= step.tolerance.tol;
    p.status = step.tolerance.tol < 0 ? Status::kUncertified : certified ? Status::kOk : Status::kPrecision;
  }
  if (team.first() == 0) {
    step.progress[b] = p;
  }
}

}  // namespace laser
