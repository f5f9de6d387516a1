// The whole CUDA backend on the host: driver, LinalgCuda, kernels, with a host's cuBLAS and dense solver.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "core/truncated_svd.hpp"
#include "cuda/dense_solvers.hpp"
#include "cuda/linalg_cuda.hpp"
#include "cuda/rank_reduce.hpp"
#include "emulated.hpp"
#include "fake_cublas.hpp"

namespace {

using namespace laser;

int64_t unsolvable = 0;  // how many matrices, the next ones, HostSolver gives up

// One-sided Jacobi in float64; symmetric problems as SVDs of h + shift I would lose their signs, so those go by
// two-sided rotations.
class HostSolver final : public DenseSolver {
 public:
  int64_t calls = 0;

  void eigh(Block<const float> h, Block<float> w, double* theta, Selection sel) override { solve(h, w, theta, sel); }
  void eigh(Block<const double> h, Block<double> w, double* theta, Selection sel) override { solve(h, w, theta, sel); }
  void svd(Block<const float> a, Block<float> u, float* s, Block<float> vt, Selection sel, int* status) override {
    decompose(a, u, s, vt, sel, status);
  }
  void svd(Block<const double> a, Block<double> u, double* s, Block<double> vt, Selection sel, int* status) override {
    decompose(a, u, s, vt, sel, status);
  }

 private:
  static bool given_up() { return unsolvable > 0 && unsolvable-- > 0; }

  template <typename T>
  void solve(Block<const T> h, Block<T> w, double* theta, Selection sel) {
    ++calls;
    const int64_t l = h.cols;
    for (int s = 0; s < sel.count; ++s) {
      const int64_t b = sel[s];
      if (given_up()) {
        std::fill_n(theta + b * l, l, NAN);
        for (int64_t i = 0; i < l * l; ++i) {
          w.at(b, i / l, i % l) = 0;
        }
        continue;
      }
      std::vector<double> a(l * l), v(l * l, 0.0);
      for (int64_t i = 0; i < l; ++i) {
        v[i * l + i] = 1;
        for (int64_t j = 0; j < l; ++j) {
          a[i * l + j] = h.at(b, i, j);
        }
      }
      for (int sweep = 0; sweep < 40; ++sweep) {
        for (int64_t p = 0; p < l; ++p) {
          for (int64_t q = p + 1; q < l; ++q) {
            const double apq = a[p * l + q];
            if (std::abs(apq) < 1e-300) {
              continue;
            }
            const double zeta = (a[q * l + q] - a[p * l + p]) / (2 * apq);
            const double t = std::copysign(1.0, zeta) / (std::abs(zeta) + std::sqrt(1 + zeta * zeta));
            const double c = 1 / std::sqrt(1 + t * t), d = c * t;
            for (int64_t k = 0; k < l; ++k) {
              const double x = a[k * l + p], y = a[k * l + q];
              a[k * l + p] = c * x - d * y;
              a[k * l + q] = d * x + c * y;
            }
            for (int64_t k = 0; k < l; ++k) {
              const double x = a[p * l + k], y = a[q * l + k];
              a[p * l + k] = c * x - d * y;
              a[q * l + k] = d * x + c * y;
              const double vx = v[k * l + p], vy = v[k * l + q];
              v[k * l + p] = c * vx - d * vy;
              v[k * l + q] = d * vx + c * vy;
            }
          }
        }
      }
      std::vector<int64_t> order(l);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) { return a[x * l + x] > a[y * l + y]; });
      for (int64_t j = 0; j < l; ++j) {
        theta[b * l + j] = a[order[j] * l + order[j]];
        for (int64_t i = 0; i < l; ++i) {
          w.at(b, i, j) = T(v[i * l + order[j]]);
        }
      }
    }
  }

  template <typename T>
  void decompose(Block<const T> a, Block<T> u, T* sigma, Block<T> vt, Selection sel, int* status) {
    ++calls;
    const int64_t m = a.rows, n = a.cols;
    for (int s = 0; s < sel.count; ++s) {
      const int64_t b = sel[s];
      status[b] = given_up();
      if (status[b]) {
        continue;
      }
      std::vector<double> x(m * n), v(n * n, 0.0);
      bool zero = true;
      for (int64_t j = 0; j < n; ++j) {
        v[j * n + j] = 1;
        for (int64_t i = 0; i < m; ++i) {
          x[j * m + i] = a.at(b, i, j);
          zero = zero && x[j * m + i] == 0;
        }
      }
      if (zero) {  // cuSOLVER has answered NaN
        std::fill(v.begin(), v.end(), NAN);
      }
      const auto dot = [&](int64_t p, int64_t q) {
        return std::inner_product(&x[p * m], &x[p * m] + m, &x[q * m], 0.0);
      };
      for (int sweep = 0; sweep < 40; ++sweep) {
        for (int64_t p = 0; p < n; ++p) {
          for (int64_t q = p + 1; q < n; ++q) {
            const double pq = dot(p, q), pp = dot(p, p), qq = dot(q, q);
            if (std::abs(pq) <= 1e-15 * std::sqrt(pp * qq)) {
              continue;
            }
            const double zeta = (qq - pp) / (2 * pq);
            const double t = std::copysign(1.0, zeta) / (std::abs(zeta) + std::sqrt(1 + zeta * zeta));
            const double c = 1 / std::sqrt(1 + t * t), d = c * t;
            const auto rotate = [&](double* y, double* z, int64_t count) {
              for (int64_t k = 0; k < count; ++k) {
                const double before = y[k];
                y[k] = c * before - d * z[k];
                z[k] = d * before + c * z[k];
              }
            };
            rotate(&x[p * m], &x[q * m], m);
            rotate(&v[p * n], &v[q * n], n);
          }
        }
      }
      std::vector<double> value(n);
      std::vector<int64_t> order(n);
      std::iota(order.begin(), order.end(), 0);
      for (int64_t j = 0; j < n; ++j) {
        value[j] = std::sqrt(dot(j, j));
      }
      std::stable_sort(order.begin(), order.end(), [&](int64_t p, int64_t q) { return value[p] > value[q]; });
      for (int64_t j = 0; j < n; ++j) {
        const int64_t from = order[j];
        sigma[b * n + j] = T(value[from]);
        for (int64_t i = 0; i < m; ++i) {
          u.at(b, i, j) = value[from] > 0 ? T(x[from * m + i] / value[from]) : T(i == j);
        }
        for (int64_t i = 0; i < n; ++i) {
          vt.at(b, j, i) = T(v[from * n + i]);
        }
      }
    }
  }
};

