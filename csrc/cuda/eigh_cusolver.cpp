// DenseSolver::eigh by cuSOLVER.
#include "cuda/cusolver_session.hpp"
#include "cuda/squares.hpp"

namespace laser {

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
                                                      CUBLAS_FILL_MODE_LOWER, l_, kSolverType<T>, vectors_.get(), l_,
                                                      kSolverType<T>, values_.get(), kSolverType<T>, &device, &host, n);
    if (status != CUSOLVER_STATUS_SUCCESS) {
      return status;
    }
    work_.reserve(device, host);
    return table_.XsyevBatched(session_.handle, session_.params, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_LOWER, l_,
                               kSolverType<T>, vectors_.get(), l_, kSolverType<T>, values_.get(), kSolverType<T>,
                               work_.device(), device, work_.host(), host, info, n);
  }

  int call_single(int* info) {
    size_t device = 0, host = 0;
    const int status = table_.Xsyevd_bufferSize(session_.handle, session_.params, CUSOLVER_EIG_MODE_VECTOR,
                                                CUBLAS_FILL_MODE_LOWER, l_, kSolverType<T>, vectors_.get(), l_,
                                                kSolverType<T>, values_.get(), kSolverType<T>, &device, &host);
    if (status != CUSOLVER_STATUS_SUCCESS) {
      return status;
    }
    work_.reserve(device, host);
    return table_.Xsyevd(session_.handle, session_.params, CUSOLVER_EIG_MODE_VECTOR, CUBLAS_FILL_MODE_LOWER, l_,
                         kSolverType<T>, vectors_.get(), l_, kSolverType<T>, values_.get(), kSolverType<T>,
                         work_.device(), device, work_.host(), host, info);
  }

  static const char* name(bool batched) { return batched ? "cusolverDnXsyevBatched" : "cusolverDnXsyevd"; }

  void read(int* to, const int* from, int64_t n) {
    check(cudaMemcpyAsync(to, from, n * sizeof(int), cudaMemcpyDeviceToHost, stream_), "eigh", n, l_, l_);
    check(cudaStreamSynchronize(stream_), "eigh", n, l_, l_);
  }

  void give_up(int s) {
    int matrix = s;
    if (sel_.index) {
      read(&matrix, sel_.index + s, 1);
    }
    check(cudaMemsetAsync(theta_ + matrix * l_, 0xFF, l_ * sizeof(double), stream_), "eigh", 1, l_, l_);  // NaN
    check(zero(w_.matrix(matrix), {nullptr, 1}, stream_), "eigh", 1, l_, l_);
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
  SolverWorkspace work_;
  const SolverScratch<T> vectors_, values_;  // (chunk, l, l), (chunk, l)
  const SolverScratch<int> device_info_;     // (sel.count)
  std::vector<int> info_, status_;           // the same on the host; what the call that had the matrix in it returned
};

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

}  // namespace laser
