#include "cuda/dense_solvers.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/context.hpp"
#include "cuda/descend.hpp"

namespace laser {
namespace {

template <typename T>
constexpr int kType = std::is_same_v<T, double> ? CUDA_R_64F : CUDA_R_32F;

std::string sizes(int64_t rows, int64_t cols) { return std::to_string(rows) + "x" + std::to_string(cols); }

std::string named(int status) {
  return std::string(cusolver_status_name(status)) + " (" + std::to_string(status) + ")";
}

// Statuses by which cuSOLVER refuses a problem, NaN in it included; another routine, or fewer matrices, may do.
bool refused(int status) {
  const bool so = status == CUSOLVER_STATUS_INVALID_VALUE || status == CUSOLVER_STATUS_EXECUTION_FAILED ||
                  status == CUSOLVER_STATUS_INTERNAL_ERROR || status == CUSOLVER_STATUS_NOT_SUPPORTED;
  if (so) {
    cudaGetLastError();  // a launch of cuSOLVER's that failed; our next one would report it
  }
  return so;
}

void check_cusolver(int status, const char* step, const char* function, int64_t count, int64_t rows, int64_t cols) {
  if (status == CUSOLVER_STATUS_SUCCESS) {
    return;
  }
  const std::string text = std::string("[laser_kernels] ") + step + ": " + function + ": " + named(status) + " on " +
                           std::to_string(count) + " matrices of " + sizes(rows, cols);
  if (status == CUSOLVER_STATUS_ALLOC_FAILED) {
    throw OutOfMemory(text);
  }
  throw std::runtime_error(text);
}

// Packed column-major matrices.
template <typename T>
Block<T> column_major(T* data, int64_t count, int64_t rows, int64_t cols) {
  return Block<T>::dense(data, count, cols, rows).transposed();
}

template <typename T>
Block<T> columns_reversed(Block<T> x) {
  return {x.data + (x.cols - 1) * x.col_stride, x.count, x.rows, x.cols, x.stride, x.row_stride, -x.col_stride};
}

// Workspace for one routine and one shape at a time.
class Workspace {
 public:
  explicit Workspace(const CusolverSolver::Allocate& allocate) : allocate_(allocate) {}
  void reserve(size_t device_bytes, size_t host_bytes) {
    if (!device_ || device_bytes > device_size_) {
      device_.reset();
      device_ = allocate_(std::max<size_t>(device_bytes, 1));
      device_size_ = device_bytes;
    }
    if (host_bytes > host_.size()) {
      host_.resize(host_bytes);
    }
  }
  void* device() const { return device_.get(); }
  void* host() { return host_.empty() ? nullptr : host_.data(); }

 private:
  const CusolverSolver::Allocate& allocate_;
  std::shared_ptr<void> device_;
  size_t device_size_ = 0;
  std::vector<char> host_;
};

template <typename T>
class Scratch {
 public:
  Scratch(const CusolverSolver::Allocate& allocate, int64_t n) : memory_(allocate(size_t(n) * sizeof(T))) {}
  T* get() const { return static_cast<T*>(memory_.get()); }

 private:
  std::shared_ptr<void> memory_;
};

}  // namespace

struct CusolverSolver::Session {
  void *handle = nullptr, *params = nullptr, *jacobi = nullptr;
};

// Sessions that nobody uses. Work of a session's last user may still be on its stream, so the next user has to be of
// the same stream, and two threads never share one.
struct CusolverSolver::Pool {
  using Key = std::tuple<const Cusolver*, int, cudaStream_t>;
  std::mutex mutex;
  std::map<Key, std::vector<std::unique_ptr<Session>>> idle;

  // Never destroyed: at exit, CUDA may go first.
  static Pool& instance() {
    static Pool* const pool = new Pool;
    return *pool;
  }

  std::unique_ptr<Session> borrow(const Key& key) {
    const std::lock_guard<std::mutex> lock(mutex);  // also while it creates: cuSOLVER's first use is not thread-safe
    std::vector<std::unique_ptr<Session>>& free = idle[key];
    std::unique_ptr<Session> session;
    if (free.empty()) {
      session = create(*std::get<0>(key));
    } else {
      session = std::move(free.back());
      free.pop_back();
    }
    const int status = std::get<0>(key)->SetStream(session->handle, std::get<2>(key));
    check_cusolver(status, "dense solver", "cusolverDnSetStream", 0, 0, 0);
    return session;
  }

