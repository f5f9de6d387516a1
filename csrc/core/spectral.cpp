// SPECTRAL: the leading right singular subspace by matrix products alone, whatever its dimension.
//
//   1 search     T = I - 2 (G/mu + I)^-1 has the eigenvalues (lambda - mu) / (lambda + mu): outliers go to 1, the cut
//                is brought to 0. Chebyshev moments of T count its eigenvalues; mu <- the mu that the count asks for.
//                They also say how much lies below the cut, and with it whether this precision can certify tol.
//   2 bracket    level t_1 of T above which all but about d of the r wanted eigenvalues lie
//   3 project    S = sign(T - t_1 I) by odd quintics;  R = trace (I + S) / 2 <= r
//   4 lock       Q = orth( (I + S) Omega / 2 ), (n, R), then once: correct, with theta = the cut that step 1 found
//   5 top up     V = leading r - R Ritz vectors of (I - Q Q^T) G (I - Q Q^T), by the RANDOMIZED loop
//   6 certify    H = Q^T G Q, R = G Q - Q H - V V^T G Q, L L^T = H - theta I, theta = V's last Ritz value:
//                no vector outside reaches theta, so that Q lacks at most ||L^-1 R^T||_F^2, and what it lowers V's
//                values by below what is outside; V lacks what the loop says
//     or correct Q <- orth( Q + R (H - theta/2 I)^-1 ) = orth( (G - theta/2 I) Q (H - theta/2 I)^-1 ), and again from 5
//
//        lambda   sigma_1^2 ... ............ | t_1 | ... lambda_r | lambda_r+1 ...........
//                 Q, from a rough projector  '-----'  V, to full precision
//                                            the window of d: eigenvalues near t_1, which the sign cannot resolve, fall
//                                            to Q or to V; either will do
//
// Where the cut is given (SvdProblem::cuts), 3 to 5 run once: nothing is searched, certified, or read by the host.
//
// Rounding in 1 to 3 turns Q: a component s on a dropped eigenvector j costs s^2 (lambda_i - lambda_j). Step 6 sees it
// and multiplies it by (lambda_j - theta/2) / (lambda_i - theta/2). So products of one bfloat16 operand pair serve in
// 1 to 3, and are followed by better ones only where the certificate asks; the first turn is by rough ones too.
//
// Refs: Nakatsukasa, Higham (2013): spectral divide and conquer by the sign function. Weisse et al. (2006): counting.
// Amsel et al. (arXiv 2505.16932): quintics. Ky Fan (1949): what the best r-dimensional subspace captures. The Cayley
// transform, the window and the certificate are ours (DEVNOTES.md, "SPECTRAL").
#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <vector>

#include "core/kernel_polynomial.hpp"
#include "core/sign_quintics.hpp"
#include "core/truncated_svd.hpp"

