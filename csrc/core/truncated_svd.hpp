// The routes RANDOMIZED, SPECTRAL and GRAM_EIGH: a rank-r subspace of each matrix of a batch, with its
// certificate.
#pragma once
#include <cstdint>
#include <vector>

#include "core/certificate.hpp"
#include "core/linalg.hpp"
#include "core/request.hpp"

namespace laser {

// Weights A (count, m, n), m >= n, which the Linalg was made for; the caller settles orientation and scale.
struct SvdProblem {
  int64_t count, rows, cols;
  const double* norm2;  // count, in the Linalg's memory: ||A||_F^2, exact to float64
  int64_t rank;         // the largest of the batch
  int64_t block;        // l = r + p <= n, columns of the basis
  bool gram;            // iterate on G = A^T A, formed once, instead of A and A^T
  bool half;           // RANDOMIZED: filters may multiply operands rounded to bfloat16; SPECTRAL: the projector's steps
  int64_t look_every;  // multiplications between two Rayleigh-Ritz steps, at least
  int64_t max_iter;    // multiplications by G at most
  Tolerance tolerance;
  uint64_t seed;
  const int64_t* keys;  // count, on the host
  // Where they differ: count, in the Linalg's memory. Not with cuts.
  const int64_t* ranks = nullptr;
  // SPECTRAL with its search done before: count, on the host, in the scale of A. Null: it searches, and certifies.
  const Cut* cuts = nullptr;
  int64_t locked = 0;  // columns from the projector
  // RANDOMIZED on what is left of a larger problem, in the space without its `locked` columns: count, the larger one's
  // norm2, which rounding is relative to.
  const double* whole2 = nullptr;

  int64_t rank_of(int64_t b) const { return ranks ? ranks[b] : rank; }  // where the Linalg's memory is the host's
};

// A_r = left right^T: right (count, n, r) orthonormal, left = A right (count, m, r); but for SPECTRAL, columns nearly
// orthogonal with norms sigma_i, descending. Nothing in here is judged useful where progress's status says
// otherwise, nor what lies beyond the columns of a matrix's own rank.
template <typename T>
struct SvdResult {
  Block<T> left, right;
  Progress* progress;  // count
};

// Scratch that the route needs, in the Linalg's memory: elements of T, and doubles.
struct ScratchSize {
  int64_t elements, doubles;
};
template <typename T>
struct Scratch {
  T* elements;
  double* doubles;
};
template <typename T>
ScratchSize randomized_scratch(const SvdProblem& p);
template <typename T>
ScratchSize spectral_scratch(const SvdProblem& p);
ScratchSize gram_eigh_scratch(const SvdProblem& p);
// Side of the eigenproblems of SPECTRAL's top-up, where its cuts are given.
int64_t top_up_block(const SvdProblem& p);
ScratchSize factors_scratch(int64_t count, int64_t rows, int64_t rank);

template <typename T>
void randomized(Linalg<T>& la, const SvdProblem& p, const Scratch<T>& scratch, const SvdResult<T>& out);
template <typename T>
void spectral(Linalg<T>& la, const SvdProblem& p, const Scratch<T>& scratch, const SvdResult<T>& out);
// RANDOMIZED on these matrices of a positive semidefinite g (count, n, n) that stands for A^T A, whose trace is
// p.norm2; p.rows = p.cols = n, p.gram; la.select was called for them. out.left is not written. The Ritz values of the
// block are left in scratch.doubles (count, l).
template <typename T>
void randomized_on(Linalg<T>& la, const SvdProblem& p, const std::vector<int64_t>& matrices, Block<T> g,
                   const Scratch<T>& scratch, const SvdResult<T>& out);
template <typename T>
void gram_eigh(Linalg<T>& la, const SvdProblem& p, const Scratch<T>& scratch, const SvdResult<T>& out);

// left -> U diag(sigma), right -> V with U, V orthonormal and sigma (count, r) descending, in place; left
// becomes U.
template <typename T>
void factors(Linalg<T>& la, Block<T> left, Block<T> right, double* sigma, const Scratch<T>& scratch);

// Eigenvalues of a symmetric positive semidefinite matrix above a given level: step 3 of SPECTRAL, without a spectrum.
struct EigenvalueCount {
  double above = 0;
  double unresolved = 0;  // about how many lay too near the level to tell, or trace(P)'s distance from an integer; n
                          // where nothing could be told. Beyond 0.1, `above` is not to be trusted.
};
template <typename T>
ScratchSize count_eigenvalues_scratch(int64_t count, int64_t n);
// h (count, n, n); above: count, on the host.
template <typename T>
std::vector<EigenvalueCount> count_eigenvalues(Linalg<T>& la, Block<const T> h, const double* above,
                                               const Scratch<T>& scratch);

}  // namespace laser
