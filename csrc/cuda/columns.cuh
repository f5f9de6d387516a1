// Work:    elementwise steps as in elementwise.cuh. Column sums: one block per 32 columns and kSumRows rows, 8 rows
//          side by side, then one thread per column adds the parts up.
// Memory:  copy 2, truncate at most 1, slice 1 + slices/2, add_columns 1 + parts, chebyshev 2 to 4, column sums 1 or 2
//          passes over a block: all bounded by bytes.
// Order:   sums are float64, in an order that depends on the shape alone.
#pragma once
#include "core/certificate.hpp"
#include "cuda/elementwise.cuh"
#include "cuda/slices.hpp"

namespace laser {

template <typename T>
struct Copy {
  Block<const T> from;
  Block<T> to;

  __device__ T take(int64_t b, int64_t i, int64_t j) const { return from.at(b, i, j); }
  __device__ void put(int64_t b, int64_t i, int64_t j, T value) const { to.at(b, i, j) = value; }
};

template <typename T>
struct Truncate {
  Block<T> x;
  const int64_t* ranks;

  __device__ bool take(int64_t b, int64_t, int64_t j) const { return j >= ranks[b]; }
  __device__ void put(int64_t b, int64_t i, int64_t j, bool beyond) const {
    if (beyond) {
      x.at(b, i, j) = T(0);
    }
  }
};

template <typename T>
struct Slice {
  Block<const T> from;
  Block<BFloat16> to;
  int slices;
  int64_t part;

  __device__ T take(int64_t b, int64_t i, int64_t j) const { return from.at(b, i, j); }
  __device__ void put(int64_t b, int64_t i, int64_t j, T value) const {
    cut(float(value), slices, &to.at(b, i, j), part);
  }
};

template <typename T>
struct AddColumns {
  Block<const T> from;
  int parts;
  int64_t pitch;
  Block<T> to;

  __device__ T take(int64_t b, int64_t i, int64_t j) const {
    T sum = T(0);
    LASER_NO_UNROLL for (int k = parts - 1; k >= 0; --k) { sum += from.at(b, i, k * pitch + j); }
    return sum;
  }
  __device__ void put(int64_t b, int64_t i, int64_t j, T value) const { to.at(b, i, j) = value; }
};

template <typename T>
struct Chebyshev {
  Block<const T> x, z;
  const Progress* progress;
  int factor;
  Block<T> out;

  __device__ T take(int64_t b, int64_t i, int64_t j) const {
    const T slope = T(progress[b].slope);
    if (slope == 0) {
      return x.at(b, i, j);
    }
    const T shifted = slope * x.at(b, i, j) - z.at(b, i, j);
    return factor == 1 ? shifted : 2 * shifted - out.at(b, i, j);
  }
  __device__ void put(int64_t b, int64_t i, int64_t j, T value) const { out.at(b, i, j) = value; }
};

template <typename T, typename To>
struct ScaleColumns {
  Block<const T> from;
  const double* scale;
  Block<To> to;

  __device__ To take(int64_t b, int64_t i, int64_t j) const {
    return To(double(from.at(b, i, j)) * scale[b * from.cols + j]);
  }
  __device__ void put(int64_t b, int64_t i, int64_t j, To value) const { to.at(b, i, j) = value; }
};

template <typename T>
struct WidenRow {
  Block<const T> row;
  double* out;

  __device__ T take(int64_t b, int64_t, int64_t j) const { return row.at(b, 0, j); }
  __device__ void put(int64_t b, int64_t, int64_t j, T value) const { out[b * row.cols + j] = double(value); }
};

// One block per 32x32 tile on or below the diagonal: read along rows, written along rows of the transpose.
template <typename T>
__global__ void __launch_bounds__(256) mirror_kernel(Block<T> g, int64_t tiles, Selection sel) {
  __shared__ T tile[32][33];
  const int64_t b = sel[int(blockIdx.x / (tiles * tiles))], t = blockIdx.x % (tiles * tiles);
  const int64_t i0 = t / tiles * 32, j0 = t % tiles * 32;
  if (j0 > i0) {
    return;  // the whole block
  }
  const int x = threadIdx.x % 32, y = threadIdx.x / 32;
  for (int i = y; i < 32; i += 8) {
    if (i0 + i < g.rows && j0 + x < g.cols) {
      tile[i][x] = g.at(b, i0 + i, j0 + x);
    }
  }
  __syncthreads();
  for (int j = y; j < 32; j += 8) {  // row j0 + j of the transpose
    if (i0 + x < g.rows && j0 + j < i0 + x) {
      g.at(b, j0 + j, i0 + x) = tile[x][j];
    }
  }
}

constexpr int kSumRows = 256;

template <typename T>
struct ResidualTerm {
  Block<const T> x, z;
  const double* theta;