  void give_back(const Key& key, std::unique_ptr<Session> session) {
    const std::lock_guard<std::mutex> lock(mutex);
    idle[key].push_back(std::move(session));
  }

 private:
  static std::unique_ptr<Session> create(const Cusolver& table) {
    auto session = std::make_unique<Session>();
    const char* function = "cusolverDnCreate";
    int status = table.Create(&session->handle);
    if (status == CUSOLVER_STATUS_SUCCESS) {
      function = "cusolverDnCreateParams";
      status = table.CreateParams(&session->params);
      if (status == CUSOLVER_STATUS_SUCCESS) {
        function = "cusolverDnCreateGesvdjInfo";
        status = table.CreateGesvdjInfo(&session->jacobi);
        if (status != CUSOLVER_STATUS_SUCCESS) {
          table.DestroyParams(session->params);
        }
      }
      if (status != CUSOLVER_STATUS_SUCCESS) {
        table.Destroy(session->handle);
      }
    }
    check_cusolver(status, "dense solver", function, 0, 0, 0);
    return session;
  }
};

// One call of eigh.
template <typename T>
class CusolverSolver::Eigh {
 public:
  Eigh(CusolverSolver& owner, Block<const T> h, Block<T> w, double* theta, Selection sel)
      : table_(owner.table_),
        session_(owner.session()),
        stream_(owner.stream_),
        h_(h),
        w_(w),
        theta_(theta),
        sel_(sel),
        l_(h.rows),
        fit_(
            std::min({owner.limits_.bytes / int64_t(l_ * l_ * sizeof(T)), owner.limits_.matrices, int64_t(sel.count)})),
        batched_(table_.XsyevBatched && fit_ > 0),
        chunk_(batched_ ? fit_ : 1),
        work_(owner.allocate_),
        vectors_(owner.allocate_, chunk_ * l_ * l_),
        values_(owner.allocate_, chunk_ * l_),
        device_info_(owner.allocate_, sel.count),
        info_(sel.count),
        status_(sel.count, CUSOLVER_STATUS_SUCCESS) {}

  void run() {
    for (int first = 0; first < sel_.count; first += int(chunk_)) {
      const int n = int(std::min<int64_t>(chunk_, sel_.count - first));
      solve(first, n, batched_);
    }
    read(info_.data(), device_info_.get(), sel_.count);
    for (int s = 0; s < sel_.count; ++s) {
      if (failed(s) && batched_) {
        solve(s, 1, false);
        read(&info_[s], device_info_.get() + s, 1);
      }
      if (failed(s)) {
        give_up(s);
      }
    }
  }

 private:
  bool failed(int s) const { return status_[s] != CUSOLVER_STATUS_SUCCESS || info_[s] != 0; }

  // Selected matrices first .. first + n - 1.
  void solve(int first, int n, bool batched) {
    const Block<const T> h = sel_.index ? h_ : h_.batch(first, n);
    const Block<T> w = sel_.index ? w_ : w_.batch(first, n);
    double* const theta = sel_.index ? theta_ : theta_ + first * l_;
    const Selection part{sel_.index ? sel_.index + first : nullptr, n};
    // Symmetric, so row-major is column-major.
    check(gather_matrices<T>(h, Block<T>::dense(vectors_.get(), n, l_, l_), part, stream_), "eigh", n, l_, l_);
    int* const info = device_info_.get() + first;
    const int status = batched ? call_batched(info, n) : call_single(info);
    if (status != CUSOLVER_STATUS_SUCCESS && !refused(status)) {
      check_cusolver(status, "eigh", name(batched), n, l_, l_);
    }
    std::fill_n(status_.begin() + first, n, status);
    if (status == CUSOLVER_STATUS_SUCCESS) {
      const Block<const T> ascending = column_major(vectors_.get(), n, l_, l_);
      check(scatter_matrices<T>(columns_reversed(ascending), w, part, stream_), "eigh", n, l_, l_);
      check(descending_values<T>(values_.get(), l_, theta, part, stream_), "eigh", n, l_, l_);
    }
  }

