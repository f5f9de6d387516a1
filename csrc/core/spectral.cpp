// SPECTRAL: the leading right singular subspace by matrix products alone, whatever its dimension.
//
//   1 search     T = I - 2 (G/mu + I)^-1 has the eigenvalues (lambda - mu) / (lambda + mu): outliers go to 1, the cut
//   is
//                brought to 0. Chebyshev moments of T count its eigenvalues; mu <- the mu that the count asks for.
//   2 bracket    level t_1 of T above which all but about d of the r wanted eigenvalues lie
//   3 project    S = sign(T - t_1 I) by odd quintics;  R = trace (I + S) / 2 <= r
//   4 lock       Q = orth( (I + S) Omega / 2 ), (n, R), then once: correct, with theta = the cut that step 1 found
//   5 top up     V = leading r - R Ritz vectors of (I - Q Q^T) G (I - Q Q^T), by the RANDOMIZED loop
//   6 certify    H = Q^T G Q, R = G Q - Q H - V V^T G Q, L L^T = H - theta I, theta = V's last Ritz value:
//                no vector outside reaches theta, so that Q lacks at most ||L^-1 R^T||_F^2; V lacks what the loop says
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
// 1 to 3, and are followed by better ones only where the certificate asks.
//
// Refs: Nakatsukasa, Higham (2013): spectral divide and conquer by the sign function. Weisse et al. (2006): counting.
// Amsel et al. (arXiv 2505.16932): quintics. Ky Fan (1949): what the best r-dimensional subspace captures. The Cayley
// transform, the window and the certificate are ours (DEVNOTES.md, "SPECTRAL").
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
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

// The top-up's share of tol. What Q lacks falls by orders of magnitude with each correction, what V lacks costs steps.
constexpr double kTopUpShare = 0.75;

// Corrections of Q at most; one that leaves more than this share of what was missing has met rounding.
constexpr int kCorrections = 3;
constexpr double kStalled = 0.5;

// Passes of CholeskyQR. (I + S) Omega has the condition of a square Gaussian matrix, about R, and is only multiplied on
// before kPasses more.
constexpr int kLockPasses = 2;
constexpr int kPasses = 2;

// Deviation of a basis from an orthonormal one that is rounding, in eps sqrt(n): orthonormality_bound of
// laser_kernels/testing.py.
constexpr double kDefect = 8.0;

// Seeds beyond the problem's, which draws the probes. The top-up must not begin with Omega: Q holds P Omega, and what
// is left of Omega's columns has nothing of the eigenvectors that Q still lacks.
constexpr uint64_t kLockStream = 1;
constexpr uint64_t kTopUpStream = 2;

// Precision of products in steps 1 to 3, and of a second attempt where the first one's projector misled.
struct Policy {
  double tol;  // down to
  Precision first, second;
};
constexpr Policy kPolicies[] = {{1e-4, Precision::kHalf, Precision::kPair}, {0, Precision::kPair, Precision::kFull}};

Policy policy_of(const SvdProblem& p) {
  if (!p.half) {
    return {0, Precision::kFull, Precision::kFull};
  }
  const double tol = p.tolerance.tol;
  return tol < 0 || tol >= kPolicies[0].tol ? kPolicies[0] : kPolicies[1];
}

int64_t window_of(const SvdProblem& p) {
  return std::max(kWindow, int64_t(std::lround(kWindowShare * double(p.cols))));
}

// The top-up as a problem of its own, for `wanted` vectors.
SvdProblem top_up_of(const SvdProblem& p, int64_t b, int64_t wanted, double share, const double* norm2) {
  const int64_t surplus = std::max(kSurplus, wanted / kSurplusShare);
  const int64_t rounded = (wanted + surplus + kBlockMultiple - 1) / kBlockMultiple * kBlockMultiple;
  SvdProblem q = p;
  q.count = 1;
  q.rows = p.cols;
  q.norm2 = norm2;
  q.rank = wanted;
  q.block = std::min(rounded, p.cols - p.rank + wanted);
  q.gram = true;
  q.half = false;
  q.tolerance.tol *= p.tolerance.tol < 0 ? 1 : kTopUpShare;
  q.tolerance.noise /= share;  // of this problem's energy
  q.tolerance.floor /= std::sqrt(share);
  q.seed = p.seed + kTopUpStream;
  q.keys = p.keys + b;
  return q;
}