  __device__ double operator()(int64_t b, int64_t i, int64_t j) const {
    const double r = double(x.at(b, i, j)) - theta[b * x.cols + j] * double(z.at(b, i, j));
    return r * r;
  }
};

template <typename T>
struct ProductTerm {
  Block<const T> x, y;

  __device__ double operator()(int64_t b, int64_t i, int64_t j) const {
    return double(x.at(b, i, j)) * double(y.at(b, i, j));
  }
};

// partial (sel.count, chunks, cols): sums of term(b, i, j) over the chunk's rows i.
template <typename Term>
__global__ void __launch_bounds__(256) column_sums_kernel(Term term, int64_t rows, int64_t cols, int64_t strips,
                                                          int64_t chunks, double* __restrict__ partial, Selection sel) {
  __shared__ double part[8][32];
  const int64_t strip = blockIdx.x % strips, chunk = blockIdx.x / strips % chunks, s = blockIdx.x / strips / chunks;
  const int64_t b = sel[int(s)], j = strip * 32 + threadIdx.x % 32;
  const int64_t first = chunk * kSumRows, last = first + kSumRows < rows ? first + kSumRows : rows;
  double sum = 0;
  for (int64_t i = first + threadIdx.x / 32; j < cols && i < last; i += 8) {
    sum += term(b, i, j);
  }
  part[threadIdx.x / 32][threadIdx.x % 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32 && j < cols) {
    for (int k = 1; k < 8; ++k) {
      sum += part[k][threadIdx.x];
    }
    partial[(s * chunks + chunk) * cols + j] = sum;
  }
}

// out[b * cols + j] = sum over chunks.
__global__ void __launch_bounds__(128) add_chunks_kernel(const double* __restrict__ partial, int64_t cols,
                                                         int64_t chunks, double* __restrict__ out, Selection sel) {
  const int64_t e = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (e < sel.count * cols) {
    const int64_t s = e / cols, j = e % cols;
    double sum = 0;
    for (int64_t c = 0; c < chunks; ++c) {
      sum += partial[(s * chunks + c) * cols + j];
    }
    out[sel[int(s)] * cols + j] = sum;
  }
}

constexpr int kRecurrenceRows = 64;
constexpr int kRecurrenceEach = 4;  // elements on their way per thread (elementwise.cuh)

// One block per matrix and 64 rows. partial (2, sel.count, chunks): sums of now^2 and of now next over the chunk.
template <typename T>
__global__ void __launch_bounds__(256) recurrence_kernel(Block<const T> before, Block<const T> now, Block<T> next,
                                                         int64_t chunks, double* __restrict__ partial, Selection sel) {
  __shared__ double scratch[32];
  const int64_t s = blockIdx.x / chunks, chunk = blockIdx.x % chunks, b = sel[int(s)];
  const int64_t first = chunk * kRecurrenceRows, left = now.rows - first, cols = now.cols;
  const int size = int((left < kRecurrenceRows ? left : kRecurrenceRows) * cols), step = blockDim.x;
  double squares = 0, products = 0;
  LASER_NO_UNROLL for (int e0 = threadIdx.x; e0 < size; e0 += kRecurrenceEach * step) {
    T x[kRecurrenceEach], y[kRecurrenceEach];
#pragma unroll
    for (int k = 0; k < kRecurrenceEach; ++k) {
      const int e = e0 + k * step;
      if (e < size) {
        const int64_t i = first + e / int(cols), j = e % int(cols);
        x[k] = now.at(b, i, j);
        y[k] = 2 * next.at(b, i, j) - before.at(b, i, j);
      }
    }
#pragma unroll
    for (int k = 0; k < kRecurrenceEach; ++k) {
      const int e = e0 + k * step;
      if (e < size) {
        next.at(b, first + e / int(cols), e % int(cols)) = y[k];
        squares += double(x[k]) * double(x[k]);
        products += double(x[k]) * double(y[k]);
      }
    }
  }
  squares = block_reduce(squares, Sum(), scratch);
  products = block_reduce(products, Sum(), scratch);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = squares;
    partial[gridDim.x + blockIdx.x] = products;
  }
}