  int call_batched(int* info, int n) {
    size_t device = 0, host = 0;
    const int status = table_.XsyevBatched_bufferSize(session_.handle, session_.params, CUSOLVER_EIG_MODE_VECTOR,
                                                      CUBLAS_FILL_MODE_LOWER, l_, kType<T>, vectors_.get(), l_,
                                                      kType<T>, values_.get(), kType<T>, &device, &host, n);
    if (status != CUSOLVER_STATUS_SUCCESS) {
      return status;
    }
    work_.reserve(device, host);
    return table_.XsyevBatched(session_.handle, session_.params, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_LOWER, l_,
                               kType<T>, vectors_.get(), l_, kType<T>, values_.get(), kType<T>, work_.device(), device,
                               work_.host(), host, info, n);
  }

  int call_single(int* info) {
    size_t device = 0, host = 0;
    const int status =
        table_.Xsyevd_bufferSize(session_.handle, session_.params, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_LOWER, l_,
                                 kType<T>, vectors_.get(), l_, kType<T>, values_.get(), kType<T>, &device, &host);
    if (status != CUSOLVER_STATUS_SUCCESS) {
      return status;
    }
    work_.reserve(device, host);
    return table_.Xsyevd(session_.handle, session_.params, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_LOWER, l_,
                         kType<T>, vectors_.get(), l_, kType<T>, values_.get(), kType<T>, work_.device(), device,
                         work_.host(), host, info);
  }

  static const char* name(bool batched) { return batched ? "cusolverDnXsyevBatched" : "cusolverDnXsyevd"; }

  void read(int* to, const int* from, int64_t n) {
    check(cudaMemcpyAsync(to, from, n * sizeof(int), cudaMemcpyDeviceToHost, stream_), "eigh", n, l_, l_);
    check(cudaStreamSynchronize(stream_), "eigh", n, l_, l_);
  }

  [[noreturn]] void give_up(int s) {
    int matrix = s;
    if (sel_.index) {
      read(&matrix, sel_.index + s, 1);
    }
    const bool refusal = status_[s] != CUSOLVER_STATUS_SUCCESS;
    throw std::runtime_error(std::string("[laser_kernels] eigh: ") + name(false) + ": " +
                             (refusal ? named(status_[s]) : "info " + std::to_string(info_[s])) + " on matrix " +
                             std::to_string(matrix) + " of " + std::to_string(h_.count) + " of " + sizes(l_, l_));
  }

  const Cusolver& table_;
  const Session& session_;
  const cudaStream_t stream_;
  const Block<const T> h_;
  const Block<T> w_;
  double* const theta_;
  const Selection sel_;
  const int64_t l_, fit_;  // how many matrices a batch may have
  const bool batched_;
  const int64_t chunk_;  // how many it has
  Workspace work_;
  const Scratch<T> vectors_, values_;  // (chunk, l, l), (chunk, l)
  const Scratch<int> device_info_;     // (sel.count)
  std::vector<int> info_, status_;     // the same on the host; what the call that had the matrix in it returned
};

// One call of svd.
template <typename T>
class CusolverSolver::Svd {
 public:
  Svd(CusolverSolver& owner, Block<const T> a, Block<T> u, T* sigma, Block<T> vt, Selection sel)
      : table_(owner.table_),
        session_(owner.session()),
        stream_(owner.stream_),
        a_(a),
        u_(u),
        vt_(vt),
        sigma_(sigma),
        sel_(sel),
        m_(a.rows),
        n_(a.cols),
        work_(owner.allocate_),
        input_(owner.allocate_, m_ * n_),
        left_(owner.allocate_, m_ * n_),
        right_(owner.allocate_, n_ * n_),
        device_info_(owner.allocate_, 1),
        values_(n_) {}

  void run(int* status) {
    std::vector<int> index(sel_.count);
    for (int s = 0; s < sel_.count; ++s) {
      index[s] = s;
    }
    if (sel_.index) {
      check_svd(cudaMemcpyAsync(index.data(), sel_.index, index.size() * sizeof(int), cudaMemcpyDeviceToHost, stream_));
      check_svd(cudaStreamSynchronize(stream_));
    }
    for (const int b : index) {
      std::string reasons;
      const int failure = solve(b, reasons);
      if (status) {
        status[b] = failure;
      } else if (failure != 0) {
        throw std::runtime_error("[laser_kernels] svd: matrix " + std::to_string(b) + " of " +
                                 std::to_string(a_.count) + " of " + sizes(m_, n_) + ": " + reasons);
      }
    }
  }

