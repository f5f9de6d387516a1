// Work:    elementwise steps as in elementwise.cuh; add_symmetric one block per pair of 32 x 32 tiles that mirror each
//          other; trace and find_failures one block per matrix.
// Memory:  affine 2, add 3, add_symmetric 3, equilibrate 2, zero and zero_failed 1 passes over a matrix; all bounded by
// bytes.
#pragma once
#include <cmath>

#include "cuda/elementwise.cuh"

namespace laser {

template <typename T>
struct Affine {
  Block<const T> x;
  T scale, shift;
  Block<T> out;

  __device__ T take(int64_t b, int64_t i, int64_t j) const {
    const T scaled = scale * x.at(b, i, j);
    return i == j ? scaled + shift : scaled;
  }
  __device__ void put(int64_t b, int64_t i, int64_t j, T value) const { out.at(b, i, j) = value; }
};

template <typename T>
struct Add {
  T alpha;
  Block<const T> x;
  T beta;
  Block<T> y;

  __device__ T take(int64_t b, int64_t i, int64_t j) const { return alpha * x.at(b, i, j) + beta * y.at(b, i, j); }
  __device__ void put(int64_t b, int64_t i, int64_t j, T value) const { y.at(b, i, j) = value; }
};

// root[b * n + i] = 1 / sqrt(s(i, i)).
template <typename T>
struct Roots {
  Block<const T> s;
  double* root;
  int* shifted;

  __device__ T take(int64_t b, int64_t, int64_t i) const { return s.at(b, i, i); }
  __device__ void put(int64_t b, int64_t, int64_t i, T pivot) const {
    root[b * s.cols + i] = 1 / sqrt(double(pivot));
    if (!(pivot > 0)) {
      shifted[b] = 1;  // whoever comes here writes the same
    }
  }
};

template <typename T>
struct Equilibrate {
  Block<const T> s;
  const double* root;
  Block<T> unit;

  __device__ T take(int64_t b, int64_t i, int64_t j) const {
    const double* r = root + b * s.cols;
    return i == j ? T(1) : T(double(s.at(b, i, j)) * r[i] * r[j]);
  }
  __device__ void put(int64_t b, int64_t i, int64_t j, T value) const { unit.at(b, i, j) = value; }
};

template <typename T>
struct Zero {
  Block<T> x;

  __device__ T take(int64_t, int64_t, int64_t) const { return T(0); }
  __device__ void put(int64_t b, int64_t i, int64_t j, T value) const { x.at(b, i, j) = value; }
};

template <typename T>
struct ZeroFailed {
  const double* failed;
  Block<T> w;

  __device__ bool take(int64_t b, int64_t, int64_t) const { return failed[b] != 0; }
  __device__ void put(int64_t b, int64_t i, int64_t j, bool value) const {
    if (value) {
      w.at(b, i, j) = T(0);
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

template <typename T>
__global__ void __launch_bounds__(256) find_failures_kernel(Block<const T> w, const int* __restrict__ shifted,
                                                            double* __restrict__ failed, Selection sel) {
  __shared__ double scratch[32];
  const int64_t b = sel[int(blockIdx.x)];
  double bad = shifted[b] != 0 ? 1.0 : 0.0;
  for (int64_t i = threadIdx.x; i < w.rows; i += blockDim.x) {
    bad = w.at(b, i, i) > T(0) ? bad : 1.0;
  }
  bad = block_reduce(bad, Max(), scratch);
  if (threadIdx.x == 0) {
    failed[b] = bad;
  }
}

}  // namespace laser