// Share of n^3 that the multiply-adds of a b are.
template <typename T>
double cubes(const Block<T>& a, const Block<T>& b, int64_t n) {
  return double(a.rows) / double(n) * double(a.cols) / double(n) * double(b.cols) / double(n);
}

int64_t most_wanted(const SvdProblem& p) {
  return p.cuts ? p.rank - p.locked : std::min(p.rank, kMostWindows * window_of(p));
}

template <typename T>
struct Workspace {
  Block<T> g, t, x, y, z;        // (count, n, n)
  Block<T> now, coming, before;  // (count, n, kProbes): three terms of a recurrence
  T* one;                        // of steps 4 to 6, for one matrix: Completion
  Scratch<T> loop;               // of the top-up
  double *sums, *energy;         // (kMoments + 1, count), (1)
  ScratchSize size;

  Workspace(const SvdProblem& p, const Scratch<T>& base) {
    const int64_t n = p.cols, r = p.rank, most = most_wanted(p);
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
    one = take(4 * n * r + 3 * r * r + 2 * n * most + most * r + 2 * most * most);
    const ScratchSize inner = randomized_scratch<T>(top_up_of(p, 0, most, 1, nullptr));
    sums = base.doubles;
    energy = sums + (kMoments + 1) * p.count;
    loop = {take(inner.elements), energy + 1};
    size = {next - base.elements, (kMoments + 1) * p.count + 1 + inner.doubles};
  }
};

// Steps 4 to 6 for matrix b of the problem, which is matrix 0 to `la`.
template <typename T>
struct Completion {
  Linalg<T>& la;
  const SvdProblem& p;
  const Workspace<T>& ws;
  const SvdResult<T>& out;
  const int64_t b, n, locked, wanted;  // wanted: columns of V
  const Block<T> g, rest, square;      // (n, n)
  Block<T> q, gq, r, s;                // (n, locked)
  Block<T> h, f, w;                    // (locked, locked)
  Block<T> v, u;                       // (n, wanted)
  Block<T> turned;                     // (wanted, locked)
  Block<T> gram, factor;               // (wanted, wanted)
  const double norm2;
  double& products;
  Progress progress;    // of V, then of both
  double cut = 0;       // V's last Ritz value
  bool misled = false;  // by the projector, beyond what corrections can mend