namespace laser {
namespace {

// Moments of T, and random vectors that estimate them: counts were off by at most 5 of 192 ... 1536 eigenvalues
// (64 moments: 29).
constexpr int kMoments = 128;
constexpr int64_t kProbes = 32;

// The level found must be this near 0, where the count resolves best relative to mu.
constexpr double kCentred = 0.5;
constexpr int kSearches = 8;

// d: counts are off by up to 5, and the sign must resolve t_1 from the cut.
constexpr int64_t kWindow = 8;
constexpr double kWindowShare = 0.02;
// The top-up may be this many times d, about. Beyond, the count was off by more than d.
constexpr int64_t kMostWindows = 2;

// Share of the way from t_1 to the cut beyond which the sign must hold.
constexpr double kResolved = 0.7;
constexpr double kLeastResolved = 1e-5;

// The sign's largest error outside the window, at its edge. Products in bfloat16 leave about as much.
constexpr double kSignError = 0.01;

// Where levels are given: eigenvalues of T this near them, 2e-3 of their value, are not resolved; the others leave this
// much of their trace.
constexpr double kCountResolved = 1e-3;
constexpr double kCountError = 1e-6;

// Rounding may make T this much larger than it is.
constexpr double kMargin = 1.01;

// Columns of the top-up beyond the wanted ones: after default_block in laser_kernels/dispatch.py.
constexpr int64_t kSurplus = 16;
constexpr int64_t kSurplusShare = 4;
constexpr int64_t kBlockMultiple = 16;

// A top-up of more than this share of what is left takes the whole space: estimates from the few directions outside
// would have no statistics to stand on, and of so many random columns some are nearly dependent.
constexpr double kNearlyWhole = 0.75;

// The energy of the tail, by its moments, was never found less than this many times too small.
constexpr double kTailError = 1.25;

// The top-up's share of tol. What Q lacks falls by orders of magnitude with each correction, what V lacks costs steps.
constexpr double kTopUpShare = 0.75;

// Corrections of Q at most; one that leaves more than this share of what was missing has met rounding.
constexpr int kCorrections = 3;
constexpr double kStalled = 0.5;

// Passes of CholeskyQR. (I + S) Omega has the condition of a square Gaussian matrix, about R. A turned Q is nearly
// orthonormal as it is, and what is delivered is looked at.
constexpr int kLockPasses = 2;
constexpr int kTurnPasses = 1;
constexpr int kPasses = 2;

// Deviation of a basis from an orthonormal one that is rounding, in eps sqrt(n): orthonormality_bound of
// laser_kernels/testing.py.
constexpr double kDefect = 8.0;

// Seeds beyond the problem's, which draws the probes. The top-up must not begin with Omega: Q holds P Omega, and what
// is left of Omega's columns has nothing of the eigenvectors that Q still lacks.
constexpr uint64_t kLockStream = 1;
constexpr uint64_t kTopUpStream = 2;

// Precision of products in steps 1 to 3, and of a second attempt where the first one's projector misled; and of those
// in steps 4 to 6 that give a direction to turn to, or the size of a loss. G Q, what is left of G, and bases are in
// full.
struct Policy {
  double tol;  // down to
  Precision first, second, turn;
};
constexpr Policy kPolicies[] = {{1e-4, Precision::kHalf, Precision::kPair, Precision::kPair},
                                {0, Precision::kPair, Precision::kFull, Precision::kFull}};

Policy policy_of(const SvdProblem& p) {
  if (!p.half) {
    return {0, Precision::kFull, Precision::kFull, Precision::kFull};
  }
  const double tol = p.tolerance.tol;
  return tol < 0 || tol >= kPolicies[0].tol ? kPolicies[0] : kPolicies[1];
}

int64_t window_of(const SvdProblem& p) {
  return std::max(kWindow, int64_t(std::lround(kWindowShare * double(p.cols))));
}

// The top-up as a problem of its own: `wanted` vectors beside `locked` ones; energy: of what is left, in the Linalg's
// memory.
SvdProblem top_up_of(const SvdProblem& p, int64_t wanted, int64_t locked, const double* energy) {
  const int64_t surplus = std::max(kSurplus, wanted / kSurplusShare);
  const int64_t rounded = (wanted + surplus + kBlockMultiple - 1) / kBlockMultiple * kBlockMultiple;
  SvdProblem q = p;
  q.rows = p.cols;
  q.norm2 = energy;
  q.whole2 = p.norm2;
  q.rank = wanted;
  q.ranks = nullptr;
  q.locked = locked;
  const int64_t left = p.cols - locked;
  q.block = p.cuts ? std::min(rounded, left) : double(rounded) < kNearlyWhole * double(left) ? rounded : p.cols;
  q.gram = true;
  q.half = false;
  q.tolerance.tol *= p.tolerance.tol < 0 ? 1 : kTopUpShare;
  q.seed = p.seed + kTopUpStream;
  return q;
}

// Share of n^3 that the multiply-adds of a b are.
template <typename T>
double cubes(const Block<T>& a, const Block<T>& b, int64_t n) {
  return double(a.rows) / double(n) * double(a.cols) / double(n) * double(b.cols) / double(n);
}

// A Linalg, which matrices it is about, and what their products have cost. Both parts of the route work through one.
template <typename T>
struct Work {
  Linalg<T>& la;
  const int64_t n;
  std::vector<double> products;  // (count), of n^3 multiply-adds
  std::vector<int64_t> selected;

  void select(const std::vector<int64_t>& matrices) {
    selected = matrices;
    la.select(matrices);
  }

  void spend(double cubes) {
    for (int64_t b : selected) {
      products[b] += cubes;
    }
  }

  void multiply(Block<const T> a, Block<const T> b, Block<T> c, Precision precision) {
    la.multiply_rounded(a, b, c, precision);
    spend(cubes(a, b, n));
  }
};

// Columns of the top-up at most, for a matrix of this rank.
int64_t most_wanted(const SvdProblem& p, int64_t rank) {
  return p.cuts ? p.rank - p.locked : std::min(rank, kMostWindows * window_of(p));
}

template <typename T>
struct Workspace {
  Block<T> g, t, x, y, z;        // (count, n, n)
  Block<T> now, coming, before;  // (count, n, kProbes): three terms of a recurrence
  T* completion;                 // of steps 4 to 6: Completion
  Scratch<T> loop;               // of the top-up
  double *sums, *energy;         // (kMoments + 1, count), (count)
  int64_t* own;                  // (count) Completion
  ScratchSize size;

