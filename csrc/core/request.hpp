// One call of low_rank or truncated_svd, as both backends take it (python/rank_reduce_cpu.cpp,
// csrc/cuda/rank_reduce.cpp), and what they report.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/certificate.hpp"
#include "core/dtype.hpp"

namespace laser {

// Where a spectrum is cut: eigenvalues of A^T A.
struct Cut {
  double level;  // between the locked-th and the next
  double edge;   // about the rank-th
};

enum class RouteKind { kRandomized, kSpectral, kGramEigh, kFullSvd };

struct Request {
  RouteKind route;
  int64_t rank;   // the largest of the batch
  int64_t block;  // RANDOMIZED: columns of the basis
  bool gram;      // RANDOMIZED: iterate on A^T A
  bool wide;      // float64 instead of float32
  bool half;      // RANDOMIZED and SPECTRAL, not wide: early products with operands rounded to bfloat16
  double tol;     // negative: none
  int64_t max_iter;
  uint64_t seed;
  const std::vector<int64_t>* keys;  // one per matrix
  // SPECTRAL without its search (SvdProblem::cuts): one per matrix; null: with it.
  const std::vector<Cut>* cuts = nullptr;
  int64_t locked = 0;
  const std::vector<int64_t>* ranks = nullptr;  // one per matrix where they differ

  int64_t rank_of(int64_t b) const { return ranks ? (*ranks)[b] : rank; }
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
  double projected;  // SPECTRAL: singular vectors that the projector held; the others came from the top-up
};
constexpr int64_t kCertificateColumns = sizeof(Certificate) / sizeof(double);

// Where the factors go; all null: the dense product is asked for instead. float64 for float64 weights, else float32.
struct Factors {
  void* u = nullptr;   // (count, rows, rank); what lies beyond a matrix's own rank is not written
  void* s = nullptr;   // (count, rank)
  void* vh = nullptr;  // (count, rank, cols)
};

// Residual ||A - A_r|| counts as zero below this many eps of the input dtype times ||A||: the
// contract's c.
constexpr double kFloor = 32.0;

// The measured residual and the one from the captured energy agree to rounding; more than this apart, one is wrong.
// Their squares may also be this many times the captured energy's own rounding apart (Tolerance::noise).
constexpr double kAgreement = 1e-3;
constexpr double kNoiseApart = 2.0;

// Checked over all of SmolLM2's matrices by bench/accuracy.py.
constexpr double kRounding = 4.0;

// What the measured residual may be off by, in units of ||A||. Behind a full SVD in float64 nothing can do better, and
// LAPACK's own rounding grows with the size: constant matrices of 200 to 1000 columns, 60 to 470 eps.
inline double slack_of(const Request& request, double eps, int64_t rows, int64_t cols) {
  const bool last = request.route == RouteKind::kFullSvd && request.wide;
  return kFloor * eps * (last ? sqrt(double(rows < cols ? rows : cols)) : 1.0);
}

// Of what the caller handed in: float64 promises more.
LASER_HOST_DEVICE inline double input_eps(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 2.2204460492503131e-16 : 1.1920928955078125e-07;
}

// What the driver found out about one matrix, in the caller's scale 2^exponent. locked: not 0 where cuts were given,
// and with them what no bound covers.
LASER_HOST_DEVICE inline Certificate certificate_of(const Progress& p, double norm2, int exponent, int64_t rows,
                                                    int64_t cols, double eps, double tol, int64_t locked) {
  const double unit = ldexp(1.0, exponent), optimal = sqrt(p.remainder) * unit, norm = sqrt(norm2) * unit;
  Certificate c{double(int(p.status)), norm, optimal, optimal, p.bound, double(p.iterations), double(p.projected)};
  // Rounding of the result is random, so it meets the residual in about one of its m n directions.
  if (p.bound > 0 && optimal > 0) {
    const double rounding = kRounding * eps * norm / (optimal * sqrt(double(rows) * double(cols)));
    const double most = certificate::larger(p.bound, tol);
    c.bound = p.bound + rounding < most ? p.bound + rounding : most;
  }
  if (locked > 0) {
    c.bound = HUGE_VAL;
    c.projected = double(locked);
  }
  return c;
}

// Enters the measured residuals of what was written, squared and in units of 2^exponent. Where they contradict the
// certificate its status becomes kPrecision, or kSpoiled where the weight itself was overwritten. noise: the driver's,
// as in Tolerance; slack: slack_of.
LASER_HOST_DEVICE inline void measured(Certificate& c, double unrounded2, double rounded2, int exponent, double noise,
                                       double slack, bool in_place) {
  const double unit = ldexp(1.0, exponent), found = sqrt(unrounded2);
  const double optimal = c.unrounded / unit, norm = c.norm / unit;
  c.unrounded = found * unit;
  c.residual = sqrt(rounded2) * unit;
  const double apart = found > optimal ? found - optimal : optimal - found;
  const double of_energy = kNoiseApart * noise * norm * norm;
  if (!(apart <= kAgreement * optimal + slack * norm || apart * (found + optimal) <= of_energy)) {
    c.status = double(int(in_place ? Status::kSpoiled : Status::kPrecision));
  }
}

// The verdict on a full SVD from its singular values (n, descending): left and right lack nothing but rounding.
template <typename T>
Progress judge_full_svd(const T* sigma, int64_t n, int64_t rank, double norm2, const Tolerance& t) {
  std::vector<double> lambda(n);
  double tail2 = 0;
  for (int64_t j = 0; j < n; ++j) {
    lambda[j] = double(sigma[j]) * double(sigma[j]);
    tail2 += j < rank ? 0.0 : lambda[j];
  }
  // Backward error eps sigma_1 in A moves entries of A^T A by at most 2 eps sigma_1 sigma_i <= 2
  // eps lambda_1; what it costs beyond the contract's floor is second order in it.
  const double loss = perturbation_loss(SerialTeam{}, lambda.data(), n, rank, t.eps * lambda[0]);
  const bool zero = tail2 <= t.floor * t.floor * norm2;
  Progress p;
  p.remainder = tail2;
  p.bound = zero || tail2 == 0 ? 0.0 : loss / (2 * tail2);
  const bool certified = zero || t.eps <= std::numeric_limits<double>::epsilon() || p.bound <= t.tol;
  p.status = t.tol < 0 ? Status::kUncertified : certified ? Status::kOk : Status::kPrecision;
  return p;
}

}  // namespace laser