  Completion(Linalg<T>& la, const SvdProblem& p, const Workspace<T>& ws, const SvdResult<T>& out, int64_t b,
             int64_t locked, double norm2, double& products)
      : la(la),
        p(p),
        ws(ws),
        out(out),
        b(b),
        n(p.cols),
        locked(locked),
        wanted(p.rank - locked),
        g(ws.g.matrix(b)),
        rest(ws.t.matrix(b)),
        square(ws.y.matrix(b)),
        norm2(norm2),
        products(products) {
    T* next = ws.one;
    const auto take = [&](int64_t rows, int64_t cols) {
      const Block<T> block = Block<T>::dense(next, 1, rows, cols);
      next += rows * cols;
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
  }

  void multiply(Block<const T> a, Block<const T> c, Block<T> to) {
    la.multiply_rounded(a, c, to, Precision::kFull);
    products += cubes(a, c, n);
  }

  double norm_of(Block<const T> x) {
    la.dot(x, x, ws.sums);
    return first(ws.sums);
  }

  double first(const double* there) {
    std::vector<double> host(1);
    la.read(there, host);
    return host[0];
  }

  // Step 4: q <- orth( (I + S) Omega / 2 ).
  void lock(Precision precision) {
    la.sketch(r, p.seed + kLockStream, p.keys + b);
    la.multiply_rounded(ws.x.matrix(b), r, q, precision);
    products += double(locked) / double(n);
    la.add(0.5, r, 0.5, q);
    la.orthonormalize(q, h, f, kLockPasses);
  }

  // gq = G Q, h = Q^T G Q, r = G Q - Q h.
  void project() {
    multiply(g, q, gq);
    multiply(q.transposed(), gq, f);
    la.copy(f, h);  // what it held may be no number
    la.add_symmetric(0.5, f, 0, h);
    multiply(q, h, r);
    la.add(1, gq, -1, r);
  }

  // rest <- (I - Q Q^T) G (I - Q Q^T) = G - Q s^T - s Q^T, s = G Q - Q h / 2.
  void deflate() {
    la.copy(gq, s);
    la.add(0.5, r, 0.5, s);
    multiply(q, s.transposed(), square);
    la.copy(g, rest);
    la.add_symmetric(-1, square, 1, rest);
  }

  // Step 5. False where it failed; progress says how.
  bool top_up() {
    find_rest();
    const double share = first(ws.energy) / norm2;
    if (!(share > p.tolerance.noise)) {  // nothing but rounding is left
      progress.status = Status::kPrecision;
      return false;
    }
    const SvdProblem problem = top_up_of(p, b, wanted, share, ws.energy);
    randomized_on(la, problem, rest, ws.loop, {{}, v, out.progress + b});
    std::vector<Progress> host(1);
    la.read(out.progress + b, host);
    progress = host[0];
    products += double(progress.iterations * problem.block) / double(n);
    cut = first(ws.loop.doubles + wanted - 1);
    if (progress.status != Status::kOk && progress.status != Status::kUncertified) {
      return false;
    }
    settle();
    return true;
  }

  // What G has outside Q, and its energy.
  void find_rest() {
    project();
    deflate();
    la.trace(rest, ws.energy);
  }

  // v <- orth( (I - Q Q^T) v ): rest has q in its null space to rounding only.
  void settle() {
    multiply(v.transposed(), q, turned);
    multiply(q, turned.transposed(), u);
    la.add(-1, u, 1, v);
    la.orthonormalize(v, gram, factor, kPasses);
  }

  // r <- (I - V V^T) r, and s <- r L^-T with L L^T = h/cut - I: what Q lacks, at most. Infinite where an eigenvalue of
  // h does not exceed cut.
  double loss() {
    multiply(v.transposed(), r, turned);
    multiply(v, turned, s);
    la.add(-1, s, 1, r);
    divide(cut, f);
    if (first(ws.sums) != 0) {
      return std::numeric_limits<double>::infinity();
    }
    multiply(r, f.transposed(), s);
    return norm_of(s) / cut;
  }

  // inverse <- L^-1, L L^T = h/level - I. ws.sums: not 0 where that is not positive definite.
  void divide(double level, Block<T> inverse) {
    const double scale = 1 / level, shift = -1;
    la.affine(h, &scale, &shift, w);
    la.inverse_factor(w, inverse, ws.sums);
    products += std::pow(double(locked) / double(n), 3) / 3;
  }

  // q <- orth( q + r (h - level I)^-1 ), f being divide's.
  void turn(double level) {
    multiply(r, f.transposed(), s);
    multiply(s, f, r);
    la.add(1 / level, r, 1, q);
    la.orthonormalize(q, h, f, kPasses);
  }

  // False where h reaches down to the level.
  bool correct(double level) {
    divide(level, f);
    if (first(ws.sums) != 0) {
      return false;
    }
    turn(level);
    return true;
  }

  // Step 6 on what step 5 left.
  void certify(double missing) {
    const double noise = p.tolerance.noise * norm2, remainder = progress.remainder;
    const double floor2 = p.tolerance.floor * p.tolerance.floor * norm2;
    progress.missing += missing;
    if (remainder + noise <= floor2) {
      progress.bound = 0;
      progress.status = Status::kOk;
      return;
    }
    const double least = remainder - noise - progress.missing;  // at least this much is optimal
    // What Q lacks is counted as if V lacked nothing, and the other way round: hence the loop's factor for both.
    progress.bound += certificate::kSafety * missing / (2 * certificate::larger(least, 0.1 * remainder));
    progress.status = p.tolerance.tol < 0                 ? Status::kUncertified
                      : progress.bound <= p.tolerance.tol ? Status::kOk
                                                          : Status::kRunning;
  }

  // By what basis^T basis - I does to random vectors.
  bool orthonormal(Block<T> basis) {
    const Block<T> z = ws.before.matrix(b).corner(0, 0, p.rank, kProbes), y = ws.now.matrix(b);
    const Block<T> back = ws.coming.matrix(b).corner(0, 0, p.rank, kProbes);
    la.sketch(z, p.seed, p.keys + b);
    multiply(basis, z, y);
    multiply(basis.transposed(), y, back);
    la.add(-1, z, 1, back);
    return norm_of(back) <= std::pow(kDefect * p.tolerance.eps, 2) * double(n) * norm_of(z);
  }

  // The basis [Q V] in out.right.
  Block<T> join() {
    const Block<T> right = out.right.matrix(b);
    la.copy(q, right.first_columns(locked));
    la.copy(v, right.columns(locked, wanted));
    return right;
  }

  // False where the basis was spoiled.
  bool deliver() {
    const Block<T> right = join();
    if (!orthonormal(right)) {
      return false;
    }
    la.forward(right, out.left.matrix(b), Precision::kFull);
    progress.projected = int(locked);
    return true;
  }

  // edge: about lambda_r. Nothing is read and nothing judged; out.progress is the top-up's.
  void run_blind(Precision precision, double edge) {
    lock(precision);
    project();
    divide(edge / 2, f);  // 0 where the cut was wrong, and then q stays
    turn(edge / 2);
    find_rest();
    randomized_on(la, top_up_of(p, b, wanted, 1, ws.energy), rest, ws.loop, {{}, v, out.progress + b});
    settle();
    la.forward(join(), out.left.matrix(b), Precision::kFull);
  }

  Progress run(Precision precision, double edge) {
    lock(precision);
    project();
    correct(edge / 2);
    double before = std::numeric_limits<double>::infinity();
    for (int correction = 0;; ++correction) {
      if (!top_up()) {
        return progress;
      }
      const double missing = loss();
      certify(missing);
      if (progress.status != Status::kRunning && deliver()) {
        return progress;
      }
      const bool stalled = std::isfinite(before) && !(missing <= kStalled * before);
      if (correction == kCorrections || stalled || !correct(cut / 2)) {
        misled = true;
        progress.status = Status::kPrecision;
        return progress;
      }
      before = missing;
    }
  }
};

// One run of the route on a batch: steps 1 to 3 together, the others on one matrix after another.
template <typename T>
struct Projection {
  Linalg<T>& la;
  const SvdProblem& p;
  Workspace<T> ws;
  const SvdResult<T> out;
  const int64_t n, window;
  std::vector<double> norm2, mu, edge;  // (count); edge: about lambda_r
  std::vector<double> level, resolved;  // (count); t_1, and the distance from it at which the sign must hold
  std::vector<double> products;         // (count), of n^3 multiply-adds
  std::vector<Progress> progress;
  std::vector<int64_t> selected;

