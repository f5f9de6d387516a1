// CusolverSolver on a host's cuSOLVER: Jacobi methods behind the documented arguments, which are checked, with failures
// as the tests ask for them.
#include "cuda/dense_solvers.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "cuda/context.hpp"
#include "emulated.hpp"

namespace laser {
namespace {

enum Routine { kSyevBatched, kSyevd, kGesvdp, kGesvdj, kGesvd, kRoutines };

// Bit k of a mask: the k-th matrix (info, perturbation) or the k-th call (status) of the routine.
struct Script {
  int64_t info_mask, info, status_mask, status, perturbation_mask;
  double perturbation;
};
Script script[kRoutines];
int calls[kRoutines], matrices[kRoutines];
std::string journal;

bool bit(int64_t mask, int k) { return k < 63 && (mask >> k & 1) != 0; }

// Answers the scripted status of this call.
int entered(Routine routine, const std::string& line) {
  journal += line + "\n";
  const int k = calls[routine]++;
  return bit(script[routine].status_mask, k) ? int(script[routine].status) : CUSOLVER_STATUS_SUCCESS;
}

// --- handles
struct Handle {
  int kind;  // 1 handle, 2 params, 3 Jacobi
  cudaStream_t stream;
};
int created = 0;
int make(void** out, int kind) {
  *out = new Handle{kind, nullptr};
  created += kind == 1;
  return 0;
}
int drop(void* handle) {
  delete static_cast<Handle*>(handle);
  return 0;
}
bool is(void* handle, int kind) { return handle && static_cast<Handle*>(handle)->kind == kind; }

// --- arithmetic, in float64; matrices column-major
struct Eigen {
  std::vector<double> values, vectors;
};

// a: both triangles are taken from the lower one.
template <typename T>
Eigen symmetric(const T* a, int64_t n) {
  std::vector<double> s(n * n), v(n * n, 0.0);
  for (int64_t j = 0; j < n; ++j) {
    v[j * n + j] = 1;
    for (int64_t i = j; i < n; ++i) {
      s[j * n + i] = s[i * n + j] = a[j * n + i];
    }
  }
  for (int sweep = 0; sweep < 30; ++sweep) {
    double off = 0, all = 0;
    for (int64_t e = 0; e < n * n; ++e) {
      all += s[e] * s[e];
      off += e / n == e % n ? 0 : s[e] * s[e];
    }
    if (!(off > 1e-30 * all)) {
      break;
    }
    for (int64_t p = 0; p < n; ++p) {
      for (int64_t q = p + 1; q < n; ++q) {
        if (s[p * n + q] == 0) {
          continue;
        }
        const double tau = (s[q * n + q] - s[p * n + p]) / (2 * s[p * n + q]);
        const double t = (tau < 0 ? -1 : 1) / (std::abs(tau) + std::hypot(1, tau)), c = 1 / std::hypot(1, t);
        const auto rotate = [c, t](double& x, double& y) {
          const double old = x;
          x = c * (old - t * y);
          y = c * (t * old + y);
        };
        for (int64_t k = 0; k < n; ++k) {
          rotate(s[p * n + k], s[q * n + k]);
        }
        for (int64_t k = 0; k < n; ++k) {
          rotate(s[k * n + p], s[k * n + q]);
          rotate(v[p * n + k], v[q * n + k]);
        }
      }
    }
  }
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) { return s[x * n + x] < s[y * n + y]; });
  Eigen out{std::vector<double>(n), std::vector<double>(n * n)};
  for (int64_t j = 0; j < n; ++j) {
    out.values[j] = s[order[j] * n + order[j]];
    std::copy_n(&v[order[j] * n], n, &out.vectors[j * n]);
  }
  return out;
}

