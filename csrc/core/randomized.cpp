// Adaptive randomized subspace iteration with Chebyshev acceleration and Rayleigh-Ritz
// certificates.
//
//   Q <- orth(G sketch)                                 (n, l), l = r + p
//   repeat   Y = A Q,  H = Y^T Y      or   X = G Q,  H = Q^T X        Rayleigh-Ritz on the block
//            H = W diag(theta) W^T,  Z = Q W
//            stop if the certificate, from G Z - Z diag(theta), holds (certificate.hpp)
//            Q <- orth( T_d( (2/cut) G - I ) Z )                      d multiplications by G, cut = theta_l
//   V = Z_r,  left = A V
//
// Where the problem says so, filters multiply by A or G rounded to bfloat16 for as long as the certificate allows. All
// matrices of a batch go in step; what has been certified is harvested and drops out.
//
// Refs: Halko, Martinsson, Tropp (2011), algorithm 4.4: the loop. Zhou, Saad, Tiago, Chelikowsky
// (2006): filtering by a Chebyshev polynomial on the unwanted interval, outliers kept apart by
// rotating to Ritz vectors first. Feng, Yu et al., dashSVD (arXiv 2404.09276): degree 1 of it, a
// shift of half the block's last value.
#include <algorithm>
#include <iterator>
#include <numeric>
#include <utility>
#include <vector>

#include "core/truncated_svd.hpp"

namespace laser {
namespace {

// Plain multiplications before the first Rayleigh-Ritz step, at least.
constexpr int64_t kStart = 2;

// Passes of CholeskyQR within the loop, where nobody looks at what they did, and on a basis that they left
// unorthogonal.
constexpr int kPasses = 2;
constexpr int kRepairPasses = 8;
constexpr int kRepairs = 2;

template <typename T>
struct Workspace {
  Block<T> q, z, x;         // (count, n, l)
  Block<T> y, u;            // (count, m, l); u only where not p.gram
  Block<T> h, w;            // (count, l, l)
  Block<T> g;               // (count, n, n), only where p.gram; the caller's, or formed here
  Block<BFloat16> rounded;  // (count, n, n): g so, only where p.half too
  int64_t elements;

  Workspace(const SvdProblem& p, Block<T> given, T* base) {
    const int64_t count = p.count, m = p.rows, n = p.cols, l = p.block;
    T* next = base;
    const auto take = [&](int64_t rows, int64_t cols) {
      const Block<T> block = Block<T>::dense(next, count, rows, cols);
      next += count * rows * cols;
      return block;
    };
    q = take(n, l);
    z = take(n, l);
    x = take(n, l);
    y = take(p.gram ? 0 : m, l);
    u = take(p.gram ? 0 : m, l);
    h = take(l, l);
    w = take(l, l);
    g = given.data || !p.gram ? given : take(n, n);
    next += (4 - (next - base) % 4) % 4;  // cuBLAS wants bfloat16 operands on 16 bytes
    rounded = Block<BFloat16>::dense(reinterpret_cast<BFloat16*>(next), count, n, n);
    next += p.gram && p.half ? (count * n * n + 1) / 2 : 0;  // two in the place of a float
    elements = next - base;
  }
};

// One run of the algorithm: the problem, its workspace, and the steps that its name promises.
template <typename T>
struct Iteration {
  Linalg<T>& la;
  const SvdProblem& p;
  Workspace<T> ws;
  bool formed;                       // g is
  double *theta, *residual2, *loss;  // (count, l)
  const SvdResult<T>& out;
  Precision precision;     // of products whose rounding the certificate can see
  int64_t multiplies = 0;  // by G

  Iteration(Linalg<T>& la, const SvdProblem& p, Block<T> given, const Scratch<T>& scratch, const SvdResult<T>& out)
      : la(la),
        p(p),
        ws(p, given, scratch.elements),
        formed(given.data != nullptr),
        theta(scratch.doubles),
        residual2(theta + p.count * p.block),
        loss(residual2 + p.count * p.block),
        out(out),
        precision(p.half ? Precision::kHalf : Precision::kFull) {}

  // x = G q, through whichever operator the route chose.
  void apply(Block<T> q, Block<T> x) {
    if (!p.gram) {
      la.forward(q, ws.y, precision);
      la.backward(ws.y, x, precision);
    } else if (precision == Precision::kHalf) {
      la.multiply_half(ws.rounded, q, x);
    } else {
      la.multiply(ws.g, q, x);
    }
    ++multiplies;
  }

  // rough: another multiplication follows, not a look.
  void orthonormalize(bool rough) {
    la.orthonormalize(ws.q, ws.h, ws.w, rough ? 1 : p.tolerance.tol < 0 ? kPasses + 1 : kPasses);
  }

  // q <- orth(G^k sketch)
  void start() {
    if (p.gram && !formed) {
      la.weight_gram(ws.g);
    }
    if (p.gram && p.half) {
      la.round(ws.g, ws.rounded);
    }
    la.sketch(ws.q, p.seed, p.keys);
    if (p.block == p.cols) {  // the whole space: nothing to iterate
      orthonormalize(false);
      return;
    }
    const int64_t target = std::min(std::max(kStart, p.look_every), p.max_iter);
    while (multiplies < target) {
      apply(ws.q, ws.x);
      std::swap(ws.q, ws.x);
      orthonormalize(multiplies < target);
    }
  }