// out[b], out[count + b] = the sums over chunks; one block per matrix and sum.
__global__ void __launch_bounds__(128) add_recurrence_kernel(const double* __restrict__ partial, int64_t chunks,
                                                             int64_t count, double* __restrict__ out, Selection sel) {
  __shared__ double scratch[32];
  const int64_t which = blockIdx.x / sel.count, s = blockIdx.x % sel.count;
  double sum = 0;
  for (int64_t c = threadIdx.x; c < chunks; c += blockDim.x) {
    sum += partial[blockIdx.x * chunks + c];
  }
  sum = block_reduce(sum, Sum(), scratch);
  if (threadIdx.x == 0) {
    out[which * count + sel[int(s)]] = sum;
  }
}

// out[b] = sum over chunks and columns; one block per matrix.
__global__ void __launch_bounds__(256)
    add_all_kernel(const double* __restrict__ partial, int64_t per_matrix, double* __restrict__ out, Selection sel) {
  __shared__ double scratch[32];
  double sum = 0;
  for (int64_t e = threadIdx.x; e < per_matrix; e += blockDim.x) {
    sum += partial[blockIdx.x * per_matrix + e];
  }
  sum = block_reduce(sum, Sum(), scratch);
  if (threadIdx.x == 0) {
    out[sel[blockIdx.x]] = sum;
  }
}

// Off-diagonal part of a matrix that may be dropped, in units of eps times its largest entry: rounding level.
constexpr double kDiagonal = 8.0;

// One block per matrix.
template <typename T>
__global__ void __launch_bounds__(256)
    diagonal_kernel(Block<const T> m, Block<T> u, double eps, double* sigma, int* diagonal, Selection sel) {
  __shared__ double scratch[32];
  const int64_t b = sel[blockIdx.x], l = m.cols;
  double off = 0, top = 0;
  bool nan = false;
  for (int64_t e = threadIdx.x; e < l * l; e += blockDim.x) {
    const double v = double(m.at(b, e / l, e % l)), size = v < 0 ? -v : v;
    nan = nan || v != v;
    (e / l == e % l ? top : off) = Max()(e / l == e % l ? top : off, size);
  }
  off = block_reduce(off, Max(), scratch);
  top = block_reduce(top, Max(), scratch);
  const bool spoiled = block_reduce(nan ? 1.0 : 0.0, Max(), scratch) > 0;
  double negative = 0;
  for (int64_t j = threadIdx.x; j < l; j += blockDim.x) {
    const double v = double(m.at(b, j, j));
    sigma[b * l + j] = v < 0 ? -v : v;
    negative = v < 0 ? 1.0 : negative;
  }
  negative = block_reduce(negative, Max(), scratch);  // and everybody has written sigma
  if (threadIdx.x == 0) {
    diagonal[b] = !spoiled && off <= kDiagonal * eps * top;
    double above = 1.7976931348623157e308;
    for (int64_t j = 0; j < l; ++j) {  // neighbours may be out of order by rounding
      const double size = sigma[b * l + j];
      above = size < above ? size : above;
      sigma[b * l + j] = above;
    }
  }
  for (int64_t e = threadIdx.x; negative > 0 && e < u.rows * l; e += blockDim.x) {
    if (m.at(b, e % l, e % l) < T(0)) {
      u.at(b, e / l, e % l) = -u.at(b, e / l, e % l);
    }
  }
}

// One block per 32 columns of a matrix. The first of equal magnitudes counts.
template <typename T>
__global__ void __launch_bounds__(256)
    column_signs_kernel(Block<const T> u, int64_t strips, double* sign, Selection sel) {
  __shared__ T value[8][32];
  __shared__ int64_t where[8][32];
  const int x = threadIdx.x % 32, y = threadIdx.x / 32;
  const int64_t b = sel[int(blockIdx.x / strips)], j = blockIdx.x % strips * 32 + x;
  T best = 0;
  int64_t row = u.rows;
  for (int64_t i = y; j < u.cols && i < u.rows; i += 8) {
    const T v = u.at(b, i, j);
    if ((v < 0 ? -v : v) > (best < 0 ? -best : best)) {
      best = v;
      row = i;
    }
  }
  value[y][x] = best;
  where[y][x] = row;
  __syncthreads();
  if (y == 0 && j < u.cols) {
    for (int k = 1; k < 8; ++k) {
      const T v = value[k][x], size = v < 0 ? -v : v, most = best < 0 ? -best : best;
      if (size > most || (size == most && where[k][x] < row)) {
        best = v;
        row = where[k][x];
      }
    }
    sign[b * u.cols + j] = best < 0 ? -1.0 : 1.0;
  }
}

}  // namespace laser