// What the tests learn about a call beside its results.
struct Observed {
  int64_t solver_calls, allocations, most_bytes, host_steps;
} observed;

// Memory that fails beyond `limit` bytes at a time, and starts as rubbish.
struct Arena {
  int64_t limit, used = 0;

  std::shared_ptr<void> allocate(size_t bytes) {
    if (limit > 0 && used + int64_t(bytes) > limit) {
      throw OutOfMemory("emulated device memory is used up");
    }
    used += int64_t(bytes);
    ++observed.allocations;
    observed.most_bytes = std::max(observed.most_bytes, used);
    void* data = std::malloc(bytes);
    std::memset(data, 0xCD, bytes);
    return {data, [this, bytes](void* p) {
              used -= int64_t(bytes);
              std::free(p);
            }};
  }
};

template <typename F>
int with_context(int64_t memory_limit, int64_t device_bytes, size_t shared_limit, const F& f) {
  return guarded([&] {
    observed = {};
    const int64_t before = emu::policy().host_steps;
    Arena arena{device_bytes};
    HostSolver solver;
    const CudaContext context{nullptr, &fake_cublas(), nullptr,     [&](size_t bytes) { return arena.allocate(bytes); },
                              &solver, shared_limit,   memory_limit};
    f(context);
    observed.solver_calls = solver.calls;
    observed.host_steps = emu::policy().host_steps - before;
  });
}

}  // namespace

EMU_EXPORT void emu_observed(int64_t* out) {
  out[0] = observed.solver_calls;
  out[1] = observed.allocations;
  out[2] = observed.most_bytes;
  out[3] = observed.host_steps;
}

// What check() makes of a CUDA status, and whether it counts as lack of memory.
EMU_EXPORT int emu_check(int64_t status, char* text) {
  return guarded([&] {
    try {
      check(cudaError_t(status), "prepare", 3, 4, 5);
    } catch (const OutOfMemory& error) {
      std::strcpy(text, (std::string("out of memory: ") + error.what()).c_str());
    } catch (const std::runtime_error& error) {
      std::strcpy(text, error.what());
    }
  });
}

EMU_EXPORT int emu_give_up(int64_t matrices) {
  unsolvable = matrices;
  return 0;
}

EMU_EXPORT int emu_refuse_products(int64_t calls) {
  refuse_products(calls);
  return 0;
}