  // Rayleigh-Ritz on the block q: Ritz values and residuals, the Ritz vectors in ws.z, G times them in ws.x and, direct
  // only, A times them in ws.u; then the verdict. Ritz values always come from products in full precision.
  void look(bool first) {
    if (p.gram) {
      la.multiply(ws.g, ws.q, ws.x);
      la.multiply(ws.q.transposed(), ws.x, ws.h);
      la.small_eigh(ws.h, ws.w, theta);
      la.multiply(ws.q, ws.w, ws.z);
      la.multiply(ws.x, ws.w, ws.q);
      std::swap(ws.q, ws.x);
    } else {
      la.forward(ws.q, ws.y, Precision::kFull);
      la.gram(ws.y, ws.h);
      la.small_eigh(ws.h, ws.w, theta);
      la.multiply(ws.q, ws.w, ws.z);
      la.multiply(ws.y, ws.w, ws.u);
      la.backward(ws.u, ws.x, precision);
    }
    la.ritz_residuals(ws.x, ws.z, theta, residual2);
    la.judge({theta, residual2, loss, p.norm2, p.whole2 ? p.whole2 : p.norm2, out.progress, nullptr, p.rank, p.block,
              p.cols - p.locked, p.tolerance, multiplies, p.max_iter - multiplies, first, p.half, p.ranks});
  }

  // q <- orth(T_d((2/cut) G - I) z), where x = G z; d = degree, or less so that no more than `target` are done.
  void filter(int64_t degree, int64_t target) {
    la.chebyshev(ws.x, ws.z, out.progress, 1, ws.q);
    for (int64_t d = 2; d <= degree && multiplies < target; ++d) {
      apply(ws.q, ws.x);
      la.chebyshev(ws.x, ws.q, out.progress, 2, ws.z);
      std::swap(ws.q, ws.z);
    }
    orthonormalize(multiplies < target);
  }

  // Filters until `ahead` more multiplications are done; the first one is what the look left in x.
  void advance(int64_t ahead, int degree) {
    const int64_t target = std::min(multiplies + ahead, p.max_iter);
    ++multiplies;
    filter(degree, target);
    while (multiplies < target) {
      std::swap(ws.q, ws.z);
      apply(ws.z, ws.x);
      filter(degree, target);
    }
  }

  // right = the leading Ritz vectors and left = A right, of the selected matrices.
  void harvest() {
    la.copy(ws.z.first_columns(p.rank), out.right);
    if (!p.gram) {
      la.copy(ws.u.first_columns(p.rank), out.left);
    } else if (!formed) {
      la.forward(out.right, out.left, Precision::kFull);
    }
  }

  // Without a tolerance: max_iter multiplications, degree 1 after the start, and nothing comes to the host.
  void run_blind() {
    look(true);
    if (p.block < p.cols && multiplies < p.max_iter) {
      advance(p.max_iter - multiplies, 1);
      look(false);
    }
    harvest();
  }

  void run(std::vector<int64_t> running) {
    std::vector<Progress> state(p.count);
    std::vector<int64_t> some;
    const auto those = [&](const auto& test) {
      some.clear();
      std::copy_if(running.begin(), running.end(), std::back_inserter(some), test);
      return !some.empty();
    };
    const auto is_broken = [&](int64_t b) { return state[b].broken; };
    for (bool first = true;; first = false) {
      look(first);
      la.read(out.progress, state);
      for (int repair = 0; repair < kRepairs && those(is_broken); ++repair) {
        la.select(some);
        la.copy(ws.z, ws.q);  // spans what q did
        la.orthonormalize(ws.q, ws.h, ws.w, kRepairPasses);
        look(first);
        la.read(out.progress, state);
      }
      if (those([&](int64_t b) { return state[b].status != Status::kRunning; })) {
        la.select(some);
        harvest();
      }
      those([&](int64_t b) { return state[b].status == Status::kRunning; });
      running = some;
      if (running.empty()) {
        return;
      }
      la.select(running);
      // One degree serves the batch: what the neediest asks for, as far as every matrix's filter range goes.
      int needed = 1, reach = state[running[0]].reach;
      for (int64_t b : running) {
        needed = std::max(needed, state[b].needed);
        reach = std::min(reach, state[b].reach);
        precision = state[b].half ? precision : Precision::kFull;
      }
      advance(std::max<int64_t>(std::min(needed, reach), p.look_every), reach);
    }
  }
};

}  // namespace

template <typename T>
ScratchSize randomized_scratch(const SvdProblem& p) {
  return {Workspace<T>(p, {}, nullptr).elements, 3 * p.count * p.block};
}

template <typename T>
void randomized_on(Linalg<T>& la, const SvdProblem& p, const std::vector<int64_t>& matrices, Block<T> g,
                   const Scratch<T>& scratch, const SvdResult<T>& out) {
  Iteration<T> iteration(la, p, g, scratch, out);
  iteration.start();
  p.tolerance.tol < 0 ? iteration.run_blind() : iteration.run(matrices);
}

template <typename T>
void randomized(Linalg<T>& la, const SvdProblem& p, const Scratch<T>& scratch, const SvdResult<T>& out) {
  std::vector<int64_t> all(p.count);
  std::iota(all.begin(), all.end(), 0);
  randomized_on(la, p, all, {}, scratch, out);
}

template ScratchSize randomized_scratch<float>(const SvdProblem&);
template ScratchSize randomized_scratch<double>(const SvdProblem&);
template void randomized_on(Linalg<float>&, const SvdProblem&, const std::vector<int64_t>&, Block<float>,
                            const Scratch<float>&, const SvdResult<float>&);
template void randomized_on(Linalg<double>&, const SvdProblem&, const std::vector<int64_t>&, Block<double>,
                            const Scratch<double>&, const SvdResult<double>&);
template void randomized(Linalg<float>&, const SvdProblem&, const Scratch<float>&, const SvdResult<float>&);
template void randomized(Linalg<double>&, const SvdProblem&, const Scratch<double>&, const SvdResult<double>&);

}  // namespace laser