  Workspace(const SvdProblem& p, const Scratch<T>& base) {
    const int64_t n = p.cols, r = p.rank, most = most_wanted(p, r);
    T* next = base.elements;
    const auto take = [&](int64_t elements) {
      T* data = next;
      next += elements;
      return data;
    };
    for (Block<T>* square : {&g, &t, &x, &y, &z}) {
      *square = Block<T>::dense(take(p.count * n * n), p.count, n, n);
    }
    for (Block<T>* thin : {&now, &coming, &before}) {
      *thin = Block<T>::dense(take(p.count * n * kProbes), p.count, n, kProbes);
    }
    completion = take(p.count * (4 * n * r + 3 * r * r + 2 * n * most + most * r + 2 * most * most));
    SvdProblem largest = top_up_of(p, most, r - most, nullptr);
    largest.block = double(largest.block) < kNearlyWhole * double(n - r) ? largest.block : n;  // as smaller ones may
    const ScratchSize inner = randomized_scratch<T>(largest);
    sums = base.doubles;
    energy = sums + (kMoments + 1) * p.count;
    own = reinterpret_cast<int64_t*>(energy + p.count);
    loop = {take(inner.elements), energy + 2 * p.count};
    size = {next - base.elements, (kMoments + 3) * p.count + inner.doubles};
  }
};

// Steps 4 to 6 for some matrices of the problem, with one number of columns from the projector for all: range(P) has a
// few more for some, and what Q leaves of it comes back in V. Of V each has as many columns as its own rank asks for,
// and zeros behind them.
template <typename T>
struct Completion {
  Work<T>& work;
  Linalg<T>& la;
  const SvdProblem& p;
  const Workspace<T>& ws;
  const SvdResult<T>& out;
  const int64_t n, locked;
  std::vector<int64_t> own;     // (count) columns of V that are a matrix's
  const int64_t wanted;         // columns of V: the most of these
  const bool ragged;            // not all have as many
  const Precision rough;        // of products that give a direction, or the size of a loss
  const Block<T> rest, square;  // (count, n, n)
  Block<T> q, gq, r, s;         // (count, n, locked)
  Block<T> h, f, w;             // (count, locked, locked)
  Block<T> v, u;                // (count, n, wanted)
  Block<T> turned;              // (count, wanted, locked)
  Block<T> gram, factor;        // (count, wanted, wanted)
  const std::vector<double>& norm2;
  std::vector<Progress>& progress;  // of V, then of both
  std::vector<double> cut;          // V's last Ritz value
  std::vector<double> gap;          // (count, wanted): of V's Ritz values to the last of them

  // own: of the matrices that this is about; 0 for the others.
  Completion(Work<T>& work, const SvdProblem& p, const Workspace<T>& ws, const SvdResult<T>& out, int64_t locked,
             const std::vector<int64_t>& own, const std::vector<double>& norm2, std::vector<Progress>& progress)
      : work(work),
        la(work.la),
        p(p),
        ws(ws),
        out(out),
        n(p.cols),
        locked(locked),
        own(own),
        wanted(*std::max_element(own.begin(), own.end())),
        ragged(std::any_of(own.begin(), own.end(), [&](int64_t k) { return k > 0 && k < wanted; })),
        rough(policy_of(p).turn),
        rest(ws.t),
        square(ws.y),
        norm2(norm2),
        progress(progress),
        cut(p.count),
        gap(p.count * wanted) {
    T* next = ws.completion;
    const auto take = [&](int64_t rows, int64_t cols) {
      const Block<T> block = Block<T>::dense(next, p.count, rows, cols);
      next += p.count * rows * cols;
      return block;
    };
    for (Block<T>* thin : {&q, &gq, &r, &s}) {
      *thin = take(n, locked);
    }
    for (Block<T>* small : {&h, &f, &w}) {
      *small = take(locked, locked);
    }
    v = take(n, wanted);
    u = take(n, wanted);
    turned = take(wanted, locked);
    gram = take(wanted, wanted);
    factor = take(wanted, wanted);
    if (ragged) {
      la.send(own.data(), ws.own, own.size() * sizeof(int64_t));
    }
  }

  // The k-th row of ws.sums: a number per matrix.
  double* sums(int k) const { return ws.sums + k * p.count; }

  std::vector<double> read(const double* there) {
    std::vector<double> host(p.count);
    la.read(there, host);
    return host;
  }

  // Step 4: q <- orth( (I + S) Omega / 2 ).
  void lock(Precision precision) {
    la.sketch(r, p.seed + kLockStream, p.keys);
    la.multiply_rounded(ws.x, r, q, precision);
    work.spend(double(locked) / double(n));
    la.add(0.5, r, 0.5, q);
    la.orthonormalize(q, h, f, kLockPasses);
  }

  // gq = G Q, h = Q^T G Q, r = G Q - Q h.
  void project(Precision precision) {
    work.multiply(ws.g, q, gq, precision);
    work.multiply(q.transposed(), gq, f, precision);
    la.copy(f, h);  // what it held may be no number
    la.add_symmetric(0.5, f, 0, h);
    work.multiply(q, h, r, precision);
    la.add(1, gq, -1, r);
  }

  // rest <- (I - Q Q^T) G (I - Q Q^T) = G - Q s^T - s Q^T, s = G Q - Q h / 2.
  void deflate() {
    la.copy(gq, s);
    la.add(0.5, r, 0.5, s);
    work.multiply(q, s.transposed(), square, Precision::kFull);
    la.copy(ws.g, rest);
    la.add_symmetric(-1, square, 1, rest);
  }

  // What G has outside Q, and its energy.
  void find_rest() {
    project(Precision::kFull);
    deflate();
    la.trace(rest, ws.energy);
  }

