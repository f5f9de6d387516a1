// Cholesky factorization and triangular inverse of a batch, right-looking in panels of W columns:
//
//        panel j                    start     one block per matrix: S into work, deviation, dead columns
//      +---+                        panel     one block per matrix: L and L^-1 of the diagonal tile D
//      | D |                        column    one block per matrix and tile below: R <- R D^-T
//      +---+---+---+                trailing  one block per matrix and tile (i, k): T <- T - R_i R_k^T
//      | R | T |   |                inverse   one block per matrix and panel: the block column of L^-1 from D down
//      +---+---+---+
//      | R | T | T |
//      +---+---+---+
//
// Work:    l^3/3 multiply-adds for L, as many for L^-1; tiles of W x W, 16 x 16 threads with (W/16)^2 sums each.
// Memory:  l^2 elements pass through the L2 cache once per panel.
// Launches: 2 + 3 l / W, whatever the batch; a matrix that is orthonormal already returns at once.
// Ref:     Fukaya, Kannan, Nakatsukasa, Yamamoto, Yanagisawa: Shifted CholeskyQR (SISC 2020, arXiv 1809.11085); pivots
//          are modified one by one (Gill, Murray: Newton-type methods for optimization, 1974) instead of all by one
//          shift, which would have to be found by trying. A column whose pivot was replaced keeps its direction,
//          computed from X itself, but may be short; the next pass puts that right.
#pragma once
#include <cmath>

#include "core/philox.hpp"
#include "cuda/batch.cuh"
#include "cuda/elementwise.cuh"
#include "cuda/reduce.cuh"

namespace laser {

constexpr int kPanelThreads = 256;

template <typename T>
constexpr int kPanel = sizeof(T) == 4 ? 64 : 32;  // two tiles fit 48 KiB

template <typename T>
constexpr T kEps = sizeof(T) == 4 ? T(1.1920928955078125e-07) : T(2.2204460492503131e-16);

// A pivot below so many eps sqrt(l) is rounding: S has unit columns, and its entries and the sums behind a pivot are
// off by about eps sqrt(l). (The first shift of csrc/cpu/orthonormalize.hpp.)
constexpr double kLeastPivot = 8.0;

// ||S - I|| below so many eps sqrt(l) is what orthonormal columns give.
constexpr double kRoundingOnly = 4.0;

// After a pass, a column whose pivot was replaced is sqrt(pivot / least pivot) long; one that was nothing but rounding,
// eps / sqrt(8 eps sqrt(l)) < 3e-4 in float32, is taken for that below this squared length.
constexpr double kDeadLength2 = 1e-6;
constexpr int kDead = -2;  // in the place of its diagonal entry; no other gets below -1

// --- normalize_columns

// The key that refilled columns are drawn with: not the sketch's, whose columns they must not repeat.
constexpr uint64_t kRefillSeed = 0x6F7274686FULL;

template <typename T>
struct Normalize {
  Block<T> x;
  const double* norm2;  // (count, l)

