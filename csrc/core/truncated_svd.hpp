// The routes RANDOMIZED and GRAM_EIGH: a rank-r subspace of each matrix of a batch, with its
// certificate.
#pragma once
#include <cstdint>
#include <vector>

#include "core/certificate.hpp"
#include "core/linalg.hpp"

namespace laser {

// Weight A: (count, m, n) with m >= n; the caller settles the orientation and the scale.
template <typename T>
struct SvdProblem {
  Block<const T> weight;
  bool half;                      // RANDOMIZED: filters may multiply operands rounded to bfloat16
  Block<const BFloat16> rounded;  // the weight so, where half and not gram
  const double* norm2;            // count: ||A||_F^2, exact to float64
  int64_t rank;
  int64_t block;     // l = r + p <= n, columns of the basis
  bool gram;         // iterate on G = A^T A, formed once, instead of A and A^T
  int64_t max_iter;  // multiplications by G at most
  Tolerance tolerance;
  uint64_t seed;
  const int64_t* keys;  // count
};

// A_r = left right^T: right (count, n, r) orthonormal, left = A right (count, m, r), columns nearly
// orthogonal with norms sigma_i, descending. Nothing in here is judged useful where status says
// otherwise.
template <typename T>
struct SvdResult {
  Block<T> left, right;
  double* bound;        // count
  double* remainder;    // count: ||A||_F^2 - captured energy
  int64_t* iterations;  // count
  Status* status;       // count
};

// Elements of T that the route needs as scratch.
template <typename T>
int64_t randomized_workspace(const SvdProblem<T>& p);
template <typename T>
int64_t gram_eigh_workspace(const SvdProblem<T>& p);

template <typename T>
void randomized(Linalg<T>& la, const SvdProblem<T>& p, T* workspace, const SvdResult<T>& out);
template <typename T>
void gram_eigh(Linalg<T>& la, const SvdProblem<T>& p, T* workspace, const SvdResult<T>& out);

// left -> U diag(sigma), right -> V with U, V orthonormal and sigma descending, in place; left
// becomes U. core: scratch of 4 r^2 count, product: scratch of m r count. sigma: (count, r) on the
// host.
template <typename T>
void factors(Linalg<T>& la, Block<T> left, Block<T> right, double* sigma, T* core, T* product);

}  // namespace laser