  // Step 5. Returns those where it succeeded; the progress of the others says how it failed.
  std::vector<int64_t> top_up(const std::vector<int64_t>& matrices) {
    std::vector<int64_t> some, done;
    work.select(matrices);
    find_rest();
    const std::vector<double> energy = read(ws.energy);
    for (int64_t b : matrices) {
      if (energy[b] > p.tolerance.noise * norm2[b]) {
        some.push_back(b);
      } else {  // nothing but rounding is left
        progress[b].status = Status::kPrecision;
      }
    }
    if (some.empty()) {
      return some;
    }
    work.select(some);
    SvdProblem problem = top_up_of(p, wanted, locked, ws.energy);
    problem.ranks = ragged ? ws.own : nullptr;
    randomized_on(la, problem, some, rest, ws.loop, {{}, v, out.progress});
    std::vector<Progress> found(p.count);
    std::vector<double> theta(p.count * problem.block);
    la.read(out.progress, found);
    la.read(ws.loop.doubles, theta);
    for (int64_t b : some) {
      progress[b] = found[b];
      work.products[b] += double(found[b].iterations * problem.block) / double(n);
      const double* ritz = &theta[b * problem.block];
      cut[b] = ritz[own[b] - 1];
      for (int64_t i = 0; i < wanted; ++i) {
        gap[b * wanted + i] = i < own[b] ? ritz[i] - cut[b] : 0.0;
      }
      if (found[b].status == Status::kOk || found[b].status == Status::kUncertified) {
        done.push_back(b);
      }
    }
    if (!done.empty()) {
      work.select(done);
      settle();
    }
    return done;
  }

  // v <- orth( (I - Q Q^T) v ): rest has q in its null space to rounding only.
  void settle() {
    work.multiply(v.transposed(), q, turned, Precision::kFull);
    work.multiply(q, turned.transposed(), u, Precision::kFull);
    la.add(-1, u, 1, v);
    la.orthonormalize(v, gram, factor, kPasses);
    if (ragged) {
      la.truncate(v, ws.own);
    }
  }

  // r <- (I - V V^T) r, and s <- r L^-T with L L^T = h/cut - I: what Q lacks outside [Q V], at most, and what it may
  // win by changing places in V. Infinite where an eigenvalue of h does not exceed cut.
  std::vector<double> loss() {
    work.multiply(v.transposed(), r, turned, rough);
    work.multiply(v, turned, s, rough);
    la.add(-1, s, 1, r);
    divide(cut);
    work.multiply(r, f.transposed(), s, rough);
    la.dot(s, s, sums(1));
    const std::vector<double> failed = read(sums(0)), squares = read(sums(1)), swaps = swapped();
    std::vector<double> missing(p.count);
    for (int64_t b : work.selected) {
      missing[b] = failed[b] != 0 ? std::numeric_limits<double>::infinity() : squares[b] / cut[b] + swaps[b];
    }
    return missing;
  }

  // Together with Q, V's directions may fall below cut, which nothing outside exceeds: [Q V] then holds less than it
  // might by at most the negative eigenvalues of
  //   (diag(V's Ritz values) - cut I) - B^T (h - cut I)^-1 B,   B = Q^T G V = turned^T.
  // What the loop left in its doubles is lost.
  std::vector<double> swapped() {
    const Block<T> x = u.corner(0, 0, locked, wanted);
    work.multiply(f, turned.transposed(), x, Precision::kFull);
    la.gram(x, gram);
    std::vector<T> host(p.count * wanted * wanted);
    la.read(gram.data, host);
    for (int64_t b : work.selected) {
      T* one = &host[b * wanted * wanted];
      for (int64_t i = 0; i < wanted; ++i) {
        for (int64_t j = 0; j < wanted; ++j) {
          one[i * wanted + j] = T((i == j ? gap[b * wanted + i] : 0.0) - double(one[i * wanted + j]) / cut[b]);
        }
      }
    }
    la.send(host.data(), gram.data, host.size() * sizeof(T));
    la.small_eigh(gram, factor, ws.loop.doubles);
    std::vector<double> values(p.count * wanted), lost(p.count, 0.0);
    la.read(ws.loop.doubles, values);
    for (int64_t b : work.selected) {
      for (int64_t i = b * wanted; i < (b + 1) * wanted; ++i) {
        lost[b] += values[i] >= 0 ? 0.0 : -values[i];  // NaN, where it could not be solved, stays
      }
    }
    return lost;
  }

  // f <- L^-1, L L^T = h/level - I. sums(0): not 0, and f = 0, where that is not positive definite.
  void divide(const std::vector<double>& level) {
    std::vector<double> scale(p.count), shift(p.count, -1.0);
    std::transform(level.begin(), level.end(), scale.begin(), [](double x) { return 1 / x; });
    la.affine(h, scale.data(), shift.data(), w);
    la.inverse_factor(w, f, sums(0));
    work.spend(std::pow(double(locked) / double(n), 3) / 3);
  }

  // q <- orth( q + r (h - level I)^-1 ), f being divide's.
  void turn(const std::vector<double>& level) {
    std::vector<double> scale(p.count), shift(p.count, 0.0);
    std::transform(level.begin(), level.end(), scale.begin(), [](double x) { return 1 / std::sqrt(x); });
    la.affine(f, scale.data(), shift.data(), f);
    work.multiply(r, f.transposed(), s, rough);
    work.multiply(s, f, r, rough);
    la.add(1, r, 1, q);
    la.orthonormalize(q, h, f, p.cuts ? kPasses : kTurnPasses);
  }

  static std::vector<double> halved(std::vector<double> theta) {
    for (double& x : theta) {
      x /= 2;
    }
    return theta;
  }

  // Returns those that could be corrected, at half of theta: h reaches down to the level of the others.
  std::vector<int64_t> correct(const std::vector<int64_t>& matrices, const std::vector<double>& theta) {
    const std::vector<double> level = halved(theta);
    std::vector<int64_t> some;
    work.select(matrices);
    divide(level);
    const std::vector<double> failed = read(sums(0));
    std::copy_if(matrices.begin(), matrices.end(), std::back_inserter(some), [&](int64_t b) { return failed[b] == 0; });
    if (!some.empty()) {
      work.select(some);
      turn(level);
    }
    return some;
  }