  __device__ void operator()(int64_t b, int64_t i, int64_t j) const {
    const double sum = norm2[b * x.cols + j];
    T& to = x.at(b, i, j);
    if (sum > 0) {
      to = T(double(to) * (1 / sqrt(sum)));
    } else if (sum == 0) {
      const SketchPair pair = sketch_pair(sketch_key(kRefillSeed, uint64_t(b)), i, j);
      to = T(pair.even / (4 * sqrt(double(x.rows))));  // entries have variance 16
    }
  }
};

// --- cholesky_inverse

template <typename T>
__device__ __forceinline__ bool is_done(const double* deviation, int64_t b, int64_t l) {
  return deviation[b] <= kRoundingOnly * double(kEps<T>) * sqrt(double(l));
}

template <typename T>
__global__ void __launch_bounds__(kPanelThreads)
    start_kernel(Block<const T> s, Block<T> work, double* deviation, int* shifted, Selection sel) {
  __shared__ double scratch[32];
  const int64_t b = sel[blockIdx.x], l = s.cols;
  double sum = 0;
  double dead = 0;
  for (int64_t i = threadIdx.x / 32; i < l; i += kPanelThreads / 32) {
    const bool dead_row = s.at(b, i, i) < T(kDeadLength2);
    dead += dead_row ? 1.0 : 0.0;
    for (int64_t j = threadIdx.x % 32; j < l; j += 32) {
      const T v = s.at(b, i, j);
      const double off = double(v) - (i == j ? 1.0 : 0.0);
      sum += off * off;
      const bool out = dead_row || s.at(b, j, j) < T(kDeadLength2);
      work.at(b, i, j) = !out ? v : i == j ? T(kDead) : T(0);
    }
  }
  sum = block_reduce(sum, Sum(), scratch);
  dead = block_reduce(dead, Sum(), scratch);
  if (threadIdx.x == 0) {
    deviation[b] = sqrt(sum);
    shifted[b] = dead > 0;
  }
}

// tile[i][j] = from(i0 + i, j0 + j), or its transpose; outside the matrix 0, on the diagonal 1.
template <int W, bool kTransposed, typename B, typename T>
__device__ __forceinline__ void load_tile(const Block<B>& from, int64_t b, int64_t i0, int64_t j0, T (*tile)[W + 1]) {
  for (int e = threadIdx.x; e < W * W; e += kPanelThreads) {
    const int i = e / W, j = e % W;
    const bool inside = i0 + i < from.rows && j0 + j < from.cols;
    const T v = inside ? from.at(b, i0 + i, j0 + j) : i0 + i == j0 + j ? T(1) : T(0);
    (kTransposed ? tile[j][i] : tile[i][j]) = v;
  }
}

// sum(r, c) += a(row r) . b(row c); thread (y, x) of 16 x 16 has rows y + 16 r and columns x + 16 c.
template <typename T, int W>
__device__ __forceinline__ void multiply_tiles(const T (*a)[W + 1], const T (*b)[W + 1], T (&sum)[W / 16][W / 16]) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#ifdef __CUDA_ARCH__
#pragma unroll 4
#endif
  for (int k = 0; k < W; ++k) {
    T left[W / 16], right[W / 16];
    for (int r = 0; r < W / 16; ++r) {
      left[r] = a[y + 16 * r][k];
      right[r] = b[x + 16 * r][k];
    }
    for (int r = 0; r < W / 16; ++r) {
      for (int c = 0; c < W / 16; ++c) {
        sum[r][c] += left[r] * right[c];
      }
    }
  }
}

// f(i, j, sum) for the entries of a tile that lie in the matrix.
template <typename T, int W, typename F>
__device__ __forceinline__ void each_of_tile(int64_t l, int64_t i0, int64_t j0, T (&sum)[W / 16][W / 16], const F& f) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  for (int r = 0; r < W / 16; ++r) {
    for (int c = 0; c < W / 16; ++c) {
      const int64_t i = i0 + y + 16 * r, j = j0 + x + 16 * c;
      if (i < l && j < l) {
        f(i, j, sum[r][c]);
      }
    }
  }
}

// L of the diagonal tile into work, L^-1 into inverse.
template <typename T>
__global__ void __launch_bounds__(kPanelThreads)
    panel_kernel(Block<T> work, Block<T> inverse, int64_t j0, const double* deviation, int* shifted, Selection sel) {
  constexpr int W = kPanel<T>;
  __shared__ T tile[W][W + 1];
  __shared__ T solved[W][W + 1];
  __shared__ T pivot;
  __shared__ bool dead[W];
  const int64_t b = sel[blockIdx.x], l = work.cols;
  if (is_done<T>(deviation, b, l)) {
    return;  // the whole block
  }
  load_tile<W, false>(work, b, j0, j0, tile);
  for (int e = threadIdx.x; e < W * W; e += kPanelThreads) {
    solved[e / W][e % W] = e / W == e % W ? T(1) : T(0);
  }
  const T least = T(kLeastPivot) * kEps<T> * T(sqrt(double(l)));
  for (int j = 0; j < W; ++j) {
    __syncthreads();
    if (threadIdx.x == 0) {
      const T d = tile[j][j];
      dead[j] = d < T(-1);
      const bool replaced = !dead[j] && d <= least;  // a NaN is not
      pivot = dead[j] ? T(1) : sqrt(replaced ? least : d);
      if (replaced) {
        shifted[b] = 1;
      }
      tile[j][j] = pivot;
    }
    __syncthreads();
    for (int i = j + 1 + threadIdx.x; i < W; i += kPanelThreads) {
      tile[i][j] /= pivot;
    }
    for (int c = threadIdx.x; c <= j; c += kPanelThreads) {  // row j of L^-1: what is left of e_j, divided
      solved[j][c] /= pivot;
    }
    __syncthreads();
    for (int e = threadIdx.x; e < W * W; e += kPanelThreads) {
      const int i = e / W, c = e % W;
      if (i > j && c > j && c <= i) {
        tile[i][c] -= tile[i][j] * tile[c][j];
      } else if (i > j && c <= j) {
        solved[i][c] -= tile[i][j] * solved[j][c];
      }
    }
  }
  __syncthreads();
  for (int e = threadIdx.x; e < W * W; e += kPanelThreads) {
    const int i = e / W, j = e % W;
    if (j0 + i < l && j0 + j < l) {
      work.at(b, j0 + i, j0 + j) = j <= i ? tile[i][j] : T(0);
      inverse.at(b, j0 + i, j0 + j) = j <= i && !dead[i] ? solved[i][j] : T(0);
    }
  }
}