// Singular values descending, u (m, n), v (n, n): eigenvectors of A^T A give v, then columns of A v are made orthogonal
// to those before them; what rounding leaves of the small ones is replaced by unit vectors.
template <typename T>
void singular(const T* a, int64_t m, int64_t n, T* s, T* u, T* v) {
  std::vector<double> gram(n * n, 0.0), left(m * n);
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t k = 0; k < n; ++k) {
      for (int64_t i = 0; i < m; ++i) {
        gram[k * n + j] += double(a[j * m + i]) * double(a[k * m + i]);
      }
    }
  }
  const Eigen eigen = symmetric(gram.data(), n);
  double top = 0;
  for (int64_t j = 0; j < n; ++j) {
    const double* right = &eigen.vectors[(n - 1 - j) * n];
    double* const x = &left[j * m];
    for (int64_t i = 0; i < m; ++i) {
      x[i] = 0;
      for (int64_t k = 0; k < n; ++k) {
        x[i] += double(a[k * m + i]) * right[k];
      }
    }
    const auto norm = [&] { return std::sqrt(std::inner_product(x, x + m, x, 0.0)); };
    const auto clean = [&] {
      for (int64_t k = 0; k < 2 * j; ++k) {
        const double* other = &left[k % j * m];
        const double overlap = std::inner_product(x, x + m, other, 0.0);
        for (int64_t i = 0; i < m; ++i) {
          x[i] -= overlap * other[i];
        }
      }
    };
    const double size = norm();
    top = std::max(top, size);
    s[j] = T(size <= 1e-7 * top ? 0 : size);
    clean();
    for (int64_t unit = 0; !(norm() > 1e-7 * top) || s[j] == T(0); ++unit) {
      if (size != size || unit == m) {
        break;  // NaN
      }
      std::fill_n(x, m, 0.0);
      x[unit] = 1;
      clean();
      if (norm() > 0.5 / std::sqrt(double(m))) {
        break;
      }
    }
    const double length = norm();
    for (int64_t i = 0; i < m; ++i) {
      u[j * m + i] = T(x[i] / length);
    }
    for (int64_t i = 0; i < m; ++i) {
      x[i] /= length;
    }
    std::transform(right, right + n, v + j * n, [](double y) { return T(y); });
  }
}

template <typename T>
void spoil(T* data, int64_t n) {
  std::fill_n(data, n, std::numeric_limits<T>::quiet_NaN());
}

// Workspace is dirtied to its last byte, so that too little of it is noticed.
bool work_is(void* device, size_t device_bytes, size_t device_wanted, void* host, size_t host_bytes,
             size_t host_wanted) {
  if (!device || device_bytes != device_wanted || host_bytes != host_wanted || (host_bytes != 0 && !host)) {
    return false;
  }
  std::memset(device, 0xEE, device_bytes);
  std::memset(host, 0xEE, host_bytes);
  return true;
}

// --- eigenproblems
size_t syev_bytes(int64_t n, int64_t count) { return size_t(40 + 8 * n * count); }
constexpr size_t kHostBytes = 24;

bool syev_arguments(void* handle, void* params, int jobz, int uplo, int64_t n, int type_a, const void* a, int64_t lda,
                    int type_w, const void* w, int compute, int64_t count) {
  return is(handle, 1) && is(params, 2) && jobz == CUSOLVER_EIG_MODE_VECTOR && uplo == CUBLAS_FILL_MODE_LOWER &&
         n > 0 && (type_a == CUDA_R_32F || type_a == CUDA_R_64F) && a && lda == n && type_w == type_a && w &&
         compute == type_a && count > 0 && count <= 32 << 10;
}

template <typename T>
void solve_symmetric(Routine routine, int64_t n, void* matrix, void* values, int* info) {
  T *const a = static_cast<T*>(matrix), *const w = static_cast<T*>(values);
  const bool fails = bit(script[routine].info_mask, matrices[routine]++);
  const Eigen eigen = symmetric(a, n);
  const auto narrowed = [](double x) { return T(x); };
  std::transform(eigen.vectors.begin(), eigen.vectors.end(), a, narrowed);
  std::transform(eigen.values.begin(), eigen.values.end(), w, narrowed);
  *info = fails ? int(script[routine].info) : 0;
  if (fails) {
    spoil(a, n * n);
    spoil(w, n);
  }
}

int syev_batched_size(void* handle, void* params, int jobz, int uplo, int64_t n, int type_a, const void* a, int64_t lda,
                      int type_w, const void* w, int compute, size_t* device, size_t* host, int64_t count) {
  *device = syev_bytes(n, count);
  *host = kHostBytes;
  return syev_arguments(handle, params, jobz, uplo, n, type_a, a, lda, type_w, w, compute, count)
             ? CUSOLVER_STATUS_SUCCESS
             : CUSOLVER_STATUS_INVALID_VALUE;
}