  // Step 6 on what step 5 left of matrix b.
  void certify(int64_t b, double missing) {
    Progress& found = progress[b];
    missing = missing >= 0 ? missing : HUGE_VAL;  // no answer
    const double noise = p.tolerance.noise * norm2[b], remainder = found.remainder;
    const double floor2 = p.tolerance.floor * p.tolerance.floor * norm2[b];
    found.missing += missing;
    if (remainder + noise <= floor2) {
      found.bound = 0;
      found.status = Status::kOk;
      return;
    }
    const double least = remainder - noise - found.missing;  // at least this much is optimal
    // What Q lacks is counted as if V lacked nothing, and the other way round: hence the loop's factor for both.
    found.bound += certificate::excess(certificate::kSafety * missing, certificate::larger(least, 0.1 * remainder));
    found.status = p.tolerance.tol < 0              ? Status::kUncertified
                   : found.bound <= p.tolerance.tol ? Status::kOk
                                                    : Status::kRunning;
  }

  // The basis [Q V] in out.right.
  void join() {
    la.copy(q, out.right.first_columns(locked));
    la.copy(v, out.right.columns(locked, wanted));
  }

  // Whether a basis is orthonormal, by what basis^T basis - I does to random vectors.
  std::vector<bool> orthonormal(Block<T> basis) {
    const Block<T> z = ws.before.corner(0, 0, basis.cols, kProbes), back = ws.coming.corner(0, 0, basis.cols, kProbes);
    la.sketch(z, p.seed, p.keys);
    if (ragged) {
      la.truncate(z.transposed(), p.ranks);
    }
    work.multiply(basis, z, ws.now, Precision::kFull);
    work.multiply(basis.transposed(), ws.now, back, Precision::kFull);
    la.add(-1, z, 1, back);
    la.dot(back, back, sums(0));
    la.dot(z, z, sums(1));
    const std::vector<double> off = read(sums(0)), all = read(sums(1));
    std::vector<bool> holds(p.count);
    for (int64_t b : work.selected) {
      holds[b] = off[b] <= std::pow(kDefect * p.tolerance.eps, 2) * double(n) * all[b];
    }
    return holds;
  }

  // Returns those whose basis was spoiled, and is not delivered.
  std::vector<int64_t> deliver(const std::vector<int64_t>& matrices) {
    std::vector<int64_t> good, spoiled;
    work.select(matrices);
    join();
    const std::vector<bool> holds = orthonormal(out.right.first_columns(locked + wanted));
    for (int64_t b : matrices) {
      (holds[b] ? good : spoiled).push_back(b);
    }
    if (!good.empty()) {
      work.select(good);
      la.forward(out.right, out.left, Precision::kFull);
    }
    for (int64_t b : good) {
      progress[b].projected = int(locked);
    }
    return spoiled;
  }

  // edge: about lambda_r. Nothing is read and nothing judged; out.progress is the top-up's.
  void run_blind(const std::vector<int64_t>& all, Precision precision, const std::vector<double>& edge) {
    work.selected = all;  // as the object is: la.select would copy
    lock(precision);
    project(rough);
    divide(halved(edge));  // f = 0 where the cut was wrong, and then q stays
    turn(halved(edge));
    find_rest();
    randomized_on(la, top_up_of(p, wanted, locked, ws.energy), all, rest, ws.loop, {{}, v, out.progress});
    settle();
    join();
    la.forward(out.right, out.left, Precision::kFull);
  }

  // Returns those that the projector misled beyond what corrections can mend.
  std::vector<int64_t> run(std::vector<int64_t> running, Precision precision, const std::vector<double>& edge) {
    std::vector<int64_t> misled;
    std::vector<double> before(p.count, std::numeric_limits<double>::infinity());
    work.select(running);
    lock(precision);
    project(rough);
    correct(running, edge);
    for (int correction = 0;; ++correction) {
      running = top_up(running);
      if (running.empty()) {
        break;
      }
      const std::vector<double> missing = loss();
      std::vector<int64_t> certified, open, mendable;
      for (int64_t b : running) {
        certify(b, missing[b]);
        (progress[b].status == Status::kRunning ? open : certified).push_back(b);
      }
      if (!certified.empty()) {
        const std::vector<int64_t> spoiled = deliver(certified);
        open.insert(open.end(), spoiled.begin(), spoiled.end());
        std::sort(open.begin(), open.end());
      }
      for (int64_t b : open) {
        const bool stalled = std::isfinite(before[b]) && !(missing[b] <= kStalled * before[b]);
        if (correction < kCorrections && !stalled) {
          mendable.push_back(b);
        }
      }
      running = mendable.empty() ? mendable : correct(mendable, cut);
      std::set_difference(open.begin(), open.end(), running.begin(), running.end(), std::back_inserter(misled));
      if (running.empty()) {
        break;
      }
      before = missing;
    }
    std::sort(misled.begin(), misled.end());
    for (int64_t b : misled) {
      progress[b].status = Status::kPrecision;
    }
    return misled;
  }
};

// One run of the route on a batch.
template <typename T>
struct Projection {
  Work<T> work;
  Linalg<T>& la;
  const SvdProblem& p;
  Workspace<T> ws;
  const SvdResult<T> out;
  const int64_t n, window;
  std::vector<int64_t> ranks;           // (count)
  std::vector<double> norm2, mu, edge;  // (count); edge: about lambda_r
  std::vector<double> level, resolved;  // (count); t_1, and the distance from it at which the sign must hold
  std::vector<Progress> progress;

