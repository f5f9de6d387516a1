// prepare, sketch, columns and judge, one by one.
#include <algorithm>
#include <vector>

#include "cuda/certify.hpp"
#include "cuda/columns.hpp"
#include "cuda/context.hpp"
#include "cuda/judge.hpp"
#include "cuda/prepare.hpp"
#include "cuda/sketch.hpp"
#include "emulated.hpp"

namespace {

using namespace laser;

Selection of(const int* index, int64_t count) { return {index, int(count)}; }

void must(cudaError_t status) { check(status, "test", 0, 0, 0); }

template <typename T>
Block<T> dense(const void* data, int64_t count, int64_t rows, int64_t cols) {
  return Block<T>::dense(static_cast<T*>(const_cast<void*>(data)), count, rows, cols);
}

}  // namespace

// out (count, 3): norm2 of the scaled weight, largest magnitude, exponent.
EMU_EXPORT int emu_prepare(const void* weight, int64_t dtype, int64_t count, int64_t rows, int64_t cols, int64_t stride,
                           int64_t row_stride, int64_t wide, double* out) {
  return guarded([&] {
    std::vector<Prepared> prepared(count);
    std::vector<double> partial(prepare_partials(rows, count));
    must(prepare({weight, Dtype(dtype), count, rows, cols, stride, row_stride}, wide ? kSafeWide : kSafe,
                 prepared.data(), partial.data(), nullptr));
    for (int64_t b = 0; b < count; ++b) {
      out[3 * b] = prepared[b].norm2;
      out[3 * b + 1] = prepared[b].top;
      out[3 * b + 2] = prepared[b].exponent;
    }
  });
}

EMU_EXPORT int emu_load(const void* weight, int64_t dtype, int64_t count, int64_t rows, int64_t cols, int64_t stride,
                        int64_t row_stride, int64_t exponent, double* out, int64_t slices, uint16_t* cut) {
  return guarded([&] {
    const Weight w{weight, Dtype(dtype), count, rows, cols, stride, row_stride};
    const std::vector<Prepared> prepared(count, Prepared{0, 0, int(exponent)});
    must(load(w, 0, prepared.data(), Block<double>::dense(out, count, rows, cols), nullptr));
    must(load_slices(w, 0, prepared.data(), dense<BFloat16>(cut, count, rows, cols), int(slices), count * rows * cols,
                     nullptr));
  });
}

EMU_EXPORT int emu_sketch(float* q, int64_t count, int64_t n, int64_t l, int64_t seed, const int64_t* keys) {
  return guarded([&] { must(sketch(Block<float>::dense(q, count, n, l), uint64_t(seed), keys, nullptr)); });
}

EMU_EXPORT int emu_slice(const float* x, int64_t count, int64_t rows, int64_t cols, int64_t slices, uint16_t* out) {
  return guarded([&] {
    must(slice(dense<const float>(x, count, rows, cols), dense<BFloat16>(out, count, rows, cols), int(slices),
               count * rows * cols, of(nullptr, count), nullptr));
  });
}

EMU_EXPORT int emu_mirror(double* g, int64_t count, int64_t n, const int* index, int64_t selected) {
  return guarded([&] { must(mirror(dense<double>(g, count, n, n), of(index, selected), nullptr)); });
}

EMU_EXPORT int emu_chebyshev(const double* x, const double* z, double* out, int64_t count, int64_t rows, int64_t cols,
                             const double* slope, int64_t factor, const int* index, int64_t selected) {
  return guarded([&] {
    std::vector<Progress> progress(count);
    for (int64_t b = 0; b < count; ++b) {
      progress[b].slope = slope[b];
    }
    must(chebyshev(dense<const double>(x, count, rows, cols), dense<const double>(z, count, rows, cols),
                   progress.data(), int(factor), dense<double>(out, count, rows, cols), of(index, selected), nullptr));
  });
}

EMU_EXPORT int emu_ritz_residuals(const float* x, const float* z, const double* theta, double* out, int64_t count,
                                  int64_t rows, int64_t cols, const int* index, int64_t selected) {
  return guarded([&] {
    std::vector<double> partial(column_partials(rows, cols, count));
    must(ritz_residuals(dense<const float>(x, count, rows, cols), dense<const float>(z, count, rows, cols), theta, out,
                        partial.data(), of(index, selected), nullptr));
  });
}

EMU_EXPORT int emu_dot(const float* x, const float* y, double* out, int64_t count, int64_t rows, int64_t cols,
                       const int* index, int64_t selected) {
  return guarded([&] {
    std::vector<double> partial(column_partials(rows, cols, count));
    must(dot(dense<const float>(x, count, rows, cols), dense<const float>(y, count, rows, cols), out, partial.data(),
             of(index, selected), nullptr));
  });
}

EMU_EXPORT int emu_recurrence(const float* before, const float* now, float* next, double* sums, int64_t count,
                              int64_t rows, int64_t cols, const int* index, int64_t selected) {
  return guarded([&] {
    std::vector<double> partial(recurrence_partials(rows, count));
    must(recurrence(dense<const float>(before, count, rows, cols), dense<const float>(now, count, rows, cols),
                    dense<float>(next, count, rows, cols), sums, partial.data(), of(index, selected), nullptr));
  });
}

EMU_EXPORT int emu_diagonal(const float* m, float* u, int64_t count, int64_t l, int64_t rows, double* sigma,
                            int* diagonal) {
  return guarded([&] {
    must(laser::diagonal(dense<const float>(m, count, l, l), dense<float>(u, count, rows, l), sigma, diagonal,
                         of(nullptr, count), nullptr));
  });
}

EMU_EXPORT int emu_column_signs(const float* u, double* sign, int64_t count, int64_t rows, int64_t cols) {
  return guarded(
      [&] { must(column_signs(dense<const float>(u, count, rows, cols), sign, of(nullptr, count), nullptr)); });
}

// The same step on the host and on the device: out (2, count, 6) of missing, bound, remainder, cut, needed, status.
EMU_EXPORT int emu_judge(const double* theta, const double* residual2, const double* norm2, int64_t count, int64_t rank,
                         int64_t block, int64_t n, double tol, double* out) {
  return guarded([&] {
    for (int where = 0; where < 2; ++where) {
      std::vector<Progress> progress(count);
      std::vector<double> loss(count * block);
      const RitzStep step{theta,
                          residual2,
                          loss.data(),
                          norm2,
                          norm2,
                          progress.data(),
                          nullptr,
                          rank,
                          block,
                          n,
                          {tol, 1e-7, 4e-7, 1e-6},
                          4,
                          60,
                          true,
                          true};
      if (where == 0) {
        for (int64_t b = 0; b < count; ++b) {
          judge(SerialTeam{}, step, b);
        }
      } else {
        must(judge(step, of(nullptr, count), nullptr));
      }
      for (int64_t b = 0; b < count; ++b) {
        const Progress& p = progress[b];
        const double row[6] = {p.missing, p.bound, p.remainder, p.cut, double(p.needed), double(int(p.status))};
        std::copy(row, row + 6, out + (where * count + b) * 6);
      }
    }
  });
}