int syev(Routine routine, int64_t n, int type, void* a, void* w, int* info, int64_t count) {
  const std::string name = routine == kSyevBatched ? "XsyevBatched " + std::to_string(count) : "Xsyevd";
  const int status = entered(routine, name);
  std::fill_n(info, count, 0);  // a refusal says nothing about a matrix
  for (int64_t k = 0; status == CUSOLVER_STATUS_SUCCESS && k < count; ++k) {
    if (type == CUDA_R_64F) {
      solve_symmetric<double>(routine, n, static_cast<double*>(a) + k * n * n, static_cast<double*>(w) + k * n,
                              info + k);
    } else {
      solve_symmetric<float>(routine, n, static_cast<float*>(a) + k * n * n, static_cast<float*>(w) + k * n, info + k);
    }
  }
  return status;
}

int syev_batched(void* handle, void* params, int jobz, int uplo, int64_t n, int type_a, void* a, int64_t lda,
                 int type_w, void* w, int compute, void* device, size_t device_bytes, void* host, size_t host_bytes,
                 int* info, int64_t count) {
  return syev_arguments(handle, params, jobz, uplo, n, type_a, a, lda, type_w, w, compute, count) &&
                 work_is(device, device_bytes, syev_bytes(n, count), host, host_bytes, kHostBytes)
             ? syev(kSyevBatched, n, type_a, a, w, info, count)
             : CUSOLVER_STATUS_INVALID_VALUE;
}

int syevd_size(void* handle, void* params, int jobz, int uplo, int64_t n, int type_a, const void* a, int64_t lda,
               int type_w, const void* w, int compute, size_t* device, size_t* host) {
  *device = 3 * syev_bytes(n, 1);  // more than a batch of one: the workspace has to grow
  *host = 2 * kHostBytes;
  return syev_arguments(handle, params, jobz, uplo, n, type_a, a, lda, type_w, w, compute, 1)
             ? CUSOLVER_STATUS_SUCCESS
             : CUSOLVER_STATUS_INVALID_VALUE;
}

int syevd(void* handle, void* params, int jobz, int uplo, int64_t n, int type_a, void* a, int64_t lda, int type_w,
          void* w, int compute, void* device, size_t device_bytes, void* host, size_t host_bytes, int* info) {
  return syev_arguments(handle, params, jobz, uplo, n, type_a, a, lda, type_w, w, compute, 1) &&
                 work_is(device, device_bytes, 3 * syev_bytes(n, 1), host, host_bytes, 2 * kHostBytes)
             ? syev(kSyevd, n, type_a, a, w, info, 1)
             : CUSOLVER_STATUS_INVALID_VALUE;
}

// --- singular values
template <typename T>
int decompose(Routine routine, int64_t m, int64_t n, void* matrix, void* values, void* left, void* right, int* info,
              double* perturbation) {
  T *const a = static_cast<T*>(matrix), *const s = static_cast<T*>(values), *const u = static_cast<T*>(left),
           *const v = static_cast<T*>(right);
  static const char* const names[] = {"", "", "Xgesvdp", "gesvdj", "Xgesvd"};
  const int status = entered(routine, names[routine]);
  const int k = matrices[routine]++;
  const bool fails = bit(script[routine].info_mask, k);
  singular(a, m, n, s, u, v);
  spoil(a, m * n);
  if (routine == kGesvd) {  // V^T
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < i; ++j) {
        std::swap(v[i * n + j], v[j * n + i]);
      }
    }
  }
  *info = fails ? int(script[routine].info) : 0;
  if (perturbation) {
    const bool perturbed = bit(script[routine].perturbation_mask, k);
    *perturbation = perturbed ? script[routine].perturbation : 0;
    s[n - 1] += perturbed ? T(script[routine].perturbation) : T(0);
  }
  if (fails || status != CUSOLVER_STATUS_SUCCESS) {
    spoil(s, n);
    spoil(u, m * n);
    spoil(v, n * n);
  }
  return status;
}

