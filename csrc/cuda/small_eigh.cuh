// Two-sided Jacobi in shared memory: H <- J^T H J, W <- W J, J = rotations of l/2 disjoint pairs at a time.
// Work:    one block per matrix. A sweep is l - 1 rounds (round robin: every pair meets once), a round two phases:
//            1. one thread per pair (p, q): the rotation that makes h_pq zero
//            2. one thread per two pairs (p, q) x (r, s): the 2x2 block of H, turned from both sides, so that each
//            entry
//               is read and written by one thread only; one thread per row of W and pair
//          About 9 l^3 multiply-adds per sweep, 7 to 10 sweeps; 2 l barriers per sweep.
// Memory:  H and W stay in shared memory: 2 l^2 elements, l = 169 in float32 on 227 KiB.
// Limits:  l <= jacobi_limit.
// Ref:     Golub, Van Loan: Matrix computations, section 8.5 (parallel ordering: Brent, Luk 1985).
#pragma once
#include <cmath>

#include "cuda/batch.cuh"
#include "cuda/reduce.cuh"

namespace laser {

constexpr int kJacobiThreads = 512;

// Convergence is quadratic after the first few sweeps; nobody needs as many.
constexpr int kSweeps = 24;

// Entries below this share of eps ||H||_F / l are left: all of them together are below a twentieth of eps ||H||_F.
constexpr double kNegligible = 0.05;

// (x, y) <- (c x - s y, s x + c y) in Rutishauser's form, tau = s / (1 + c): small angles turn without changing
// lengths.
template <typename T>
struct Rotation {
  T s, tau;

  __device__ __forceinline__ void operator()(T& x, T& y) const {
    const T before = x;
    x -= s * (y + tau * before);
    y += s * (before - tau * y);
  }
};

template <typename T>
LASER_HOST_DEVICE constexpr size_t jacobi_bytes(int64_t l) {
  return size_t(2 * l * l) * sizeof(T) + size_t((l + 1) / 2) * sizeof(Rotation<T>) + size_t(l) * sizeof(int) +
         32 * sizeof(double);
}

// Player number `k` of pair `pair` in a round robin of n players (even): the last one stays, the others turn.
__device__ __forceinline__ int player(int n, int round, int pair, int k) {
  if (pair == 0) {
    return k == 0 ? n - 1 : round;
  }
  const int turned = k == 0 ? round + pair : round + n - 1 - pair;
  return turned < n - 1 ? turned : turned - (n - 1);
}

template <typename T>
__global__ void __launch_bounds__(kJacobiThreads, 1) small_eigh_kernel(Block<const T> from,  // (count, l, l)
                                                                       Block<T> to,          // (count, l, l)
                                                                       double* theta,        // (count, l)
                                                                       T eps, Selection sel) {
  LASER_DYNAMIC_SHARED(double, scratch);  // 32
  const int l = int(from.cols), n = l + l % 2, pairs = n / 2, t = threadIdx.x;
  const int64_t b = sel[blockIdx.x];
  T* h = reinterpret_cast<T*>(scratch + 32);                      // (l, l)
  T* w = h + l * l;                                               // (l, l)
  Rotation<T>* turn = reinterpret_cast<Rotation<T>*>(w + l * l);  // (pairs)
  int* order = reinterpret_cast<int*>(turn + (l + 1) / 2);        // (l)

  double sum = 0;
  for (int e = t; e < l * l; e += kJacobiThreads) {
    const int i = e / l, j = e % l;
    // exactly symmetric, so that a block and its mirror image turn alike
    const T v = i >= j ? from.at(b, i, j) : from.at(b, j, i);
    h[e] = v;
    w[e] = i == j ? T(1) : T(0);
    sum += double(v) * double(v);
  }
  const double norm = sqrt(block_reduce(sum, Sum(), scratch));
  const T floor = T(kNegligible * double(eps) * norm / l);

  for (int sweep = 0; sweep < kSweeps && norm > 0; ++sweep) {
    int turned = 0;
    for (int round = 0; round < n - 1; ++round) {
      for (int i = t; i < pairs; i += kJacobiThreads) {
        const int p = player(n, round, i, 0), q = player(n, round, i, 1);
        Rotation<T> r{T(0), T(0)};
        if (p < l && q < l) {
          const T pq = h[p * l + q];
          if (pq > floor || -pq > floor) {
            const T zeta = (h[q * l + q] - h[p * l + p]) / (2 * pq);
            const T size = zeta < 0 ? -zeta : zeta;
            const T tangent = (zeta < 0 ? T(-1) : T(1)) / (size + sqrt(1 + zeta * zeta));
            const T c = 1 / sqrt(1 + tangent * tangent);
            r.s = c * tangent;
            r.tau = r.s / (1 + c);
            turned = 1;
          }
        }
        turn[i] = r;
      }
      __syncthreads();  // rotations are chosen from the H that they turn
      for (int e = t; e < pairs * pairs; e += kJacobiThreads) {
        const int i = e / pairs, j = e % pairs;
        const int p = player(n, round, i, 0), q = player(n, round, i, 1);
        const int r = player(n, round, j, 0), s = player(n, round, j, 1);
        const Rotation<T> left = turn[i], right = turn[j];
        if ((left.s == 0 && right.s == 0) || p >= l || q >= l || r >= l || s >= l) {
          // A pair with the absent player does not turn, but its real member's entries do, by the other side's
          // rotation.
          const int row = p < l ? p : q, col = r < l ? r : s;
          if (left.s != 0 && p < l && q < l) {
            left(h[p * l + col], h[q * l + col]);
          } else if (right.s != 0 && r < l && s < l) {
            right(h[row * l + r], h[row * l + s]);
          }
          continue;
        }
        T pr = h[p * l + r], ps = h[p * l + s], qr = h[q * l + r], qs = h[q * l + s];
        if (i == j) {
          const T shift = left.s / (1 - left.s * left.tau) * ps;  // tan times h_pq
          h[p * l + p] = pr - shift;
          h[q * l + q] = qs + shift;
          h[p * l + q] = h[q * l + p] = T(0);
          continue;
        }
        left(pr, qr);
        left(ps, qs);
        right(pr, ps);
        right(qr, qs);
        h[p * l + r] = pr;
        h[p * l + s] = ps;
        h[q * l + r] = qr;
        h[q * l + s] = qs;
      }
      for (int e = t; e < l * pairs; e += kJacobiThreads) {
        const int row = e / pairs, i = e % pairs;
        const Rotation<T> r = turn[i];
        if (r.s != 0) {
          const int p = player(n, round, i, 0), q = player(n, round, i, 1);
          r(w[row * l + p], w[row * l + q]);
        }
      }
      __syncthreads();  // H is turned
    }
    if (block_reduce(double(turned), Sum(), scratch) == 0) {
      break;
    }
  }

  for (int j = t; j < l; j += kJacobiThreads) {  // how many come before j
    const T v = h[j * l + j];
    int before = 0;
    for (int k = 0; k < l; ++k) {
      const T other = h[k * l + k];
      before += other > v || (other == v && k < j);
    }
    order[j] = before;
  }
  __syncthreads();
  const bool sane = norm == norm;
  for (int e = t; e < l * l; e += kJacobiThreads) {
    const int i = e / l, j = e % l;
    to.at(b, i, sane ? order[j] : j) = sane ? w[e] : T(norm);
  }
  for (int j = t; j < l; j += kJacobiThreads) {
    theta[b * l + (sane ? order[j] : j)] = sane ? double(h[j * l + j]) : norm;
  }
}

}  // namespace laser
