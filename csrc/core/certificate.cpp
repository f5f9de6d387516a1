#include "core/certificate.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace laser {
namespace {

// Safety on the estimated missing energy (DEVNOTES.md, "Certificate").
constexpr double kSafety = 2.5;

// The largest eigenvalue outside the block is taken to lie at most this many residual norms above the block's last Ritz
// value: one such norm reaches an eigenvalue.
constexpr double kReach = 1.0;

// Residuals are taken to be random in this share of the dimensions outside the block: they favour large eigenvalues.
constexpr double kSpread = 0.25;

// Rounding in the captured energy, in units of eps ||A||^2 (DEVNOTES.md, "Certificate").
constexpr double kNoise = 4.0;

// An estimate that a filter leaves above this share of what it was has met rounding.
constexpr double kStalled = 0.9;

// A filter may amplify an outlier by at most this much more than the cut, times the unit roundoff
// below 1e-3, so that rounding of the outliers stays below 1e-3 of the directions at the cut (their
// angle enters the excess squared).
constexpr double kFilterRange = 1e-3;

constexpr int kMaxDegree = 4;

// Unit roundoff of bfloat16. Products round their operands to it where what that may cost is below these shares of
// tol, or of what the filter leaves to be found anyway (DEVNOTES.md, "Half precision").
constexpr double kHalfEps = 1.0 / 512;
constexpr double kHalfOfTol = 0.1;
constexpr double kHalfOfMissing = 0.1;

// Chebyshev polynomial of degree d at x >= 1, and its inverse growth.
double chebyshev_value(int d, double x) { return std::cosh(d * std::acosh(std::max(x, 1.0))); }

// Multiplications until the error energy has fallen by `factor`, at growth acosh(x) per
// multiplication.
double multiplies_needed(double factor, double x) {
  return std::acosh(std::sqrt(std::max(factor, 1.0))) / std::acosh(std::max(x, 1.0 + 1e-12));
}

// Energy that a Ritz vector of value theta and residual norm^2 residual2 may lack, `rest` being the largest eigenvalue
// outside the block. With components c_j on eigenvectors outside, residual2 = sum c_j^2 (theta - lambda_j)^2 and the
// loss is sum c_j^2 (theta - lambda_j): at most residual2 / (theta - rest), and, since sum c_j^2 <= 1, at most the
// residual.
double ritz_loss(double theta, double residual2, double rest) {
  const double first_order = std::sqrt(residual2), gap = theta - rest;
  return gap > first_order ? residual2 / gap : first_order;
}

// What each of the leading `rank` Ritz vectors of a block in n dimensions may lack: by itself, and by trading places
// with the block's others through directions outside, of which `rest` is the largest eigenvalue.
std::vector<double> ritz_losses(const double* theta, const double* residual2, int64_t rank, int64_t block, int64_t n,
                                double rest) {
  std::vector<double> loss(block);
  for (int64_t i = 0; i < block; ++i) {
    loss[i] = ritz_loss(std::max(theta[i], 0.0), residual2[i], rest);
  }
  const double dimensions = std::max(kSpread * double(n - block), 1.0);
  std::vector<double> total(loss.begin(), loss.begin() + rank);
  for (int64_t i = 0; i < rank; ++i) {
    for (int64_t j = rank; j < block; ++j) {
      total[i] += ritz_loss(theta[i], loss[i] * loss[j] / dimensions, theta[j]);
    }
  }
  return total;
}

}  // namespace

