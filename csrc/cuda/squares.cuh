// Work:    elementwise steps as in elementwise.cuh; add_symmetric one block per pair of 32 x 32 tiles that mirror each
//          other; trace one block per matrix.
// Memory:  affine 2, add 3, add_symmetric 3, equilibrate 2, restore 2 passes over a matrix; all bounded by bytes.
#pragma once
#include <cmath>

#include "cuda/elementwise.cuh"

namespace laser {

template <typename T>
struct Affine {
  Block<const T> x;
  T scale, shift;
  Block<T> out;

  __device__ void operator()(int64_t b, int64_t i, int64_t j) const {
    const T scaled = scale * x.at(b, i, j);
    out.at(b, i, j) = i == j ? scaled + shift : scaled;
  }
};

template <typename T>
struct Add {
  T alpha;
  Block<const T> x;
  T beta;
  Block<T> y;

  __device__ void operator()(int64_t b, int64_t i, int64_t j) const {
    T& to = y.at(b, i, j);
    to = alpha * x.at(b, i, j) + beta * to;
  }
};

template <typename T>
struct Equilibrate {
  Block<const T> s;
  Block<T> unit, lower;
  int* shifted;
  double* failed;

  __device__ void operator()(int64_t b, int64_t i, int64_t j) const {
    const double own = double(s.at(b, i, i)), other = double(s.at(b, j, j));
    unit.at(b, i, j) = i == j ? T(1) : T(double(s.at(b, i, j)) / (sqrt(own) * sqrt(other)));
    if (i == j && !(own > 0)) {
      shifted[b] = 1;  // whoever comes here writes the same
    }
    if (i == 0 && j == 0) {
      failed[b] = 0;
    }
    if (j > i) {
      lower.at(b, i, j) = T(0);
    }
  }
};

template <typename T>
struct Restore {
  Block<const T> s;
  Block<T> w;
  const int* shifted;
  double* failed;

  __device__ void operator()(int64_t b, int64_t i, int64_t j) const {
    if (j <= i) {
      T& to = w.at(b, i, j);
      to = T(double(to) / sqrt(double(s.at(b, j, j))));
      if (shifted[b] != 0 || (i == j && !(to > T(0)))) {
        failed[b] = 1;  // whoever comes here writes the same
      }
    }
  }
};

//        j0         i0
//      +----+     +----+
//   i0 | x  |  j0 | x' |     x <- alpha (y + y'^T) + beta x,  x' <- alpha (y' + y^T) + beta x':
//      +----+     +----+     the same sums, so that x stays symmetric to the last bit
template <typename T>
__global__ void __launch_bounds__(256)
    add_symmetric_kernel(T alpha, Block<const T> y, T beta, Block<T> x, int64_t tiles, Selection sel) {
  __shared__ T below[32][33];
  __shared__ T above[32][33];
  const int64_t b = sel[int(blockIdx.x / (tiles * tiles))], t = blockIdx.x % (tiles * tiles), n = x.rows;
  const int64_t i0 = t / tiles * 32, j0 = t % tiles * 32;
  if (j0 > i0) {
    return;  // the whole block
  }
  const int c = threadIdx.x % 32, first = threadIdx.x / 32;
  for (int r = first; r < 32; r += 8) {
    below[r][c] = i0 + r < n && j0 + c < n ? y.at(b, i0 + r, j0 + c) : T(0);
    above[r][c] = j0 + r < n && i0 + c < n ? y.at(b, j0 + r, i0 + c) : T(0);
  }
  __syncthreads();
  for (int r = first; r < 32; r += 8) {
    if (i0 + r < n && j0 + c < n) {
      T& to = x.at(b, i0 + r, j0 + c);
      to = alpha * (below[r][c] + above[c][r]) + beta * to;
    }
    if (j0 < i0 && j0 + r < n && i0 + c < n) {
      T& to = x.at(b, j0 + r, i0 + c);
      to = alpha * (above[r][c] + below[c][r]) + beta * to;
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(256) trace_kernel(Block<const T> x, double* __restrict__ out, Selection sel) {
  __shared__ double scratch[32];
  const int64_t b = sel[int(blockIdx.x)];
  double sum = 0;
  for (int64_t i = threadIdx.x; i < x.rows; i += blockDim.x) {
    sum += double(x.at(b, i, i));
  }
  sum = block_reduce(sum, Sum(), scratch);
  if (threadIdx.x == 0) {
    out[b] = sum;
  }
}

}  // namespace laser
