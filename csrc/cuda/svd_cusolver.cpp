// DenseSolver::svd by cuSOLVER.
#include <cmath>
#include <limits>

#include "cuda/cusolver_session.hpp"

namespace laser {

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
      status[b] = solve(b);
    }
  }

 private:
  // gesvdp adds to A what its polar iteration needs where a singular value is about 0, and says how much. No more than
  // this many times eps sigma_1 is what rounding does in the other two.
  double tolerated() const { return std::sqrt(double(n_)); }

  int solve(int64_t b) {
    // Fastest first; gesvdj last, since it takes rounding errors of hundreds of eps sigma_1 for success.
    static const std::pair<const char*, int (Svd::*)(T*, double*)> routines[] = {
        {"cusolverDnXgesvdp", &Svd::gesvdp},
        {"cusolverDnXgesvd", &Svd::gesvd},
        {std::is_same_v<T, double> ? "cusolverDnDgesvdj" : "cusolverDnSgesvdj", &Svd::gesvdj}};
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
      if (status != CUSOLVER_STATUS_SUCCESS) {
        failure = -status;
      } else if (info != 0) {
        failure = info;
      } else if (!std::all_of(values_.begin(), values_.end(), [](T x) { return std::isfinite(x); }) ||
                 !(perturbation <= tolerated() * std::numeric_limits<T>::epsilon() * double(values_[0]))) {
        failure = INT_MIN;
      } else {
        // What came as V or V^T, column-major, lies in right_ as V^T or V, row-major.
        const Block<const T> rows = Block<T>::dense(right_.get(), 1, n_, n_);
        const Block<const T> left = column_major(left_.get(), 1, m_, n_);
        check_svd(scatter_matrices<T>(left, u_.matrix(b), one, stream_));
        check_svd(scatter_matrices<T>(gives_v_ ? rows : rows.transposed(), vt_.matrix(b), one, stream_));
        return 0;
      }
    }
    return failure;
  }

  int gesvdp(T* sigma, double* perturbation) {
    gives_v_ = true;
    size_t device = 0, host = 0;
    const int status =
        table_.Xgesvdp_bufferSize(session_.handle, session_.params, CUSOLVER_EIG_MODE_VECTOR, 1, m_, n_, kSolverType<T>,
                                  input_.get(), m_, kSolverType<T>, sigma, kSolverType<T>, left_.get(), m_,
                                  kSolverType<T>, right_.get(), n_, kSolverType<T>, &device, &host);
    if (status != CUSOLVER_STATUS_SUCCESS) {
      return status;
    }
    work_.reserve(device, host);
    return table_.Xgesvdp(session_.handle, session_.params, CUSOLVER_EIG_MODE_VECTOR, 1, m_, n_, kSolverType<T>,
                          input_.get(), m_, kSolverType<T>, sigma, kSolverType<T>, left_.get(), m_, kSolverType<T>,
                          right_.get(), n_, kSolverType<T>, work_.device(), device, work_.host(), host,
                          device_info_.get(), perturbation);
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
    const int status = table_.Xgesvd_bufferSize(session_.handle, session_.params, 'S', 'S', m_, n_, kSolverType<T>,
                                                input_.get(), m_, kSolverType<T>, sigma, kSolverType<T>, left_.get(),
                                                m_, kSolverType<T>, right_.get(), n_, kSolverType<T>, &device, &host);
    if (status != CUSOLVER_STATUS_SUCCESS) {
      return status;
    }
    work_.reserve(device, host);
    return table_.Xgesvd(session_.handle, session_.params, 'S', 'S', m_, n_, kSolverType<T>, input_.get(), m_,
                         kSolverType<T>, sigma, kSolverType<T>, left_.get(), m_, kSolverType<T>, right_.get(), n_,
                         kSolverType<T>, work_.device(), device, work_.host(), host, device_info_.get());
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
  SolverWorkspace work_;
  const SolverScratch<T> input_, left_, right_;  // column-major, of one matrix
  const SolverScratch<int> device_info_;
  std::vector<T> values_;  // sigma of one matrix, on the host
  bool gives_v_ = true;    // the routine that was called last, rather than V^T
};

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
