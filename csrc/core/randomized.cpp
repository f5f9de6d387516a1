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
// Where the problem says so, filters multiply by A or G rounded to bfloat16 for as long as the certificate allows.
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

// Plain multiplications before the first Rayleigh-Ritz step.
constexpr int64_t kStart = 2;

template <typename T>
struct Workspace {
  Block<T> q, z, x;         // (count, n, l)
  Block<T> y, u;            // (count, m, l); u only where not p.gram
  Block<T> h, w;            // (count, l, l)
  Block<T> g;               // (count, n, n), only where p.gram
  Block<BFloat16> rounded;  // (count, n, n): g so, only where p.half too
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
    y = take(p.gram ? 0 : m, l);
    u = take(p.gram ? 0 : m, l);
    h = take(l, l);
    w = take(l, l);
    g = p.gram ? take(n, n) : Block<T>{};
    rounded = Block<BFloat16>::dense(reinterpret_cast<BFloat16*>(next), count, n, n);
    next += p.gram && p.half ? (count * n * n + 1) / 2 : 0;  // two in the place of a float
    elements = next - base;
  }
};

// y = A q, and x = A^T y.
template <typename T>
void forward(Linalg<T>& la, const SvdProblem<T>& p, bool half, Block<T> q, Block<T> y) {
  half ? la.multiply_half(p.rounded, q, y) : la.multiply(p.weight, q, y);
}
template <typename T>
void backward(Linalg<T>& la, const SvdProblem<T>& p, bool half, Block<T> y, Block<T> x) {
  half ? la.multiply_half(p.rounded.transposed(), y, x) : la.multiply(p.weight.transposed(), y, x);
}

// x = G q, through whichever operator the route chose. y is scratch.
template <typename T>
void apply(Linalg<T>& la, const SvdProblem<T>& p, const Workspace<T>& ws, bool half, Block<T> q, Block<T> x) {
  if (p.gram) {
    half ? la.multiply_half(ws.rounded, q, x) : la.multiply(ws.g, q, x);
  } else {
    forward(la, p, half, q, ws.y);
    backward(la, p, half, ws.y, x);
  }
}

// Rayleigh-Ritz on the block q: Ritz values and residuals, the Ritz vectors in ws.z, G times them in ws.x and, direct
// only, A times them in ws.u. The Ritz values always come from products in full precision.
template <typename T>
void look(Linalg<T>& la, const SvdProblem<T>& p, Workspace<T>& ws, bool half, double* theta, double* residual2) {
  if (p.gram) {
    la.multiply(ws.g, ws.q, ws.x);
    la.multiply(ws.q.transposed(), ws.x, ws.h);
    la.small_eigh(ws.h, ws.w, theta);
    la.multiply(ws.q, ws.w, ws.z);
    la.multiply(ws.x, ws.w, ws.q);
    std::swap(ws.q, ws.x);
  } else {
    la.multiply(p.weight, ws.q, ws.y);
    la.gram(ws.y, ws.h);
    la.small_eigh(ws.h, ws.w, theta);
    la.multiply(ws.q, ws.w, ws.z);
    la.multiply(ws.y, ws.w, ws.u);
    backward(la, p, half, ws.u, ws.x);
  }
  la.ritz_residuals(ws.x, ws.z, theta, residual2);
}

// q <- orth(T_degree((2/cut) G - I) z); consumes what the look left.
template <typename T>
void filter(Linalg<T>& la, const SvdProblem<T>& p, Workspace<T>& ws, const double* cut, int degree, bool half,
            std::vector<int>& failed) {
  la.chebyshev(ws.x, ws.z, cut, 1, ws.q);
  for (int d = 2; d <= degree; ++d) {
    apply(la, p, ws, half, ws.q, ws.x);
    la.chebyshev(ws.x, ws.q, cut, 2, ws.z);
    std::swap(ws.q, ws.z);
  }
  orthonormalize(la, ws.q, ws.h, ws.w, failed);
}

// right = the leading Ritz vectors and left = A right of matrix b.
template <typename T>
void harvest(Linalg<T>& la, const SvdProblem<T>& p, const Workspace<T>& ws, int64_t b, const SvdResult<T>& out) {
  la.copy(ws.z.matrix(b).first_columns(p.rank), out.right.matrix(b));
  if (p.gram) {
    la.multiply(p.weight.matrix(b), out.right.matrix(b), out.left.matrix(b));
  } else {
    la.copy(ws.u.matrix(b).first_columns(p.rank), out.left.matrix(b));
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
  std::vector<double> theta(count * l), residual2(count * l), cut(count);
  std::vector<int> failed(count);

  bool half = p.half;
  for (Progress& state : progress) {
    state.half = half;
  }
  if (p.gram) {
    la.gram(p.weight, ws.g);
    if (half) {
      la.round(ws.g, ws.rounded);
    }
  }
  la.sketch(ws.q, p.seed, p.keys);
  int64_t multiplies = 0;
  if (full) {
    orthonormalize(la, ws.q, ws.h, ws.w, failed);
  }
  for (; !full && multiplies < std::min(kStart, p.max_iter); ++multiplies) {
    apply(la, p, ws, half, ws.q, ws.x);
    std::swap(ws.q, ws.x);
    orthonormalize(la, ws.q, ws.h, ws.w, failed);
  }
  for (;;) {
    look(la, p, ws, half, theta.data(), residual2.data());
    int running = 0, degree = 1;
    for (int64_t b = 0; b < count; ++b) {
      Progress& state = progress[b];
      if (state.status != Status::kRunning) {
        continue;
      }
      judge(&theta[b * l], &residual2[b * l], p.rank, l, p.weight.cols, p.norm2[b], p.tolerance,
            p.max_iter - multiplies, state);
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
      half = half && state.half;
      cut[b] = state.cut;
    }
    if (running == 0) {
      return;
    }
    degree = int(std::min<int64_t>(degree, p.max_iter - multiplies));
    filter(la, p, ws, cut.data(), degree, half, failed);
    multiplies += degree;
  }
}

template int64_t randomized_workspace(const SvdProblem<float>&);
template int64_t randomized_workspace(const SvdProblem<double>&);
template void randomized(Linalg<float>&, const SvdProblem<float>&, float*, const SvdResult<float>&);
template void randomized(Linalg<double>&, const SvdProblem<double>&, double*, const SvdResult<double>&);

}  // namespace laser