 private:
  // gesvdp adds to A what its polar iteration needs where a singular value is about 0, and says how much. No more than
  // this many times eps sigma_1 is what rounding does in the other two.
  double tolerated() const { return std::sqrt(double(n_)); }

  int solve(int64_t b, std::string& reasons) {
    static const std::pair<const char*, int (Svd::*)(T*, double*)> routines[] = {
        {"cusolverDnXgesvdp", &Svd::gesvdp},
        {std::is_same_v<T, double> ? "cusolverDnDgesvdj" : "cusolverDnSgesvdj", &Svd::gesvdj},
        {"cusolverDnXgesvd", &Svd::gesvd}};
    const Selection one{nullptr, 1};
    int failure = 0;
    for (const auto& [name, routine] : routines) {
      check_svd(gather_matrices<T>(a_.matrix(b), column_major(input_.get(), 1, m_, n_), one, stream_));
      double perturbation = 0;
      const int status = (this->*routine)(sigma_ + b * n_, &perturbation);
      if (status != CUSOLVER_STATUS_SUCCESS && !refused(status)) {
        check_cusolver(status, "svd", name, 1, m_, n_);
      }
      int info = 0;
      if (status == CUSOLVER_STATUS_SUCCESS) {
        check_svd(cudaMemcpyAsync(&info, device_info_.get(), sizeof(int), cudaMemcpyDeviceToHost, stream_));
        check_svd(cudaMemcpyAsync(values_.data(), sigma_ + b * n_, n_ * sizeof(T), cudaMemcpyDeviceToHost, stream_));
        check_svd(cudaStreamSynchronize(stream_));
      }
      std::string reason;
      if (status != CUSOLVER_STATUS_SUCCESS) {
        reason = named(status);
        failure = -status;
      } else if (info != 0) {
        reason = "info " + std::to_string(info);
        failure = info;
      } else if (!std::all_of(values_.begin(), values_.end(), [](T x) { return std::isfinite(x); })) {
        reason = "values that are not finite";
        failure = INT_MIN;
      } else if (!(perturbation <= tolerated() * std::numeric_limits<T>::epsilon() * double(values_[0]))) {
        char text[64];
        std::snprintf(text, sizeof(text), "values perturbed by %.3g", perturbation);
        reason = text;
        failure = INT_MIN;
      } else {
        // What came as V or V^T, column-major, lies in right_ as V^T or V, row-major.
        const Block<const T> rows = Block<T>::dense(right_.get(), 1, n_, n_);
        const Block<const T> left = column_major(left_.get(), 1, m_, n_);
        check_svd(scatter_matrices<T>(left, u_.matrix(b), one, stream_));
        check_svd(scatter_matrices<T>(gives_v_ ? rows : rows.transposed(), vt_.matrix(b), one, stream_));
        return 0;
      }
      reasons += (reasons.empty() ? "" : "; ") + std::string(name) + ": " + reason;
    }
    return failure;
  }

  int gesvdp(T* sigma, double* perturbation) {
    gives_v_ = true;
    size_t device = 0, host = 0;
    const int status = table_.Xgesvdp_bufferSize(session_.handle, session_.params, CUSOLVER_EIG_MODE_VECTOR, 1, m_, n_,
                                                 kType<T>, input_.get(), m_, kType<T>, sigma, kType<T>, left_.get(), m_,
                                                 kType<T>, right_.get(), n_, kType<T>, &device, &host);
    if (status != CUSOLVER_STATUS_SUCCESS) {
      return status;
    }
    work_.reserve(device, host);
    return table_.Xgesvdp(session_.handle, session_.params, CUSOLVER_EIG_MODE_VECTOR, 1, m_, n_, kType<T>, input_.get(),
                          m_, kType<T>, sigma, kType<T>, left_.get(), m_, kType<T>, right_.get(), n_, kType<T>,
                          work_.device(), device, work_.host(), host, device_info_.get(), perturbation);
  }

