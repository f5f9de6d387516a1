// Cholesky factorization and triangular inverse of a batch at once, right-looking in panels of W columns. Before
// panel p:
//
//        0       p               start     per matrix and panel: S into work, its deviation in parts, dead columns
//      +---+---+---+---+         conclude  per matrix: the deviation
//      | V |   |   |   |         and for each panel
//      +---+---+---+---+         panel     per matrix: D <- L_pp in work, V_pp = L_pp^-1 in inverse
//    p | Z | D |   |   |         column    per matrix and tile: R <- R L_pp^-T below; Z <- -V_pp Z to the left, done: V
//      +---+---+---+---+         trailing  per matrix and tile (i, k) below: k > p: T <- T - R_i R_k^T
//      | Z | R | T |   |                                                     k < p: Z <- Z + R_i V_pk
//      +---+---+---+---+                                                     k = p: Z <- R_i V_pp
//      | Z | R | T | T |
//      +---+---+---+---+         D, R, T in work; V, Z in inverse, Z_ik = sum of L_ij V_jk over k <= j < p
//
// Tries:   first S itself; the matrices that met a pivot at rounding level, and they alone, again with S + shift I. The
//          host enqueues both and waits for neither.
// Work:    in whole tiles l^3/3 + 2 W l^2 multiply-adds a try (l^3/6 for L and l^3/6 for L^-1 are needed): 0.9 G
//          for l = 1280. 16 x 16 threads with (W/16)^2 sums each; a warp reads 3 x 128 bytes of shared memory per
//          16 x 32 multiply-adds in float32.
// Memory:  2 l^2 (read S, write L^-1) at least; about l / W times through the L2 cache.
// Launches: 1 + 6 l / W whatever the batch, half of them of blocks that return at once; up to (l / W)^2 / 2 blocks per
//          matrix. panel has one per matrix: W steps with one barrier each.
// Limits:  count times tiles below 2^31.
// Ref:     Fukaya, Kannan, Nakatsukasa, Yamamoto, Yanagisawa: Shifted CholeskyQR (SISC 2020, arXiv 1809.11085). Pivots
//          replaced one by one (Gill, Murray 1974) would need one try, but were found to let rounding grow from pivot
//          to pivot where leading columns are ill-conditioned: columns of length 1e8 in float32 at l = 128 (emulator),
//          Inf in a model of it.
#pragma once
#include <cmath>

#include "core/philox.hpp"
#include "cuda/batch.cuh"
#include "cuda/elementwise.cuh"
#include "cuda/reduce.cuh"

namespace laser {

constexpr int kPanelThreads = 256;
// Per multiprocessor, for panel: left alone, ptxas keeps to 64 registers on sm_80 and spills.
constexpr int kPanelBlocks = 2;

template <typename T>
constexpr int kPanel = sizeof(T) == 4 ? 64 : 32;  // two tiles fit 48 KiB

template <typename T>
constexpr T kEps = sizeof(T) == 4 ? T(1.1920928955078125e-07) : T(2.2204460492503131e-16);

// A pivot below so many eps sqrt(l) is rounding: S has unit columns, and its entries and the sums behind a pivot are
// off by about eps sqrt(l). (The first shift of csrc/cpu/orthonormalize.hpp.)
constexpr double kLeastPivot = 8.0;

// The shift in eps ||S||_F. Measured over ranks 1 to 40, repeated columns and conditions to 1e14, l = 16 to 384, both
// types, l + 40 rows: 0.5 suffices; sums over many rows are off by more.
constexpr double kShift = 8.0;

// ||S - I|| below so many eps sqrt(l) is what orthonormal columns give.
constexpr double kRoundingOnly = 4.0;

// Tiles have rows of W and 16 bytes: rows begin 16-byte aligned, and 8 of them at one column lie in 32 different banks.
template <typename T>
constexpr int kVector = 16 / sizeof(T);

template <typename T>
struct alignas(16) Pack {
  T at[kVector<T>];
};

template <typename T>
struct alignas(16) Tile {
  T at[kPanel<T>][kPanel<T> + kVector<T>];
};

// A column shorter than 1e-2 after a pass that began with unit columns is what a shift or rounding left of a dependent
// one: 4e-3 ... 0.16 were met after the first pass where 70 columns had 40 nonzero rows, under 1e-3 after three.
constexpr double kDeadLength2 = 1e-4;
constexpr int kDead = -2;  // in the place of its diagonal entry: dropped like a failed pivot, but no failure

// Why more passes are needed: flags of shifted[b].
constexpr int kShifted = 1;   // a pivot was at rounding level
constexpr int kDropped = 2;   // and one was even with the shift: that column becomes zero
constexpr int kRefilled = 4;  // dead columns became zero

// --- normalize_columns

// The key that refilled columns are drawn with, the same for every matrix, whichever others are in the batch: not the
// sketch's, whose columns they must not repeat.
constexpr uint64_t kRefillSeed = 0x6F7274686FULL;

// Uniform and never zero: a sketch's small integers would give zero or parallel columns where there are few rows, and
// the same ones in every pass.
__device__ __forceinline__ double refill(int64_t i, int64_t j, int64_t rows) {
  const SketchKey key = sketch_key(kRefillSeed, 0);
  const Philox4x32 r = philox4x32(
      {{uint32_t(i), uint32_t(uint64_t(i) >> 32), uint32_t(j), uint32_t(uint64_t(j) >> 32)}}, key.key0, key.key1);
  const double uniform = (double(r.word[0]) + 0.5) * 0x1p-31 - 1.0;  // variance 1/3
  return uniform * sqrt(3 / double(rows));
}

template <typename T>
struct Normalize {
  Block<T> x;
  const double* norm2;  // (count, l)