// R <- R D^-T, R the tiles of panel j0 below its diagonal.
template <typename T>
__global__ void __launch_bounds__(kPanelThreads) column_kernel(Block<T> work, Block<const T> inverse, int64_t j0,
                                                               int64_t tiles, const double* deviation, Selection sel) {
  constexpr int W = kPanel<T>;
  __shared__ T rows[W][W + 1];
  __shared__ T solved[W][W + 1];
  const int64_t b = sel[int(blockIdx.x / tiles)], l = work.cols, i0 = j0 + W * (1 + blockIdx.x % tiles);
  if (is_done<T>(deviation, b, l)) {
    return;
  }
  load_tile<W, false>(work, b, i0, j0, rows);
  load_tile<W, false>(inverse, b, j0, j0, solved);
  __syncthreads();
  T sum[W / 16][W / 16] = {};
  multiply_tiles<T, W>(rows, solved, sum);
  each_of_tile<T, W>(l, i0, j0, sum, [&](int64_t i, int64_t j, T v) { work.at(b, i, j) = v; });
}

// T <- T - R_i R_k^T, the tiles i >= k right of and below panel j0.
template <typename T>
__global__ void __launch_bounds__(kPanelThreads)
    trailing_kernel(Block<T> work, int64_t j0, int64_t tiles, const double* deviation, Selection sel) {
  constexpr int W = kPanel<T>;
  __shared__ T upper[W][W + 1];
  __shared__ T lower[W][W + 1];
  const int64_t each = tiles * tiles, t = blockIdx.x % each;
  const int64_t b = sel[int(blockIdx.x / each)], l = work.cols, i0 = j0 + W * (1 + t / tiles),
                k0 = j0 + W * (1 + t % tiles);
  if (k0 > i0 || is_done<T>(deviation, b, l)) {
    return;
  }
  load_tile<W, false>(work, b, i0, j0, lower);
  load_tile<W, false>(work, b, k0, j0, upper);
  __syncthreads();
  T sum[W / 16][W / 16] = {};
  multiply_tiles<T, W>(lower, upper, sum);
  each_of_tile<T, W>(l, i0, k0, sum, [&](int64_t i, int64_t j, T v) { work.at(b, i, j) -= v; });
}

// Block column `panel` of L^-1: V_p = D_p^-1, V_i = -D_i^-1 sum_{p <= k < i} L_ik V_k; zeros above. D_i^-1 is in
// inverse's diagonal tiles.
template <typename T>
__global__ void __launch_bounds__(kPanelThreads)
    inverse_kernel(Block<const T> work, Block<T> inverse, int64_t panels, const double* deviation, Selection sel) {
  constexpr int W = kPanel<T>;
  __shared__ T left[W][W + 1];
  __shared__ T right[W][W + 1];
  const int64_t b = sel[int(blockIdx.x / panels)], l = work.cols, j0 = blockIdx.x % panels * W;
  const bool done = is_done<T>(deviation, b, l);
  for (int64_t i0 = 0; i0 < (done ? l : j0); i0 += W) {
    T identity[W / 16][W / 16] = {};
    each_of_tile<T, W>(l, i0, j0, identity, [&](int64_t i, int64_t j, T) { inverse.at(b, i, j) = T(i == j); });
  }
  for (int64_t i0 = j0 + W; !done && i0 < l; i0 += W) {
    T sum[W / 16][W / 16] = {};
    for (int64_t k0 = j0; k0 < i0; k0 += W) {
      __syncthreads();  // V_k is written, and the tiles are read
      load_tile<W, false>(work, b, i0, k0, left);
      load_tile<W, true>(inverse, b, k0, j0, right);
      __syncthreads();
      multiply_tiles<T, W>(left, right, sum);
    }
    __syncthreads();
    load_tile<W, false>(inverse, b, i0, i0, left);
    each_of_tile<T, W>(INT64_MAX, 0, 0, sum, [&](int64_t i, int64_t j, T v) { right[j][i] = -v; });
    __syncthreads();
    T column[W / 16][W / 16] = {};
    multiply_tiles<T, W>(left, right, column);
    each_of_tile<T, W>(l, i0, j0, column, [&](int64_t i, int64_t j, T v) { inverse.at(b, i, j) = v; });
  }
}

}  // namespace laser