bool svd_arguments(void* handle, int64_t m, int64_t n, const void* a, int64_t lda, const void* s, const void* u,
                   int64_t ldu, const void* v, int64_t ldv) {
  return is(handle, 1) && m >= n && n > 0 && a && s && u && v && lda == m && ldu == m && ldv == n;
}
bool one_type(int a, int s, int u, int v, int compute) {
  return (a == CUDA_R_32F || a == CUDA_R_64F) && s == a && u == a && v == a && compute == a;
}

size_t gesvdp_bytes(int64_t m, int64_t n) { return size_t(8 * m * n + 16); }
int gesvdp_size(void* handle, void* params, int jobz, int econ, int64_t m, int64_t n, int type_a, const void* a,
                int64_t lda, int type_s, const void* s, int type_u, const void* u, int64_t ldu, int type_v,
                const void* v, int64_t ldv, int compute, size_t* device, size_t* host) {
  *device = gesvdp_bytes(m, n);
  *host = kHostBytes;
  return svd_arguments(handle, m, n, a, lda, s, u, ldu, v, ldv) && is(params, 2) && jobz == CUSOLVER_EIG_MODE_VECTOR &&
                 econ == 1 && one_type(type_a, type_s, type_u, type_v, compute)
             ? CUSOLVER_STATUS_SUCCESS
             : CUSOLVER_STATUS_INVALID_VALUE;
}
int gesvdp(void* handle, void* params, int jobz, int econ, int64_t m, int64_t n, int type_a, void* a, int64_t lda,
           int type_s, void* s, int type_u, void* u, int64_t ldu, int type_v, void* v, int64_t ldv, int compute,
           void* device, size_t device_bytes, void* host, size_t host_bytes, int* info, double* perturbation) {
  if (!svd_arguments(handle, m, n, a, lda, s, u, ldu, v, ldv) || !is(params, 2) || jobz != CUSOLVER_EIG_MODE_VECTOR ||
      econ != 1 || !one_type(type_a, type_s, type_u, type_v, compute) ||
      !work_is(device, device_bytes, gesvdp_bytes(m, n), host, host_bytes, kHostBytes)) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  return type_a == CUDA_R_64F ? decompose<double>(kGesvdp, m, n, a, s, u, v, info, perturbation)
                              : decompose<float>(kGesvdp, m, n, a, s, u, v, info, perturbation);
}

template <typename T>
int gesvdj_size(void* handle, int jobz, int econ, int m, int n, const T* a, int lda, const T* s, const T* u, int ldu,
                const T* v, int ldv, int* elements, void* params) {
  *elements = 3 * m * n + 5;
  return svd_arguments(handle, m, n, a, lda, s, u, ldu, v, ldv) && is(params, 3) && jobz == CUSOLVER_EIG_MODE_VECTOR &&
                 econ == 1
             ? CUSOLVER_STATUS_SUCCESS
             : CUSOLVER_STATUS_INVALID_VALUE;
}
template <typename T>
int gesvdj(void* handle, int jobz, int econ, int m, int n, T* a, int lda, T* s, T* u, int ldu, T* v, int ldv, T* work,
           int elements, int* info, void* params) {
  if (!svd_arguments(handle, m, n, a, lda, s, u, ldu, v, ldv) || !is(params, 3) || jobz != CUSOLVER_EIG_MODE_VECTOR ||
      econ != 1 || !work_is(work, elements * sizeof(T), (3 * m * n + 5) * sizeof(T), nullptr, 0, 0)) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  return decompose<T>(kGesvdj, m, n, a, s, u, v, info, nullptr);
}

