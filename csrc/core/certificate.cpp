#include "core/certificate.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace laser {
namespace {

// Safety on the estimated error: with it every bound stays above the true excess over the
// matrix families of the tests and all of SmolLM2's matrices (DEVNOTES.md, "Certificate").
constexpr double kSafety = 3.0;

// Rounding in the captured energy, in units of eps ||A||^2 (DEVNOTES.md, "Certificate").
constexpr double kNoise = 4.0;

// What one filter leaves of the error energy is taken to lie in this range: below, the filter's promise is not believed
// (unwanted values above the cut are damped less); above, a nearly flat spectrum cannot be told from convergence.
constexpr double kUnproven = 0.2;  // before a Chebyshev filter has been seen to keep its promise
constexpr double kFastest = 0.07;
constexpr double kSlowest = 1 - 1e-6;
constexpr double kFirstRate = 0.38;  // least rate of the first filter, a plain power

// A filter may amplify an outlier by at most this much more than the cut, times the unit roundoff
// below 1e-3, so that rounding of the outliers stays below 1e-3 of the directions at the cut (their
// angle enters the excess squared).
constexpr double kFilterRange = 1e-3;

constexpr int kMaxDegree = 4;

// Chebyshev polynomial of degree d at x >= 1, and its inverse growth.
double chebyshev_value(int d, double x) { return std::cosh(d * std::acosh(std::max(x, 1.0))); }

// Multiplications until the error energy has fallen by `factor`, at growth acosh(x) per
// multiplication.
double multiplies_needed(double factor, double x) {
  return std::acosh(std::sqrt(std::max(factor, 1.0))) / std::acosh(std::max(x, 1.0 + 1e-12));
}

}  // namespace

void judge(const double* theta, int64_t rank, int64_t block, bool full, double norm2, const Tolerance& t,
           int64_t multiplies_left, Progress& p) {
  double captured = 0;
  for (int64_t i = 0; i < rank; ++i) {
    captured += std::max(theta[i], 0.0);
  }
  const double noise = kNoise * t.eps * norm2;
  p.remainder = std::max(norm2 - captured, 0.0);

  // Error energy still missing, from the last gain and from q, what one filter leaves of the error: as promised by its
  // polynomial, or worse where the promise before was not kept. A pure geometric series would say gain q / (1 - q); the
  // error is a mixture of rates whose slow part is left over in the end, hence sum_k k q^k = q / (1 - q)^2.
  const double gain = std::max(captured - p.captured, 0.0);
  const bool first = p.gain < 0;
  const double at_rank = std::max(theta[rank - 1], 0.0), last = std::max(theta[block - 1], 0.0);
  if (first) {  // the plain power of a random block
    p.damping = at_rank > 0 ? std::max(kFirstRate, std::pow(last / at_rank, 2)) : 1.0;
  }
  double q = p.damping;
  if (!first && p.gain > noise) {
    // This gain is part of what was missing before it, so the filter before the last left at least
    // `left` of the error; where that is more than it promised, the last one's promise is taken
    // with the same grain of salt.
    const double left = gain / (gain + p.gain);
    q = left > p.promised && p.promised < 1 ? std::pow(q, std::log(left) / std::log(p.promised)) : q;
  }
  const double visible = std::max(gain, 2 * noise);  // the gain is a difference of two sums
  const double likely = std::clamp(q, kFastest, kSlowest);
  q = std::clamp(q, p.looks < 2 ? kUnproven : kFastest, kSlowest);
  const double missing = full ? 0.0 : visible * q / std::pow(1 - q, 2);
  const bool stalled = !first && gain <= noise;  // iterating on would not be seen
  p.gain = gain;
  p.captured = captured;
  p.promised = p.damping;
  ++p.looks;

  const double floor2 = t.floor * t.floor * norm2;
  const bool exhausted = p.remainder + noise <= floor2;
  const double tail2 = p.remainder - noise - std::min(missing, p.remainder);  // at least this much is optimal
  const double denominator = 2 * std::max(tail2, 0.1 * p.remainder);
  p.bound = exhausted ? 0.0 : (kSafety * missing + noise) / denominator;
  if (t.tol < 0) {
    p.status = multiplies_left <= 0 || full ? Status::kUncertified : Status::kRunning;
  } else if (exhausted || p.bound <= t.tol) {
    p.status = Status::kOk;
  } else if (full || stalled || noise >= 0.5 * t.tol * denominator) {
    p.status = Status::kPrecision;
  } else if (multiplies_left <= 0) {
    p.status = Status::kNotConverged;
  }
  if (p.status != Status::kRunning) {
    return;
  }

  // The next filter: Chebyshev on [0, cut], cut = the block's last Ritz value, which never exceeds
  // lambda_block; the plain power where that is too small to divide by.
  const double top = theta[0];
  p.degree = 1;
  p.cut = last <= t.eps / kFilterRange * top ? 0.0 : last;
  if (p.cut == 0) {
    p.damping = at_rank > 0 ? std::pow(last / at_rank, 2) : 1.0;
    return;
  }
  const double x_rank = p.at_rank = 2 * at_rank / p.cut - 1;
  const double x_top = 2 * top / p.cut - 1;
  if (t.tol >= 0) {
    // Planned with what is likely, judged with what is safe: a step too few costs a look, one too many a product.
    const double expected = visible * likely / (1 - likely);
    const double needed = multiplies_needed(kSafety * expected / (t.tol * denominator), x_rank);
    if (needed > 4.0 * double(multiplies_left)) {  // out of reach even if the estimate is pessimistic
      p.status = Status::kNotConverged;
      return;
    }
    p.degree = int(std::clamp(std::ceil(needed), 1.0, double(kMaxDegree)));
  }
  while (p.degree > 1 && chebyshev_value(p.degree, x_top) > kFilterRange / t.eps * chebyshev_value(p.degree, x_rank)) {
    --p.degree;
  }
}

void filtered(int degree, Progress& p) {
  if (p.cut > 0) {
    p.damping = std::pow(chebyshev_value(degree, p.at_rank), -2);
  }
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