void judge(const double* theta, const double* residual2, int64_t rank, int64_t block, int64_t n, double norm2,
           const Tolerance& t, int64_t multiplies_left, Progress& p) {
  const bool full = block == n;
  const double last = std::max(theta[block - 1], 0.0);
  const double rest = last + kReach * std::sqrt(residual2[block - 1]);
  const std::vector<double> loss =
      full ? std::vector<double>(rank, 0.0) : ritz_losses(theta, residual2, rank, block, n, rest);
  const double missing = std::accumulate(loss.begin(), loss.end(), 0.0);
  double captured = 0, rounding = 0;
  for (int64_t i = 0; i < rank; ++i) {
    const double value = std::max(theta[i], 0.0);
    captured += value;
    rounding += ritz_loss(value, std::pow(kHalfEps * value, 2), rest);
  }
  const double noise = kNoise * t.eps * norm2;
  const bool stalled = p.missing >= 0 && missing > kStalled * p.missing;
  p.missing = missing;
  p.remainder = std::max(norm2 - captured, 0.0);

  const double floor2 = t.floor * t.floor * norm2;
  const bool exhausted = p.remainder + noise <= floor2;
  const double tail2 = p.remainder - noise - std::min(missing, p.remainder);  // at least this much is optimal
  const double denominator = 2 * std::max(tail2, 0.1 * p.remainder);
  // Residuals from rounded operands do not show all that rounding costs.
  p.bound = exhausted ? 0.0 : (kSafety * missing + noise + (p.half ? rounding : 0.0)) / denominator;
  if (t.tol < 0) {
    p.status = multiplies_left <= 0 || full ? Status::kUncertified : Status::kRunning;
  } else if (exhausted || p.bound <= t.tol) {
    p.status = Status::kOk;
  } else if (full || (stalled && !p.half) || noise >= 0.5 * t.tol * denominator) {
    p.status = Status::kPrecision;
  } else if (multiplies_left <= 0) {
    p.status = Status::kNotConverged;
  }
  if (p.status != Status::kRunning) {
    return;
  }

  // The next filter: Chebyshev on [0, cut], cut = the block's last Ritz value, which never exceeds
  // lambda_block; the plain power where that is too small to divide by.
  const double top = theta[0], at_rank = std::max(theta[rank - 1], 0.0);
  p.degree = 1;
  p.cut = last <= t.eps / kFilterRange * top ? 0.0 : last;
  if (p.cut == 0) {
    p.half = false;
    return;
  }
  const double x_rank = 2 * at_rank / p.cut - 1, x_top = 2 * top / p.cut - 1;
  const double asked = t.tol * denominator;
  const auto left_by = [&](int degree) {  // what a filter leaves of the missing energy
    double left = 0;
    for (int64_t i = 0; i < rank; ++i) {
      left += loss[i] * std::pow(chebyshev_value(degree, 2 * theta[i] / p.cut - 1), -2);
    }
    return left;
  };
  p.degree = kMaxDegree;
  if (t.tol >= 0) {
    // Out of reach even if the estimate is pessimistic?
    if (multiplies_needed(kSafety * missing / asked, x_rank) > 4.0 * double(multiplies_left)) {
      p.status = Status::kNotConverged;
      return;
    }
    for (p.degree = 1; p.degree < kMaxDegree && kSafety * left_by(p.degree) > asked; ++p.degree) {
    }
  }
  while (p.degree > 1 && chebyshev_value(p.degree, x_top) > kFilterRange / t.eps * chebyshev_value(p.degree, x_rank)) {
    --p.degree;
  }
  p.half = p.half && !stalled && rounding <= std::max(kHalfOfTol * asked, kHalfOfMissing * left_by(p.degree));
}

double perturbation_loss(const double* lambda, int64_t n, int64_t rank, double error) {
  double loss = 0;
  for (int64_t i = 0; i < rank; ++i) {
    for (int64_t j = rank; j < n; ++j) {
      const double gap = lambda[i] - lambda[j];
      loss += gap > error ? error * error / gap : std::max(gap, 0.0);
    }
  }
  return loss;
}

Status judge_exact(double loss, double remainder, double norm2, const Tolerance& t, double& bound) {
  const double noise = kNoise * t.eps * norm2;
  if (remainder + noise <= t.floor * t.floor * norm2) {
    bound = 0;
    return Status::kOk;
  }
  bound = loss / (2 * std::max(remainder - noise, 0.1 * remainder));
  if (t.tol < 0) {
    return Status::kUncertified;
  }
  // Below 10 noise the remainder itself is mostly rounding, and nothing relative to it can be
  // promised.
  return remainder > 10 * noise && bound <= t.tol ? Status::kOk : Status::kPrecision;
}

}  // namespace laser
