#include "fake_cusolver.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "jacobi.hpp"

namespace laser {
namespace {

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
int64_t last_stream = 0;
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
  last_stream = reinterpret_cast<int64_t>(static_cast<Handle*>(handle)->stream);
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
  static const char* const names[] = {"", "", "Xgesvdp", "Xgesvd", "gesvdj"};
  const int status = entered(routine, names[routine]);
  const int k = matrices[routine]++;
  const bool fails = bit(script[routine].info_mask, k);
  singular(a, m, n, s, u, v);
  const bool no_answer = routine == kGesvdp && s[0] == 0;  // seen of cuSOLVER's: NaN where all is zero
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
  if (fails || no_answer || status != CUSOLVER_STATUS_SUCCESS) {
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

}  // namespace

const Cusolver& fake_cusolver(bool has_batched) {
  static const Cusolver with = fake(true), without = fake(false);
  return has_batched ? with : without;
}

void follow(Routine routine, const Script& failures) { script[routine] = failures; }

void forget_scripts() {
  std::fill_n(script, int(kRoutines), Script{});
  std::fill_n(calls, int(kRoutines), 0);
  std::fill_n(matrices, int(kRoutines), 0);
}

std::string& cusolver_journal() { return journal; }

int64_t stream_of_last() { return last_stream; }

int handles_created() { return created; }

}  // namespace laser