EMU_EXPORT void emu_math_modes(int64_t* out) { math_modes(out); }

// rank: the largest of `ranks`, which is null where all are equal. route: 0 randomized, 1 spectral, 2 gram_eigh, 3
// full_svd. u null: the dense product goes to `out`. limits: bytes a group may take, bytes the device has (0: enough),
// shared memory of a block.
EMU_EXPORT int emu_rank_reduce(const void* weight, int64_t dtype, int64_t count, int64_t rows, int64_t cols,
                               int64_t stride, int64_t row_stride, void* out, void* u, void* s, void* vh, int64_t rank,
                               const int64_t* ranks, int64_t route, int64_t block, int64_t gram, int64_t wide,
                               int64_t half, double tol, int64_t max_iter, int64_t seed, const int64_t* keys,
                               double* certificates, const int64_t* limits) {
  return with_context(limits[0], limits[1], size_t(limits[2]), [&](const CudaContext& context) {
    const Weight w{weight, Dtype(dtype), count, rows, cols, stride, row_stride};
    Weight to = w;
    to.data = out;
    const std::vector<int64_t> each(keys, keys + count);
    std::vector<int64_t> own;
    Request request{RouteKind(route), rank, block,    gram != 0,      wide != 0,
                    half != 0,        tol,  max_iter, uint64_t(seed), &each};
    if (ranks) {
      own.assign(ranks, ranks + count);
      request.ranks = &own;
    }
    const Factors factors{u, s, vh};
    rank_reduce_cuda(context, w, request, u ? nullptr : &to, u ? &factors : nullptr,
                     reinterpret_cast<Certificate*>(certificates));
  });
}

// cuts (count, 2): eigenvalues of A^T A.
EMU_EXPORT int emu_low_rank_at(const void* weight, int64_t dtype, int64_t count, int64_t rows, int64_t cols, void* out,
                               int64_t rank, int64_t locked, const double* cuts, int64_t half, int64_t max_iter,
                               int64_t seed, const int64_t* keys, double* certificates) {
  return with_context(1 << 30, 0, 232448, [&](const CudaContext& context) {
    const Weight w{weight, Dtype(dtype), count, rows, cols, rows * cols, cols};
    Weight to = w;
    to.data = out;
    const std::vector<int64_t> each(keys, keys + count);
    std::vector<Cut> at;
    for (int64_t b = 0; b < count; ++b) {
      at.push_back({cuts[2 * b], cuts[2 * b + 1]});
    }
    const bool wide = Dtype(dtype) == Dtype::kFloat64;
    const Request request{RouteKind::kSpectral, rank,  rank, true,  wide, half != 0, -1, max_iter,
                          uint64_t(seed),       &each, &at,  locked};
    rank_reduce_cuda(context, w, request, &to, nullptr, reinterpret_cast<Certificate*>(certificates));
  });
}

EMU_EXPORT int emu_orthonormalize_op(float* x, int64_t count, int64_t n, int64_t l, int64_t passes) {
  return with_context(1 << 30, 0, 232448, [&](const CudaContext& context) {
    std::vector<float> scratch(2 * count * l * l);
    LinalgCuda<float>(context, count)
        .orthonormalize(Block<float>::dense(x, count, n, l), Block<float>::dense(scratch.data(), count, l, l),
                        Block<float>::dense(scratch.data() + count * l * l, count, l, l), int(passes));
  });
}

namespace {

// f(la) with an object for `count` matrices of which index[0 .. selected - 1], or all where null, are selected.
template <typename T, typename F>
int with_linalg(int64_t count, const int* index, int64_t selected, const F& f, const Operand<T>& operand = {}) {
  return with_context(1 << 30, 0, 232448, [&](const CudaContext& context) {
    LinalgCuda<T> la(context, count, operand);
    if (index) {
      la.select(std::vector<int64_t>(index, index + selected));
    }
    f(la);
  });
}

template <typename T>
int inverse_factor(void* s, void* w, int64_t count, int64_t n, double* failed, const int* index, int64_t selected) {
  return with_linalg<T>(count, index, selected, [&](LinalgCuda<T>& la) {
    la.inverse_factor(Block<T>::dense(static_cast<T*>(s), count, n, n),
                      Block<T>::dense(static_cast<T*>(w), count, n, n), failed);
  });
}

}  // namespace

EMU_EXPORT int emu_inverse_factor(void* s, void* w, int64_t wide, int64_t count, int64_t n, double* failed,
                                  const int* index, int64_t selected) {
  return (wide ? inverse_factor<double> : inverse_factor<float>)(s, w, count, n, failed, index, selected);
}

