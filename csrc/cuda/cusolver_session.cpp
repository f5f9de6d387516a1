#include "cuda/cusolver_session.hpp"

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

namespace laser {

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
    if (status != CUSOLVER_STATUS_SUCCESS) {  // it allocates by itself, and says anything where it cannot
      throw std::runtime_error(
          std::string("[laser_kernels] dense solver: ") + function + ": " + named(status) +
          ": where torch's cache holds all of the device's memory, torch.cuda.empty_cache() helps");
    }
    return session;
  }
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

}  // namespace laser
