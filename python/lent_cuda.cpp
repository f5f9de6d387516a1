#include "lent_cuda.hpp"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <exception>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "cuda/dense_solvers.hpp"
#include "dense_solver_aten.hpp"

namespace laser {
namespace {

// Of the device's memory, what one group of matrices may take. A fixed share of all of it, not of what happens to be
// free: groups, and with them bits, then depend on the device alone.
constexpr int64_t kShareOfMemory = 8;

struct DeviceFacts {
  size_t shared_limit;
  int64_t memory;
};

// Asked once per device: a stream that is being captured should see no such call.
DeviceFacts facts_of(int device) {
  static std::mutex mutex;
  static std::map<int, DeviceFacts> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) {
    return found->second;
  }
  int shared = 0;
  size_t free = 0, total = 0;
  check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "device", 0, 0, 0);
  check(cudaMemGetInfo(&free, &total), "device", 0, 0, 0);
  return known[device] = {size_t(shared), int64_t(total)};
}

cudaStream_t current_stream(int device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// From torch's caching allocator, on its current stream.
std::shared_ptr<void> allocate(const torch::stable::Tensor& like, size_t bytes) {
  try {
    auto memory = std::make_shared<torch::stable::Tensor>(
        torch::stable::new_empty(like, {int64_t(bytes)}, torch::headeronly::ScalarType::Byte));
    return {memory, memory->mutable_data_ptr()};
  } catch (const std::exception&) {
    // The stable ABI keeps torch's reason to itself: on a device that still answers it is taken for lack of memory.
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "scratch", 0, 0, 0);
    throw OutOfMemory("[laser_kernels] out of memory: torch has no " + std::to_string(bytes) +
                      " bytes of scratch; the device has " + std::to_string(free) + " of " + std::to_string(total) +
                      " free");
  }
}

std::unique_ptr<DenseSolver> dense_solver(int device, cudaStream_t stream, CusolverSolver::Allocate allocate) {
  if (const Cusolver* table = cusolver()) {
    return std::make_unique<CusolverSolver>(*table, device, stream, std::move(allocate));
  }
  return std::make_unique<DenseSolverAten>(device, stream);
}

}  // namespace

LentCuda::LentCuda(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {
  const int device = tensor.get_device_index();
  const DeviceFacts facts = facts_of(device);
  context.stream = current_stream(device);
  context.cublas = cublas();
  STD_TORCH_CHECK(context.cublas,
                  "[laser_kernels] libcublas, which torch's CUDA builds bring along, is not to be found");
  TORCH_ERROR_CODE_CHECK(torch_get_current_cuda_blas_handle(&context.cublas_handle));
  context.allocate = [tensor](size_t bytes) { return allocate(tensor, bytes); };
  context.shared_limit = facts.shared_limit;
  context.memory_limit = facts.memory / kShareOfMemory;
  solver_ = dense_solver(device, context.stream, context.allocate);
  context.solver = solver_.get();
}

LentCuda::~LentCuda() = default;

}  // namespace laser