size_t gesvd_bytes(int64_t m) { return size_t(16 * m + 7); }
int gesvd_size(void* handle, void* params, signed char jobu, signed char jobvt, int64_t m, int64_t n, int type_a,
               const void* a, int64_t lda, int type_s, const void* s, int type_u, const void* u, int64_t ldu,
               int type_vt, const void* vt, int64_t ldvt, int compute, size_t* device, size_t* host) {
  *device = gesvd_bytes(m);
  *host = 0;
  return svd_arguments(handle, m, n, a, lda, s, u, ldu, vt, ldvt) && is(params, 2) && jobu == 'S' && jobvt == 'S' &&
                 one_type(type_a, type_s, type_u, type_vt, compute)
             ? CUSOLVER_STATUS_SUCCESS
             : CUSOLVER_STATUS_INVALID_VALUE;
}
int gesvd(void* handle, void* params, signed char jobu, signed char jobvt, int64_t m, int64_t n, int type_a, void* a,
          int64_t lda, int type_s, void* s, int type_u, void* u, int64_t ldu, int type_vt, void* vt, int64_t ldvt,
          int compute, void* device, size_t device_bytes, void*, size_t host_bytes, int* info) {
  if (!svd_arguments(handle, m, n, a, lda, s, u, ldu, vt, ldvt) || !is(params, 2) || jobu != 'S' || jobvt != 'S' ||
      !one_type(type_a, type_s, type_u, type_vt, compute) || host_bytes != 0 ||
      !work_is(device, device_bytes, gesvd_bytes(m), nullptr, 0, 0)) {
    return CUSOLVER_STATUS_INVALID_VALUE;
  }
  return type_a == CUDA_R_64F ? decompose<double>(kGesvd, m, n, a, s, u, vt, info, nullptr)
                              : decompose<float>(kGesvd, m, n, a, s, u, vt, info, nullptr);
}

Cusolver fake(bool has_batched) {
  Cusolver t{};
  t.GetVersion = [](int* version) { return *version = 12004, 0; };
  t.Create = [](void** out) { return make(out, 1); };
  t.CreateParams = [](void** out) { return make(out, 2); };
  t.CreateGesvdjInfo = [](void** out) { return make(out, 3); };
  t.Destroy = t.DestroyParams = t.DestroyGesvdjInfo = drop;
  t.SetStream = [](void* handle, cudaStream_t stream) {
    static_cast<Handle*>(handle)->stream = stream;
    return is(handle, 1) ? CUSOLVER_STATUS_SUCCESS : CUSOLVER_STATUS_NOT_INITIALIZED;
  };
  t.XsyevBatched_bufferSize = has_batched ? syev_batched_size : nullptr;
  t.XsyevBatched = has_batched ? syev_batched : nullptr;
  t.Xsyevd_bufferSize = syevd_size;
  t.Xsyevd = syevd;
  t.Xgesvdp_bufferSize = gesvdp_size;
  t.Xgesvdp = gesvdp;
  t.Sgesvdj_bufferSize = gesvdj_size<float>;
  t.Sgesvdj = gesvdj<float>;
  t.Dgesvdj_bufferSize = gesvdj_size<double>;
  t.Dgesvdj = gesvdj<double>;
  t.Xgesvd_bufferSize = gesvd_size;
  t.Xgesvd = gesvd;
  return t;
}
const Cusolver kFakes[2] = {fake(false), fake(true)};

// Full of NaN, with a fence behind it.
bool overrun = false;
std::shared_ptr<void> allocate(size_t bytes) {
  constexpr size_t kFence = 64;
  char* const data = static_cast<char*>(std::malloc(bytes + kFence));
  std::memset(data, 0xFF, bytes);
  std::memset(data + bytes, 0x5A, kFence);
  return {data, [bytes](void* p) {
            const char* fence = static_cast<char*>(p) + bytes;
            overrun = overrun || std::any_of(fence, fence + kFence, [](char c) { return c != 0x5A; });
            std::free(p);
          }};
}

CusolverSolver solver(bool has_batched, BatchLimits limits = {}, int64_t stream = 0) {
  install_cusolver(&kFakes[has_batched]);
  const Cusolver& table = *cusolver();
  install_cusolver(nullptr);
  return CusolverSolver(table, 0, reinterpret_cast<cudaStream_t>(stream), allocate, limits);
}

// Runs f and writes what was called, a line each, and the words of what was thrown.
template <typename F>
int told(char* text, const F& f) {
  journal.clear();
  overrun = false;
  return guarded([&] {
    try {
      f();
    } catch (const OutOfMemory& error) {
      journal += std::string("out of memory: ") + error.what();
    } catch (const std::runtime_error& error) {
      journal += error.what();
    }
    std::strcpy(text, journal.c_str());
    if (overrun) {
      throw std::runtime_error("scratch was overrun");
    }
  });
}

}  // namespace
}  // namespace laser

