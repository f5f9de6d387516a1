// Adaptive randomized subspace iteration with Chebyshev acceleration and Rayleigh-Ritz
// certificates.
//
//   Q <- orth(G sketch)                                 (n, l), l = r + p
//   repeat   Y = A Q,  H = Y^T Y      or   X = G Q,  H = Q^T X        Rayleigh-Ritz on the block
//            H = W diag(theta) W^T;  stop if the certificate holds    (certificate.hpp)
//            Q <- orth( T_d( (2/cut) G - I ) Q W )                    d multiplications by G, cut = theta_l
//   V = Q W_r,  left = A V
//
// Refs: Halko, Martinsson, Tropp (2011), algorithm 4.4: the loop. Zhou, Saad, Tiago, Chelikowsky
// (2006): filtering by a Chebyshev polynomial on the unwanted interval, outliers kept apart by
// rotating to Ritz vectors first. Feng, Yu et al., dashSVD (arXiv 2404.09276): degree 1 of it, a
// shift of half the block's last value.
#include <algorithm>

#include "core/orthonormalize.hpp"
#include "core/truncated_svd.hpp"

namespace laser {
namespace {

template <typename T>
struct Workspace {
  Block<T> q, z, x;  // (count, n, l)
  Block<T> y;        // (count, m, l)
  Block<T> h, w;     // (count, l, l)
  Block<T> g;        // (count, n, n), only where p.gram
  int64_t elements;

  Workspace(const SvdProblem<T>& p, T* base) {
    const int64_t count = p.weight.count, m = p.weight.rows, n = p.weight.cols, l = p.block;
    T* next = base;
    const auto take = [&](int64_t rows, int64_t cols) {
      const Block<T> block = Block<T>::dense(next, count, rows, cols);
      next += count * rows * cols;
      return block;
    };
    q = take(n, l);
    z = take(n, l);
    x = take(n, l);
    y = take(m, l);
    h = take(l, l);
    w = take(l, l);
    g = p.gram ? take(n, n) : Block<T>{};
    elements = next - base;
  }
};

// x = G q, through whichever operator the route chose. y is scratch.
template <typename T>
void apply(Linalg<T>& la, const SvdProblem<T>& p, const Workspace<T>& ws, Block<T> q, Block<T> x) {
  if (p.gram) {
    la.multiply(ws.g, q, x);
  } else {
    la.multiply(p.weight, q, ws.y);
    la.multiply(p.weight.transposed(), ws.y, x);
  }
}

// The Ritz matrix H = Q^T G Q of the block; leaves A Q in ws.y (direct) or G Q in ws.x (gram) for
// the next filter.
template <typename T>
void rayleigh_ritz(Linalg<T>& la, const SvdProblem<T>& p, const Workspace<T>& ws) {
  if (p.gram) {
    la.multiply(ws.g, ws.q, ws.x);
    la.multiply(ws.q.transposed(), ws.x, ws.h);
  } else {
    la.multiply(p.weight, ws.q, ws.y);
    la.gram(ws.y, ws.h);
  }
}

// q <- orth(T_degree((2/cut) G - I) q w); consumes what rayleigh_ritz left.
template <typename T>
void filter(Linalg<T>& la, const SvdProblem<T>& p, Workspace<T>& ws, const double* cut, int degree,
            std::vector<int>& failed) {
  if (!p.gram) {
    la.multiply(p.weight.transposed(), ws.y, ws.x);
  }
  la.multiply(ws.q, ws.w, ws.z);  // Ritz vectors: T_0
  la.multiply(ws.x, ws.w, ws.q);  // G times them
  la.chebyshev(ws.q, ws.z, cut, 1, ws.q);
  for (int d = 2; d <= degree; ++d) {
    apply(la, p, ws, ws.q, ws.x);
    la.chebyshev(ws.x, ws.q, cut, 2, ws.z);
    std::swap(ws.q, ws.z);
  }
  orthonormalize(la, ws.q, ws.h, ws.w, failed);
}

// right = Q W_r and left = A right of matrix b.
template <typename T>
void harvest(Linalg<T>& la, const SvdProblem<T>& p, const Workspace<T>& ws, int64_t b, const SvdResult<T>& out) {
  const Block<T> w = ws.w.matrix(b).first_columns(p.rank);
  la.multiply(ws.q.matrix(b), w, out.right.matrix(b));
  if (p.gram) {
    la.multiply(p.weight.matrix(b), out.right.matrix(b), out.left.matrix(b));
  } else {
    la.multiply(ws.y.matrix(b), w, out.left.matrix(b));
  }
}

}  // namespace

template <typename T>
int64_t randomized_workspace(const SvdProblem<T>& p) {
  return Workspace<T>(p, nullptr).elements;
}

template <typename T>
void randomized(Linalg<T>& la, const SvdProblem<T>& p, T* workspace, const SvdResult<T>& out) {
  const int64_t count = p.weight.count, l = p.block;
  const bool full = l == p.weight.cols;
  Workspace<T> ws(p, workspace);
  std::vector<Progress> progress(count);
  std::vector<double> theta(count * l), cut(count);
  std::vector<int> failed(count);

  for (int64_t b = 0; b < count; ++b) {
    progress[b].captured = p.norm2[b] * double(p.rank) / double(p.weight.cols);
  }
  if (p.gram) {
    la.gram(p.weight, ws.g);
  }
  la.sketch(ws.q, p.seed, p.keys);
  int64_t multiplies = 0;
  if (!full) {  // the sketch is well conditioned: its first product needs no orthonormal columns
    apply(la, p, ws, ws.q, ws.x);
    std::swap(ws.q, ws.x);
    multiplies = 1;
  }
  orthonormalize(la, ws.q, ws.h, ws.w, failed);
  for (;;) {
    rayleigh_ritz(la, p, ws);
    la.small_eigh(ws.h, ws.w, theta.data());
    int running = 0;
    int degree = 1;
    for (int64_t b = 0; b < count; ++b) {
      Progress& state = progress[b];
      if (state.status != Status::kRunning) {
        continue;
      }
      judge(&theta[b * l], p.rank, l, full, p.norm2[b], p.tolerance, p.max_iter - multiplies, state);
      if (state.status != Status::kRunning) {
        harvest(la, p, ws, b, out);
        out.bound[b] = state.bound;
        out.remainder[b] = state.remainder;
        out.iterations[b] = multiplies;
        out.status[b] = state.status;
        continue;
      }
      // One degree serves the batch: the smallest, since a higher one may exceed some matrix's
      // filter range.
      degree = running++ == 0 ? state.degree : std::min(degree, state.degree);
      cut[b] = state.cut;
    }
    if (running == 0) {
      return;
    }
    degree = int(std::min<int64_t>(degree, p.max_iter - multiplies));
    filter(la, p, ws, cut.data(), degree, failed);
    multiplies += degree;
    for (Progress& state : progress) {
      filtered(degree, state);
    }
  }
}

template int64_t randomized_workspace(const SvdProblem<float>&);
template int64_t randomized_workspace(const SvdProblem<double>&);
template void randomized(Linalg<float>&, const SvdProblem<float>&, float*, const SvdResult<float>&);
template void randomized(Linalg<double>&, const SvdProblem<double>&, double*, const SvdResult<double>&);

}  // namespace laser