  Projection(Linalg<T>& la, const SvdProblem& p, const Scratch<T>& scratch, const SvdResult<T>& out)
      : work{la, p.cols, std::vector<double>(p.count), {}},
        la(la),
        p(p),
        ws(p, scratch),
        out(out),
        n(p.cols),
        window(window_of(p)),
        ranks(p.count, p.rank),
        norm2(p.count),
        mu(p.count, 1.0),
        edge(p.count),
        level(p.count),
        resolved(p.count),
        progress(p.count) {}

  std::vector<int64_t> running() const {
    std::vector<int64_t> some;
    for (int64_t b = 0; b < p.count; ++b) {
      if (progress[b].status == Status::kRunning) {
        some.push_back(b);
      }
    }
    return some;
  }

  // T of the selected matrices in ws.t. ws.sums: not 0 where G/mu + I is not positive definite to rounding.
  void transform(Precision precision) {
    std::vector<double> one(p.count, 1.0), minus_two(p.count, -2.0), inverse(p.count);
    std::transform(mu.begin(), mu.end(), inverse.begin(), [](double m) { return 1 / m; });
    la.affine(ws.g, inverse.data(), one.data(), ws.x);
    la.inverse_factor(ws.x, ws.y, ws.sums);
    work.spend(1.0 / 3);
    work.multiply(ws.y.transposed(), ws.y, ws.x, precision);
    la.affine(ws.x, minus_two.data(), one.data(), ws.t);
  }

  void squeeze(Precision precision) {
    std::vector<double> failed(p.count);
    transform(precision);
    la.read(ws.sums, failed);
    for (int64_t b : work.selected) {
      if (failed[b] != 0) {
        progress[b].status = Status::kPrecision;
      }
    }
  }

  // found[b][k] = trace(T_k(T)) of the selected matrices: exact for k = 0 and 1, estimated for the others.
  std::vector<std::vector<double>> moments(Precision precision) {
    const bool half = precision != Precision::kFull;  // counts need no more
    const Block<BFloat16> rounded = Block<BFloat16>::dense(reinterpret_cast<BFloat16*>(ws.z.data), p.count, n, n);
    if (half) {
      la.round(ws.t, rounded);
    }
    const auto apply = [&](Block<T> from, Block<T> to) {
      half ? la.multiply_half(rounded, from, to) : la.multiply(ws.t, from, to);
      work.spend(cubes(ws.t, from, n));
    };
    const auto dots = [&](int k) { return ws.sums + k * p.count; };
    la.sketch(ws.before, p.seed, p.keys);
    apply(ws.before, ws.now);
    la.dot(ws.before, ws.before, dots(0));
    la.dot(ws.before, ws.now, dots(1));
    for (int k = 2; k < kMoments; k += 2) {  // now = T_k/2 z
      apply(ws.now, ws.coming);
      la.recur(ws.before, ws.now, ws.coming, dots(k));
      std::swap(ws.before, ws.now);
      std::swap(ws.now, ws.coming);
    }
    la.trace(ws.t, dots(kMoments));
    std::vector<double> host((kMoments + 1) * p.count);
    la.read(ws.sums, host);
    std::vector<std::vector<double>> found(p.count, std::vector<double>(kMoments));
    for (int64_t b : work.selected) {
      const auto of = [&](int k) { return host[k * p.count + b]; };
      found[b][0] = double(n);
      found[b][1] = of(kMoments);
      for (int k = 2; k < kMoments; k += 2) {  // T_2j = 2 T_j^2 - 1, T_2j+1 = 2 T_j T_j+1 - T_1
        found[b][k] = double(n) * (2 * of(k) / of(0) - 1);
        found[b][k + 1] = double(n) * (2 * of(k + 1) - of(1)) / of(0);
      }
    }
    return found;
  }

  // Whether rounding hides what tol asks for: noise alone keeps the top-up's bound above its share, were the tail's
  // energy even this much larger than found.
  bool hides(double tail2, double whole2) const {
    return p.tolerance.noise * whole2 > 2 * kTopUpShare * p.tolerance.tol * kTailError * tail2;
  }

  // Whether it may be: not without a tolerance, nor where a tail in the noise counts as none.
  bool may_hide() const { return p.tolerance.tol >= 0 && p.tolerance.noise > p.tolerance.floor * p.tolerance.floor; }