  int gesvdj(T* sigma, double*) {
    gives_v_ = true;
    if (m_ > INT_MAX || n_ > INT_MAX) {
      return CUSOLVER_STATUS_INVALID_VALUE;
    }
    const int m = int(m_), n = int(n_);
    int elements = 0;
    const auto size = [&] {
      if constexpr (std::is_same_v<T, double>) {
        return table_.Dgesvdj_bufferSize;
      } else {
        return table_.Sgesvdj_bufferSize;
      }
    }();
    const auto solve = [&] {
      if constexpr (std::is_same_v<T, double>) {
        return table_.Dgesvdj;
      } else {
        return table_.Sgesvdj;
      }
    }();
    const int status = size(session_.handle, CUSOLVER_EIG_MODE_VECTOR, 1, m, n, input_.get(), m, sigma, left_.get(), m,
                            right_.get(), n, &elements, session_.jacobi);
    if (status != CUSOLVER_STATUS_SUCCESS) {
      return status;
    }
    work_.reserve(size_t(elements) * sizeof(T), 0);
    return solve(session_.handle, CUSOLVER_EIG_MODE_VECTOR, 1, m, n, input_.get(), m, sigma, left_.get(), m,
                 right_.get(), n, static_cast<T*>(work_.device()), elements, device_info_.get(), session_.jacobi);
  }

  int gesvd(T* sigma, double*) {
    gives_v_ = false;
    size_t device = 0, host = 0;
    const int status = table_.Xgesvd_bufferSize(session_.handle, session_.params, 'S', 'S', m_, n_, kType<T>,
                                                input_.get(), m_, kType<T>, sigma, kType<T>, left_.get(), m_, kType<T>,
                                                right_.get(), n_, kType<T>, &device, &host);
    if (status != CUSOLVER_STATUS_SUCCESS) {
      return status;
    }
    work_.reserve(device, host);
    return table_.Xgesvd(session_.handle, session_.params, 'S', 'S', m_, n_, kType<T>, input_.get(), m_, kType<T>,
                         sigma, kType<T>, left_.get(), m_, kType<T>, right_.get(), n_, kType<T>, work_.device(), device,
                         work_.host(), host, device_info_.get());
  }

  void check_svd(cudaError_t status) const { check(status, "svd", 1, m_, n_); }

  const Cusolver& table_;
  const Session& session_;
  const cudaStream_t stream_;
  const Block<const T> a_;
  const Block<T> u_, vt_;
  T* const sigma_;
  const Selection sel_;
  const int64_t m_, n_;
  Workspace work_;
  const Scratch<T> input_, left_, right_;  // column-major, of one matrix
  const Scratch<int> device_info_;
  std::vector<T> values_;  // sigma of one matrix, on the host
  bool gives_v_ = true;    // the routine that was called last, rather than V^T
};

CusolverSolver::CusolverSolver(const Cusolver& table, int device, cudaStream_t stream, Allocate allocate,
                               BatchLimits limits)
    : table_(table), device_(device), stream_(stream), allocate_(std::move(allocate)), limits_(limits) {}

CusolverSolver::~CusolverSolver() {
  if (session_) {
    Pool::instance().give_back({&table_, device_, stream_}, std::move(session_));
  }
}

const CusolverSolver::Session& CusolverSolver::session() {
  if (!session_) {
    session_ = Pool::instance().borrow({&table_, device_, stream_});
  }
  return *session_;
}

void CusolverSolver::eigh(Block<const float> h, Block<float> w, double* theta, Selection sel) {
  if (sel.count > 0 && h.rows > 0) {
    Eigh<float>(*this, h, w, theta, sel).run();
  }
}
void CusolverSolver::eigh(Block<const double> h, Block<double> w, double* theta, Selection sel) {
  if (sel.count > 0 && h.rows > 0) {
    Eigh<double>(*this, h, w, theta, sel).run();
  }
}

namespace {

template <typename S, typename T>
void run_svd(CusolverSolver& solver, Block<const T> a, Block<T> u, T* sigma, Block<T> vt, Selection sel, int* status) {
  if (a.rows < a.cols) {
    throw std::runtime_error("[laser_kernels] svd: matrices must not be wide; got " + sizes(a.rows, a.cols));
  }
  if (sel.count > 0 && a.cols > 0) {
    S(solver, a, u, sigma, vt, sel).run(status);
  }
}

}  // namespace

void CusolverSolver::svd(Block<const float> a, Block<float> u, float* sigma, Block<float> vt, Selection sel,
                         int* status) {
  run_svd<Svd<float>>(*this, a, u, sigma, vt, sel, status);
}
void CusolverSolver::svd(Block<const double> a, Block<double> u, double* sigma, Block<double> vt, Selection sel,
                         int* status) {
  run_svd<Svd<double>>(*this, a, u, sigma, vt, sel, status);
}

}  // namespace laser