using namespace laser;

// The scripted failures of one routine; -1 forgets them all.
EMU_EXPORT int emu_dense_script(int64_t routine, int64_t info_mask, int64_t info, int64_t status_mask, int64_t status,
                                int64_t perturbation_mask, double perturbation) {
  if (routine < 0) {
    std::fill_n(script, int(kRoutines), Script{});
    std::fill_n(calls, int(kRoutines), 0);
    std::fill_n(matrices, int(kRoutines), 0);
  } else {
    script[routine] = {info_mask, info, status_mask, status, perturbation_mask, perturbation};
  }
  return 0;
}

EMU_EXPORT int emu_dense_eigh(void* h, const int64_t* h_strides, void* w, const int64_t* w_strides, double* theta,
                              int64_t is_double, int64_t count, int64_t l, const int* index, int64_t selected,
                              int64_t has_batched, int64_t max_bytes, int64_t max_matrices, char* text) {
  return told(text, [&] {
    CusolverSolver s = solver(has_batched != 0, {max_bytes, max_matrices});
    const auto run = [&](auto element) {
      using T = decltype(element);
      const Block<const T> from{static_cast<T*>(h), count, l, l, h_strides[0], h_strides[1], h_strides[2]};
      const Block<T> to{static_cast<T*>(w), count, l, l, w_strides[0], w_strides[1], w_strides[2]};
      s.eigh(from, to, theta, {index, int(selected)});
    };
    is_double ? run(double{}) : run(float{});
  });
}

EMU_EXPORT int emu_dense_svd(void* a, const int64_t* a_strides, void* u, const int64_t* u_strides, void* sigma,
                             void* vt, const int64_t* vt_strides, int* status, int64_t is_double, int64_t count,
                             int64_t m, int64_t n, const int* index, int64_t selected, char* text) {
  return told(text, [&] {
    CusolverSolver s = solver(true);
    const auto run = [&](auto element) {
      using T = decltype(element);
      const auto block = [count](void* data, int64_t rows, int64_t cols, const int64_t* strides) {
        return Block<T>{static_cast<T*>(data), count, rows, cols, strides[0], strides[1], strides[2]};
      };
      const Block<const T> from = block(a, m, n, a_strides);
      s.svd(from, block(u, m, n, u_strides), static_cast<T*>(sigma), block(vt, n, n, vt_strides),
            {index, int(selected)}, status);
    };
    is_double ? run(double{}) : run(float{});
  });
}

// How many handles each step created: a first solver, a second while the first lives, two more after both, one on
// another stream, one that is never asked.
EMU_EXPORT int emu_dense_handles(int64_t* out) {
  return guarded([&] {
    static int64_t stream = 0x1000;  // nobody else's
    stream += 0x1000;
    double h = 2, w, theta;
    int before = created;
    const auto use = [&](CusolverSolver& s, int step) {
      const Block<double> one = Block<double>::dense(&h, 1, 1, 1);
      s.eigh(Block<const double>(one), Block<double>::dense(&w, 1, 1, 1), &theta, {nullptr, 1});
      out[step] = created - before;
      before = created;
    };
    {
      CusolverSolver first = solver(true, {}, stream), second = solver(true, {}, stream);
      use(first, 0);
      use(second, 1);
    }
    CusolverSolver third = solver(true, {}, stream), fourth = solver(true, {}, stream);
    use(third, 2);
    use(fourth, 3);
    CusolverSolver fifth = solver(true, {}, stream + 8);
    use(fifth, 4);
    {
      CusolverSolver idle = solver(true, {}, stream + 16);
    }
    out[5] = created - before;
  });
}

// What the loader finds in this process, for tests/test_vendor.py: versions, or -1 where there is no library.
EMU_EXPORT int64_t emu_vendor_cusolver_version() {
  const Cusolver* table = cusolver();
  int version = -1;
  if (table) {
    table->GetVersion(&version);
  }
  return version;
}
EMU_EXPORT int64_t emu_vendor_has_batched() { return cusolver() && cusolver()->XsyevBatched; }
EMU_EXPORT const char* emu_vendor_cublas_string() { return cublas() ? cublas()->GetStatusString(0) : "none"; }