  // Steps 1 and 2. Leaves T in ws.t.
  void search(Precision precision) {
    la.read(p.norm2, norm2);
    if (p.ranks) {
      la.read(p.ranks, ranks);
    }
    for (int64_t b = 0; b < p.count; ++b) {
      if (!(norm2[b] > 0) || ranks[b] <= window || ranks[b] == n) {
        progress[b].status = Status::kNotConverged;
      } else {
        mu[b] = norm2[b] / double(n);  // the mean eigenvalue
      }
    }
    std::vector<int64_t> todo = running();
    if (todo.empty()) {
      return;
    }
    work.select(todo);
    la.weight_gram(ws.g);
    work.spend(0.5 * double(p.rows) / double(n));
    for (int search = 0; search < kSearches && !todo.empty(); ++search) {
      work.select(todo);
      squeeze(precision);
      const std::vector<std::vector<double>> moment = moments(precision);
      todo.clear();
      for (int64_t b : work.selected) {
        const double cut = level_of(moment[b], double(ranks[b]));
        if (progress[b].status != Status::kRunning) {
          continue;
        }
        edge[b] = mu[b] * (1 + cut) / (1 - cut);
        const bool centred = std::abs(cut) <= kCentred;
        // Away from 0 the cut is a rough one: then as if all eigenvalues were of its size.
        const auto tail2 = [&] { return centred ? mu[b] * sum_below(moment[b], cut) : double(n) * edge[b]; };
        if (!(std::abs(cut) < 1) || (may_hide() && hides(tail2(), norm2[b]))) {
          progress[b].status = Status::kPrecision;
        } else if (!centred) {
          mu[b] = edge[b];
          todo.push_back(b);
        } else {
          level[b] = level_of(moment[b], double(ranks[b] - window));
          resolved[b] = kResolved * (level[b] - cut);
        }
      }
    }
    for (int64_t b : todo) {
      progress[b].status = Status::kNotConverged;
    }
  }

  // Step 3 on the selected matrices: S in ws.x, which errs by `error` outside the window.
  void sign(Precision precision, double error) {
    std::vector<double> scale(p.count), shift(p.count);
    double low = 1;
    for (int64_t b : work.selected) {
      scale[b] = 1 / ((1 + std::abs(level[b])) * kMargin);
      shift[b] = -level[b] * scale[b];
      low = std::min(low, std::max(resolved[b] * scale[b], kLeastResolved));
    }
    la.affine(ws.t, scale.data(), shift.data(), ws.x);
    for (const Quintic& step : sign_quintics(low, error)) {
      work.multiply(ws.x, ws.x, ws.y, precision);
      work.multiply(ws.y, ws.y, ws.z, precision);
      la.add(step.b, ws.y, step.c, ws.z);
      work.multiply(ws.x, ws.z, ws.y, precision);
      la.add_symmetric(0.5, ws.y, step.a, ws.x);
    }
  }

  // sign(), and how many eigenvalues it found above the level, for all matrices.
  std::vector<double> project(Precision precision, double error) {
    std::vector<double> count(p.count);
    sign(precision, error);
    la.trace(ws.x, ws.sums);
    la.read(ws.sums, count);
    for (double& c : count) {
      c = (c + double(n)) / 2;
    }
    return count;
  }

  // Steps 3 to 6 on the matrices that are running. Returns those that a better projector may help.
  std::vector<int64_t> attempt(Precision precision) {
    if (running().empty()) {
      return {};
    }
    work.select(running());
    const std::vector<double> above = project(precision, kSignError);
    std::vector<int64_t> some, misled;
    for (int64_t b : work.selected) {
      const double wanted = double(ranks[b]) - above[b];
      if (wanted > 0.5 && wanted < double(most_wanted(p, ranks[b])) + 0.5 && above[b] >= 0.5) {
        some.push_back(b);
      } else {
        progress[b].status = Status::kNotConverged;
      }
    }
    while (!some.empty()) {
      const std::vector<int64_t> lost = complete(alike(some, above), precision);
      misled.insert(misled.end(), lost.begin(), lost.end());
    }
    std::sort(misled.begin(), misled.end());
    return misled;
  }

  // Those that go through steps 4 to 6 together, and how many columns of each come from the projector.
  struct Alike {
    int64_t locked;
    std::vector<int64_t> matrices;
  };

  // Takes out of `some` those to which the fewest columns that one of them has leave no more to top up than there is
  // room for: all of them, where ranks are equal.
  Alike alike(std::vector<int64_t>& some, const std::vector<double>& above) const {
    Alike found{p.rank, {}};
    for (int64_t b : some) {
      found.locked = std::min(found.locked, int64_t(std::lround(above[b])));
    }
    const int64_t most = found.locked + most_wanted(p, p.rank);
    const auto rest = std::stable_partition(some.begin(), some.end(), [&](int64_t b) { return ranks[b] <= most; });
    found.matrices.assign(some.begin(), rest);
    some.erase(some.begin(), rest);
    return found;
  }

  std::vector<int64_t> complete(const Alike& group, Precision precision) {
    std::vector<int64_t> own(p.count, 0);
    for (int64_t b : group.matrices) {
      own[b] = ranks[b] - group.locked;
    }
    return Completion<T>(work, p, ws, out, group.locked, own, norm2, progress).run(group.matrices, precision, edge);
  }