  __device__ T take(int64_t b, int64_t i, int64_t j) const {
    const double sum = norm2[b * x.cols + j];
    const T before = x.at(b, i, j);
    return sum > 0 ? T(double(before) * (1 / sqrt(sum))) : sum == 0 ? T(refill(i, j, x.rows)) : before;
  }
  __device__ void put(int64_t b, int64_t i, int64_t j, T value) const { x.at(b, i, j) = value; }
};

// --- cholesky_inverse

template <typename T>
__device__ __forceinline__ bool is_done(const double* deviation, int64_t b, int64_t l) {
  return deviation[b] <= kRoundingOnly * double(kEps<T>) * sqrt(double(l));
}

// Nothing (more) to do for matrix b in this try.
template <typename T>
__device__ __forceinline__ bool is_idle(int attempt, const double* deviation, const int* shifted, int64_t b,
                                        int64_t l) {
  const bool failed = shifted[b] & kShifted;
  return attempt == 0 ? failed || is_done<T>(deviation, b, l) : !failed;
}

// eps ||S||_F where S has a unit diagonal.
template <typename T>
__device__ __forceinline__ double rounding(const double* deviation, int64_t b, int64_t l) {
  return double(kEps<T>) * sqrt(deviation[b] * deviation[b] + double(l));
}

// Work's tiles on and left of the diagonal; columns with an entry below `least` there are dead. In the first try also
// inverse's beside it, zero; ||S - I||_F of rows i0 .. i0 + W - 1 then waits for conclude in inverse(i0, i0), and its
// square would not fit T's range.
template <typename T>
__global__ void __launch_bounds__(kPanelThreads)
    start_kernel(Block<const T> s, Block<T> work, Block<T> inverse, unsigned panels, int attempt, T least,
                 const double* deviation, const int* shifted, Selection sel) {
  constexpr int W = kPanel<T>, kWarps = kPanelThreads / kWarpSize, kRows = W / kWarps;
  __shared__ double scratch[kWarpSize];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t b = sel[int(blockIdx.x / panels)], l = s.cols, i0 = int64_t(blockIdx.x % panels) * W;
  const bool first = attempt == 0;
  if (!first && is_idle<T>(attempt, deviation, shifted, b, l)) {
    return;  // the whole block
  }
  const T shift = first ? T(0) : T(kShift * rounding<T>(deviation, b, l));
  bool dead_row[kRows];
  for (int r = 0; r < kRows; ++r) {
    const int64_t i = i0 + warp + kWarps * r;
    dead_row[r] = i < l && s.at(b, i, i) < least;
  }
  double sum = 0;
  for (int64_t j = lane; j < (first || l < i0 + W ? l : i0 + W); j += kWarpSize) {
    const bool dead_column = s.at(b, j, j) < least;
    for (int r = 0; r < kRows; ++r) {
      const int64_t i = i0 + warp + kWarps * r;
      if (i < l) {
        const T v = s.at(b, i, j);
        const double off = double(v) - (i == j ? 1.0 : 0.0);
        sum += off * off;
        if (j < i0 + W) {
          const bool dead = dead_row[r] || dead_column;
          work.at(b, i, j) = i != j ? (dead ? T(0) : v) : dead ? T(kDead) : v + shift;
        }
        if (first && (j < i0 || j >= i0 + W)) {
          inverse.at(b, i, j) = T(0);
        }
      }
    }
  }
  sum = block_reduce(sum, Sum(), scratch);
  if (first && threadIdx.x == 0) {
    inverse.at(b, i0, i0) = T(sqrt(sum));
  }
}

template <typename T>
__global__ void __launch_bounds__(kPanelThreads)
    conclude_kernel(Block<const T> s, Block<const T> inverse, T least, bool keep, double* deviation, int* shifted,
                    Selection sel) {
  __shared__ double scratch[kWarpSize];
  const int64_t b = sel[int(blockIdx.x)], l = s.cols;
  double sum = 0, dead = 0;
  for (int64_t i = threadIdx.x; i < l; i += kPanelThreads) {
    const double part = i % kPanel<T> == 0 ? double(inverse.at(b, i, i)) : 0.0;
    sum += part * part;
    dead += s.at(b, i, i) < least ? 1.0 : 0.0;
  }
  sum = block_reduce(sum, Sum(), scratch);
  dead = block_reduce(dead, Sum(), scratch);
  if (threadIdx.x == 0) {
    deviation[b] = sqrt(sum);
    shifted[b] = (keep ? shifted[b] : 0) | (dead > 0 ? kRefilled : 0);
  }
}

// tile(i, j) = from(i0 + i, j0 + j), or its transpose; outside the matrix 0, on the diagonal 1.
template <bool kTransposed, typename B, typename T>
__device__ __forceinline__ void load_tile(const Block<B>& from, int64_t b, int64_t i0, int64_t j0, Tile<T>& tile) {
  constexpr int W = kPanel<T>;
  for (int e = threadIdx.x; e < W * W; e += kPanelThreads) {
    const int i = e / W, j = e % W;
    const bool inside = i0 + i < from.rows && j0 + j < from.cols;
    const T v = inside ? from.at(b, i0 + i, j0 + j) : i0 + i == j0 + j ? T(1) : T(0);
    (kTransposed ? tile.at[j][i] : tile.at[i][j]) = v;
  }
}

// sum(r, c) = a(row r) . b(row c); thread (y, x) of 16 x 16 has rows y + 16 r and columns x + 16 c.
template <typename T>
__device__ __forceinline__ void multiply_tiles(const Tile<T>& a, const Tile<T>& b,
                                               T (&sum)[kPanel<T> / 16][kPanel<T> / 16]) {
  constexpr int W = kPanel<T>, V = kVector<T>;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
#ifdef __CUDA_ARCH__
#pragma unroll 2
#endif
  for (int k = 0; k < W; k += V) {
    Pack<T> left[W / 16], right[W / 16];
    for (int r = 0; r < W / 16; ++r) {
      left[r] = *reinterpret_cast<const Pack<T>*>(&a.at[y + 16 * r][k]);
      right[r] = *reinterpret_cast<const Pack<T>*>(&b.at[x + 16 * r][k]);
    }
    for (int v = 0; v < V; ++v) {
      for (int r = 0; r < W / 16; ++r) {
        for (int c = 0; c < W / 16; ++c) {
          sum[r][c] += left[r].at[v] * right[c].at[v];
        }
      }
    }
  }
}

// f(i, j, sum) for the entries of a tile that lie in the matrix.
template <typename T, int N, typename F>
__device__ __forceinline__ void each_of_tile(int64_t l, int64_t i0, int64_t j0, const T (&sum)[N][N], const F& f) {
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  for (int r = 0; r < N; ++r) {
    for (int c = 0; c < N; ++c) {
      const int64_t i = i0 + y + 16 * r, j = j0 + x + 16 * c;
      if (i < l && j < l) {
        f(i, j, sum[r][c]);
      }
    }
  }
}

// Column j = 16 R + step of the tile: what is left of column j of D below row j, and what is done of row j of V before
// column j, cross the block through `line`; all else stays in registers. One barrier: lines of odd and even steps take
// turns. Entries of tiles r < c are neither kept up nor read.
template <int R, typename T>
__device__ __forceinline__ void eliminate(int step, T least, T (&a)[kPanel<T> / 16][kPanel<T> / 16], T* line,
                                          int failure, int* shifted, Tile<T>& factor) {
  constexpr int W = kPanel<T>, N = W / 16;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16, j = 16 * R + step;
  if (x == step) {
    for (int r = R; r < N; ++r) {
      if (16 * r + y > j) {
        line[16 * r + y] = a[r][R];
      }
    }
  }
  if (y == step) {
    for (int c = 0; c <= R; ++c) {
      if (16 * c + x < j) {
        line[16 * c + x] = a[R][c];
      }
    }
    if (x == step) {
      const T d = a[R][R];  // a NaN is kept
      line[j] = d <= least ? T(0) : 1 / sqrt(d);
      if (d <= least && d != T(kDead)) {
        *shifted |= failure;
      }
    }
  }
  __syncthreads();
  const T inverse = line[j];  // of the pivot; 0 makes row j of V and the rest of column j of L zero
  T row[N];                   // c < j: V(j, c); c = j: V(j, j); c > j: L(c, j)
  for (int c = 0; c < N; ++c) {
    row[c] = 16 * c + x == j ? inverse : line[16 * c + x] * inverse;
  }
  for (int r = R; r < N; ++r) {
    const int i = 16 * r + y;
    if (i > j) {
      const T below = line[i] * inverse;  // L(i, j)
      if (x == step) {
        factor.at[i][j] = below;
      }
      for (int c = 0; c <= r; ++c) {
        const T old = c == R && x == step ? T(0) : a[r][c];  // column j of D has become column j of V
        a[r][c] = old - below * row[c];
      }
    } else if (i == j) {
      if (x == step) {
        factor.at[j][j] = a[R][R] * inverse;
      }
      for (int c = 0; c <= R; ++c) {
        a[R][c] = 16 * c + x <= j ? row[c] : a[R][c];
      }
    }
  }
}

template <int R, typename T>
__device__ __forceinline__ void eliminate_all(T least, T (&a)[kPanel<T> / 16][kPanel<T> / 16], T (*line)[kPanel<T>],
                                              int failure, int* shifted, Tile<T>& factor) {
  for (int step = 0; step < 16; ++step) {
    eliminate<R>(step, least, a, line[step % 2], failure, shifted, factor);
  }
  if constexpr (R + 1 < kPanel<T> / 16) {
    eliminate_all<R + 1>(least, a, line, failure, shifted, factor);
  }
}

// L of the diagonal tile into work, with the zeros above it; V into inverse.
template <typename T>
__global__ void __launch_bounds__(kPanelThreads, kPanelBlocks)
    panel_kernel(Block<T> work, Block<T> inverse, int64_t j0, int attempt, const double* deviation, int* shifted,
                 Selection sel) {
  constexpr int N = kPanel<T> / 16;
  __shared__ T line[2][kPanel<T>];
  __shared__ Tile<T> factor;
  const int64_t b = sel[int(blockIdx.x)], l = work.cols;
  T a[N][N] = {};
  if (is_idle<T>(attempt, deviation, shifted, b, l)) {
    if (is_done<T>(deviation, b, l)) {
      each_of_tile(l, j0, j0, a, [&](int64_t i, int64_t j, T) { inverse.at(b, i, j) = T(i == j); });
    }
    return;  // the whole block
  }
  __syncthreads();  // everybody has read shifted[b], which a failing pivot sets
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  for (int r = 0; r < N; ++r) {
    for (int c = 0; c <= r; ++c) {
      const int64_t i = j0 + y + 16 * r, j = j0 + x + 16 * c;
      a[r][c] = i < l && j < l ? work.at(b, i, j) : T(i == j);
    }
  }
  const T least = T(attempt == 0 ? kLeastPivot * double(kEps<T>) * sqrt(double(l)) : rounding<T>(deviation, b, l));
  eliminate_all<0>(least, a, line, attempt == 0 ? kShifted : kDropped, shifted + b, factor);
  __syncthreads();  // factor is written
  each_of_tile(l, j0, j0, a, [&](int64_t i, int64_t j, T v) {
    inverse.at(b, i, j) = j <= i ? v : T(0);
    work.at(b, i, j) = j <= i ? factor.at[i - j0][j - j0] : T(0);
  });
}

template <typename T, int N>
__device__ __forceinline__ void store_tile(const T (&sum)[N][N], Tile<T>& tile) {
  each_of_tile(kPanel<T>, 0, 0, sum, [&](int64_t i, int64_t j, T v) { tile.at[i][j] = v; });
}

// R <- R L_pp^-T for the tiles of panel p below the diagonal, and V_pk = -V_pp Z_pk for those left of it. R V_pp^T
// alone leaves a residual of eps cond(L_pp), more than the shift that it has to spare; one step of refinement removes
// that.
template <typename T>
__global__ void __launch_bounds__(kPanelThreads)
    column_kernel(Block<T> work, Block<T> inverse, unsigned p, unsigned tiles, int attempt, const double* deviation,
                  const int* shifted, Selection sel) {
  constexpr int W = kPanel<T>;
  __shared__ Tile<T> left;
  __shared__ Tile<T> right;
  const int64_t b = sel[int(blockIdx.x / tiles)], l = work.cols, p0 = int64_t(p) * W;
  const unsigned t = blockIdx.x % tiles;
  if (is_idle<T>(attempt, deviation, shifted, b, l)) {
    return;
  }
  T sum[W / 16][W / 16] = {};
  if (t < p) {
    const int64_t k0 = int64_t(t) * W;
    load_tile<false>(inverse, b, p0, p0, left);
    load_tile<true>(inverse, b, p0, k0, right);
    __syncthreads();
    multiply_tiles(left, right, sum);
    each_of_tile(l, p0, k0, sum, [&](int64_t i, int64_t j, T v) { inverse.at(b, i, j) = -v; });
  } else {
    const int64_t i0 = int64_t(t + 1) * W;
    load_tile<false>(work, b, i0, p0, left);
    load_tile<false>(inverse, b, p0, p0, right);
    __syncthreads();
    multiply_tiles(left, right, sum);
    T residual[W / 16][W / 16], product[W / 16][W / 16] = {};
    for (int r = 0; r < W / 16; ++r) {
      for (int c = 0; c < W / 16; ++c) {
        residual[r][c] = left.at[threadIdx.x / 16 + 16 * r][threadIdx.x % 16 + 16 * c];
      }
    }
    __syncthreads();  // the tiles are read
    store_tile(sum, left);
    load_tile<false>(work, b, p0, p0, right);
    __syncthreads();
    multiply_tiles(left, right, product);
    for (int r = 0; r < W / 16; ++r) {
      for (int c = 0; c < W / 16; ++c) {
        residual[r][c] -= product[r][c];
      }
    }
    __syncthreads();
    store_tile(residual, left);
    load_tile<false>(inverse, b, p0, p0, right);
    __syncthreads();
    multiply_tiles(left, right, sum);
    each_of_tile(l, i0, p0, sum, [&](int64_t i, int64_t j, T v) { work.at(b, i, j) = v; });
  }
}

// The tiles (i, k), k <= i, of the rows below panel p.
template <typename T>
__global__ void __launch_bounds__(kPanelThreads)
    trailing_kernel(Block<T> work, Block<T> inverse, unsigned p, unsigned tiles, int attempt, const double* deviation,
                    const int* shifted, Selection sel) {
  constexpr int W = kPanel<T>;
  __shared__ Tile<T> left;
  __shared__ Tile<T> right;
  const int64_t b = sel[int(blockIdx.x / tiles)], l = work.cols, p0 = int64_t(p) * W;
  if (is_idle<T>(attempt, deviation, shifted, b, l)) {
    return;
  }
  unsigned i = p + 1, k = blockIdx.x % tiles;
  while (k > i) {  // row i has i + 1 tiles
    k -= ++i;
  }
  const int64_t i0 = int64_t(i) * W, k0 = int64_t(k) * W;
  T sum[W / 16][W / 16] = {};
  load_tile<false>(work, b, i0, p0, left);
  if (k > p) {
    load_tile<false>(work, b, k0, p0, right);
  } else {
    load_tile<true>(inverse, b, p0, k0, right);
  }
  __syncthreads();
  multiply_tiles(left, right, sum);
  if (k > p) {
    each_of_tile(l, i0, k0, sum, [&](int64_t r, int64_t c, T v) { work.at(b, r, c) -= v; });
  } else if (k < p) {
    each_of_tile(l, i0, k0, sum, [&](int64_t r, int64_t c, T v) { inverse.at(b, r, c) += v; });
  } else {
    each_of_tile(l, i0, k0, sum, [&](int64_t r, int64_t c, T v) { inverse.at(b, r, c) = v; });
  }
}

}  // namespace laser