// c (m, n) = a (m, k) b (k, n); a and b in memory as their transposes where asked.
EMU_EXPORT int emu_multiply_rounded(float* a, int64_t a_transposed, float* b, int64_t b_transposed, float* c,
                                    int64_t count, int64_t m, int64_t k, int64_t n, int64_t precision, const int* index,
                                    int64_t selected) {
  const auto block = [&](float* data, int64_t rows, int64_t cols, bool transposed) {
    return transposed ? Block<float>::dense(data, count, cols, rows).transposed()
                      : Block<float>::dense(data, count, rows, cols);
  };
  return with_linalg<float>(count, index, selected, [&](LinalgCuda<float>& la) {
    la.multiply_rounded(block(a, m, k, a_transposed != 0), block(b, k, n, b_transposed != 0), block(c, m, n, false),
                        Precision(precision));
  });
}

// y (m, l) = A q, x (n, l) = A^T z, g (n, n) = A^T A, where A (m, n) comes in `slices` of bfloat16 (slices, count, m,
// n), or of its transpose where asked.
EMU_EXPORT int emu_weight_products(uint16_t* cut, int64_t slices, int64_t transposed, int64_t count, int64_t m,
                                   int64_t n, int64_t l, int64_t precision, float* q, float* y, float* z, float* x,
                                   float* g, const int* index, int64_t selected) {
  const BFloat16* data = reinterpret_cast<const BFloat16*>(cut);
  const Block<const BFloat16> first = transposed ? Block<const BFloat16>::dense(data, count, n, m).transposed()
                                                 : Block<const BFloat16>::dense(data, count, m, n);
  const Operand<float> operand{{}, {first, count * m * n}, int(slices)};
  return with_linalg<float>(
      count, index, selected,
      [&](LinalgCuda<float>& la) {
        la.forward(Block<float>::dense(q, count, n, l), Block<float>::dense(y, count, m, l), Precision(precision));
        la.backward(Block<float>::dense(z, count, m, l), Block<float>::dense(x, count, n, l), Precision(precision));
        la.weight_gram(Block<float>::dense(g, count, n, n));
      },
      operand);
}

EMU_EXPORT int emu_affine(float* x, double* scale, double* shift, float* out, int64_t count, int64_t n,
                          const int* index, int64_t selected) {
  return with_linalg<float>(count, index, selected, [&](LinalgCuda<float>& la) {
    la.affine(Block<float>::dense(x, count, n, n), scale, shift, Block<float>::dense(out, count, n, n));
  });
}

EMU_EXPORT int emu_add_symmetric(double alpha, float* y, double beta, float* x, int64_t count, int64_t n,
                                 const int* index, int64_t selected) {
  return with_linalg<float>(count, index, selected, [&](LinalgCuda<float>& la) {
    la.add_symmetric(alpha, Block<float>::dense(y, count, n, n), beta, Block<float>::dense(x, count, n, n));
  });
}

EMU_EXPORT int emu_add(double alpha, float* x, double beta, float* y, int64_t count, int64_t rows, int64_t cols,
                       const int* index, int64_t selected) {
  return with_linalg<float>(count, index, selected, [&](LinalgCuda<float>& la) {
    la.add(alpha, Block<float>::dense(x, count, rows, cols), beta, Block<float>::dense(y, count, rows, cols));
  });
}

EMU_EXPORT int emu_trace(float* x, double* out, int64_t count, int64_t n, const int* index, int64_t selected) {
  return with_linalg<float>(count, index, selected,
                            [&](LinalgCuda<float>& la) { la.trace(Block<float>::dense(x, count, n, n), out); });
}

// out (count, 2): what count_eigenvalues finds above each level.
EMU_EXPORT int emu_count_eigenvalues(float* h, double* above, double* out, int64_t count, int64_t n) {
  return with_linalg<float>(count, nullptr, count, [&](LinalgCuda<float>& la) {
    const ScratchSize size = count_eigenvalues_scratch<float>(count, n);
    std::vector<float> elements(size.elements);
    std::vector<double> doubles(size.doubles);
    const std::vector<EigenvalueCount> found =
        count_eigenvalues<float>(la, Block<float>::dense(h, count, n, n), above, {elements.data(), doubles.data()});
    for (int64_t b = 0; b < count; ++b) {
      out[2 * b] = found[b].above;
      out[2 * b + 1] = found[b].unresolved;
    }
  });
}