  // Step 3 alone, at levels that are given. unresolved: trace(I - S^2), the eigenvalues that S left between -1 and 1.
  std::vector<EigenvalueCount> count(Block<const T> h, const double* above) {
    std::vector<EigenvalueCount> found(p.count);
    std::vector<double> total(p.count), squares(p.count), probes(p.count);
    work.select(running());
    la.copy(h, ws.g);
    la.trace(ws.g, ws.sums);
    la.read(ws.sums, total);
    for (int64_t b = 0; b < p.count; ++b) {
      const double rounding = std::numeric_limits<T>::epsilon() * total[b];  // of h's eigenvalues
      if (above[b] >= total[b]) {                                            // none can be
        progress[b].status = Status::kOk;
      } else if (!(above[b] > 0 && rounding <= kCountResolved * above[b])) {
        progress[b].status = Status::kPrecision;
      }
      mu[b] = above[b] > 0 ? above[b] : 1.0;
      resolved[b] = kCountResolved;
    }
    if (!running().empty()) {
      work.select(running());
      squeeze(Precision::kFull);
      const std::vector<double> traces = project(Precision::kFull, kCountError);
      la.sketch(ws.before, p.seed, p.keys);
      work.multiply(ws.x, ws.before, ws.now, Precision::kFull);
      la.dot(ws.now, ws.now, ws.sums);
      la.read(ws.sums, squares);
      la.dot(ws.before, ws.before, ws.sums);
      la.read(ws.sums, probes);
      for (int64_t b : work.selected) {
        found[b] = {double(std::lround(traces[b])), double(n) * std::abs(1 - squares[b] / probes[b])};
        found[b].unresolved = std::max(found[b].unresolved, std::abs(traces[b] - found[b].above));
      }
    }
    for (int64_t b = 0; b < p.count; ++b) {
      found[b].unresolved = progress[b].status == Status::kPrecision ? double(n) : found[b].unresolved;
    }
    return found;
  }

  // Steps 3 to 5 once, with the cuts that are given.
  void run_blind() {
    const Precision precision = policy_of(p).first;
    la.weight_gram(ws.g);
    for (int64_t b = 0; b < p.count; ++b) {
      mu[b] = p.cuts[b].level;  // which T sends to 0
      resolved[b] = kResolved * (mu[b] - p.cuts[b].edge) / (mu[b] + p.cuts[b].edge);
    }
    work.selected = running();
    transform(precision);
    sign(precision, kSignError);
    std::transform(p.cuts, p.cuts + p.count, edge.begin(), [](const Cut& cut) { return cut.edge; });
    const std::vector<int64_t> own(p.count, p.rank - p.locked);
    Completion<T>(work, p, ws, out, p.locked, own, norm2, progress).run_blind(work.selected, precision, edge);
  }

  void run() {
    const Policy policy = policy_of(p);
    search(policy.first);
    const std::vector<int64_t> again = attempt(policy.first);
    if (!again.empty() && policy.second != policy.first) {
      for (int64_t b : again) {
        progress[b] = {};
      }
      work.select(again);
      squeeze(policy.second);
      attempt(policy.second);
    }
    for (int64_t b = 0; b < p.count; ++b) {
      progress[b].iterations = std::lround(work.products[b]);
    }
    la.send(progress.data(), out.progress, progress.size() * sizeof(Progress));
  }
};

}  // namespace

int64_t top_up_block(const SvdProblem& p) { return top_up_of(p, p.rank - p.locked, p.locked, nullptr).block; }

template <typename T>
ScratchSize spectral_scratch(const SvdProblem& p) {
  return Workspace<T>(p, {nullptr, nullptr}).size;
}

template <typename T>
void spectral(Linalg<T>& la, const SvdProblem& p, const Scratch<T>& scratch, const SvdResult<T>& out) {
  Projection<T> projection(la, p, scratch, out);
  p.cuts ? projection.run_blind() : projection.run();
}

namespace {

// What step 3 alone needs to know of a problem.
SvdProblem counting(int64_t count, int64_t n, const int64_t* keys) {
  SvdProblem p{};
  p.count = count;
  p.rows = p.cols = n;
  p.keys = keys;
  return p;
}

}  // namespace

template <typename T>
ScratchSize count_eigenvalues_scratch(int64_t count, int64_t n) {
  return spectral_scratch<T>(counting(count, n, nullptr));
}

template <typename T>
std::vector<EigenvalueCount> count_eigenvalues(Linalg<T>& la, Block<const T> h, const double* above,
                                               const Scratch<T>& scratch) {
  const std::vector<int64_t> keys(h.count, 0);
  const SvdProblem p = counting(h.count, h.cols, keys.data());
  return Projection<T>(la, p, scratch, {}).count(h, above);
}

template ScratchSize count_eigenvalues_scratch<float>(int64_t, int64_t);
template ScratchSize count_eigenvalues_scratch<double>(int64_t, int64_t);
template std::vector<EigenvalueCount> count_eigenvalues(Linalg<float>&, Block<const float>, const double*,
                                                        const Scratch<float>&);
template std::vector<EigenvalueCount> count_eigenvalues(Linalg<double>&, Block<const double>, const double*,
                                                        const Scratch<double>&);
template ScratchSize spectral_scratch<float>(const SvdProblem&);
template ScratchSize spectral_scratch<double>(const SvdProblem&);
template void spectral(Linalg<float>&, const SvdProblem&, const Scratch<float>&, const SvdResult<float>&);
template void spectral(Linalg<double>&, const SvdProblem&, const Scratch<double>&, const SvdResult<double>&);

}  // namespace laser