  Projection(Linalg<T>& la, const SvdProblem& p, const Scratch<T>& scratch, const SvdResult<T>& out)
      : la(la),
        p(p),
        ws(p, scratch),
        out(out),
        n(p.cols),
        window(window_of(p)),
        norm2(p.count),
        mu(p.count, 1.0),
        edge(p.count),
        level(p.count),
        resolved(p.count),
        products(p.count),
        progress(p.count) {}

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
    spend(1.0 / 3);
    multiply(ws.y.transposed(), ws.y, ws.x, precision);
    la.affine(ws.x, minus_two.data(), one.data(), ws.t);
  }

  void squeeze(Precision precision) {
    std::vector<double> failed(p.count);
    transform(precision);
    la.read(ws.sums, failed);
    for (int64_t b : selected) {
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
      spend(cubes(ws.t, from, n));
    };
    const auto dots = [&](int k) { return ws.sums + k * p.count; };
    la.sketch(ws.before, p.seed, p.keys);
    apply(ws.before, ws.now);
    la.dot(ws.before, ws.before, dots(0));
    la.dot(ws.before, ws.now, dots(1));
    for (int k = 2; k < kMoments; k += 2) {  // now = T_k/2 z
      la.dot(ws.now, ws.now, dots(k));
      apply(ws.now, ws.coming);
      la.add(-1, ws.before, 2, ws.coming);
      la.dot(ws.now, ws.coming, dots(k + 1));
      std::swap(ws.before, ws.now);
      std::swap(ws.now, ws.coming);
    }
    la.trace(ws.t, dots(kMoments));
    std::vector<double> host((kMoments + 1) * p.count);
    la.read(ws.sums, host);
    std::vector<std::vector<double>> found(p.count, std::vector<double>(kMoments));
    for (int64_t b : selected) {
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

  // Steps 1 and 2. Leaves T in ws.t.
  void search(Precision precision) {
    la.read(p.norm2, norm2);
    for (int64_t b = 0; b < p.count; ++b) {
      if (!(norm2[b] > 0) || p.rank <= window || p.rank == n) {
        progress[b].status = Status::kNotConverged;
      } else {
        mu[b] = norm2[b] / double(n);  // the mean eigenvalue
      }
    }
    std::vector<int64_t> todo = running();
    if (todo.empty()) {
      return;
    }
    select(todo);
    la.weight_gram(ws.g);
    spend(0.5 * double(p.rows) / double(n));
    for (int search = 0; search < kSearches && !todo.empty(); ++search) {
      select(todo);
      squeeze(precision);
      const std::vector<std::vector<double>> moment = moments(precision);
      todo.clear();
      for (int64_t b : selected) {
        const double cut = level_of(moment[b], double(p.rank));
        if (progress[b].status != Status::kRunning) {
          continue;
        }
        edge[b] = mu[b] * (1 + cut) / (1 - cut);
        if (!(std::abs(cut) < 1)) {
          progress[b].status = Status::kPrecision;
        } else if (std::abs(cut) > kCentred) {
          mu[b] = edge[b];
          todo.push_back(b);
        } else {
          level[b] = level_of(moment[b], double(p.rank - window));
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
    for (int64_t b : selected) {
      scale[b] = 1 / ((1 + std::abs(level[b])) * kMargin);
      shift[b] = -level[b] * scale[b];
      low = std::min(low, std::max(resolved[b] * scale[b], kLeastResolved));
    }
    la.affine(ws.t, scale.data(), shift.data(), ws.x);
    for (const Quintic& step : sign_quintics(low, error)) {
      multiply(ws.x, ws.x, ws.y, precision);
      multiply(ws.y, ws.y, ws.z, precision);
      la.add(step.b, ws.y, step.c, ws.z);
      multiply(ws.x, ws.z, ws.y, precision);
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

  // Steps 4 to 6 of matrix b, of whose eigenvalues about `above` lie above the level. Whether a better projector may
  // help.
  bool complete(int64_t b, double above, Precision precision) {
    const double wanted = double(p.rank) - above;
    if (!(wanted > 0.5 && wanted < double(most_wanted(p)) + 0.5 && above >= 0.5)) {
      progress[b].status = Status::kNotConverged;
      return false;
    }
    const std::unique_ptr<Linalg<T>> one = la.only(b);
    Completion<T> completion(*one, p, ws, out, b, std::lround(above), norm2[b], products[b]);
    progress[b] = completion.run(precision, edge[b]);
    return completion.misled;
  }

  // Steps 3 to 6 on the matrices that are running. Returns those that a better projector may help.
  std::vector<int64_t> attempt(Precision precision) {
    std::vector<int64_t> misled;
    if (running().empty()) {
      return misled;
    }
    select(running());
    const std::vector<double> above = project(precision, kSignError);
    for (int64_t b : selected) {
      if (complete(b, above[b], precision)) {
        misled.push_back(b);
      }
    }
    return misled;
  }

  // Step 3 alone, at levels that are given. unresolved: trace(I - S^2), the eigenvalues that S left between -1 and 1.
  std::vector<EigenvalueCount> count(Block<const T> h, const double* above) {
    std::vector<EigenvalueCount> found(p.count);
    std::vector<double> total(p.count), squares(p.count), probes(p.count);
    select(running());
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
      select(running());
      squeeze(Precision::kFull);
      const std::vector<double> traces = project(Precision::kFull, kCountError);
      la.sketch(ws.before, p.seed, p.keys);
      multiply(ws.x, ws.before, ws.now, Precision::kFull);
      la.dot(ws.now, ws.now, ws.sums);
      la.read(ws.sums, squares);
      la.dot(ws.before, ws.before, ws.sums);
      la.read(ws.sums, probes);
      for (int64_t b : selected) {
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
    selected = running();
    transform(precision);
    sign(precision, kSignError);
    for (int64_t b : selected) {
      const std::unique_ptr<Linalg<T>> one = la.only(b);
      Completion<T>(*one, p, ws, out, b, p.locked, 1, products[b]).run_blind(precision, p.cuts[b].edge);
    }
  }

  void run() {
    const Policy policy = policy_of(p);
    search(policy.first);
    const std::vector<int64_t> again = attempt(policy.first);
    if (!again.empty() && policy.second != policy.first) {
      for (int64_t b : again) {
        progress[b] = {};
      }
      select(again);
      squeeze(policy.second);
      attempt(policy.second);
    }
    for (int64_t b = 0; b < p.count; ++b) {
      progress[b].iterations = std::lround(products[b]);
    }
    la.send(progress.data(), out.progress, progress.size() * sizeof(Progress));
  }
};

}  // namespace

int64_t top_up_block(const SvdProblem& p) { return top_up_of(p, 0, p.rank - p.locked, 1, nullptr).block; }

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
