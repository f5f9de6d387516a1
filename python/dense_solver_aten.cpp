#include "dense_solver_aten.hpp"

#include <optional>
#include <string>

#include "aten.hpp"
#include "cuda/context.hpp"

namespace laser {
namespace {

using aten::call;
using aten::take;
using aten::Tensor;

template <typename T>
Tensor on_device(Block<T> x, int device) {
  return aten::view(x, torch::stable::Device(torch::headeronly::DeviceType::CUDA, device));
}

template <typename T>
void copy_into(const Tensor& from, Block<T> to, int device) {
  Tensor target = on_device(to, device);
  torch::stable::copy_(target, from);
}

// torch answers in ascending order.
template <typename T>
void eigh_each(const std::vector<int64_t>& matrices, int device, Block<const T> h, Block<T> w, double* theta) {
  const int64_t l = h.cols;
  for (int64_t b : matrices) {
    auto stack = call("aten::linalg_eigh", "", on_device(h.matrix(b), device), std::string("L"));
    const Tensor values = take(stack[0]), vectors = take(stack[1]);
    auto flipped = call("aten::flip", "", values, std::vector<int64_t>{0});
    auto columns = call("aten::flip", "", vectors, std::vector<int64_t>{1});
    const Tensor descending = torch::stable::reshape(take(flipped[0]), {1, l});
    copy_into(descending, Block<double>::dense(theta + b * l, 1, 1, l), device);
    copy_into(take(columns[0]), w.matrix(b), device);
  }
}

template <typename T>
void svd_each(const std::vector<int64_t>& matrices, int device, Block<const T> a, Block<T> u, T* sigma, Block<T> vt,
              int* status) {
  const int64_t n = a.cols;
  for (int64_t b : matrices) {
    auto stack = call("aten::linalg_svd", "", on_device(a.matrix(b), device), false, std::optional<std::string>{});
    const Tensor left = take(stack[0]), values = take(stack[1]), right = take(stack[2]);
    copy_into(left, u.matrix(b), device);
    copy_into(torch::stable::reshape(values, {1, n}), Block<T>::dense(sigma + b * n, 1, 1, n), device);
    copy_into(right, vt.matrix(b), device);
    status[b] = 0;  // torch throws where it fails
  }
}

}  // namespace

std::vector<int64_t> DenseSolverAten::selected(Selection sel) const {
  std::vector<int> index(sel.count);
  std::vector<int64_t> matrices(sel.count);
  if (sel.index) {
    check(cudaMemcpyAsync(index.data(), sel.index, index.size() * sizeof(int), cudaMemcpyDeviceToHost, stream_),
          "dense solver", sel.count, 0, 0);
    check(cudaStreamSynchronize(stream_), "dense solver", sel.count, 0, 0);
  }
  for (int s = 0; s < sel.count; ++s) {
    matrices[s] = sel.index ? index[s] : s;
  }
  return matrices;
}

void DenseSolverAten::eigh(Block<const float> h, Block<float> w, double* theta, Selection sel) {
  eigh_each(selected(sel), device_, h, w, theta);
}
void DenseSolverAten::eigh(Block<const double> h, Block<double> w, double* theta, Selection sel) {
  eigh_each(selected(sel), device_, h, w, theta);
}
void DenseSolverAten::svd(Block<const float> a, Block<float> u, float* sigma, Block<float> vt, Selection sel,
                          int* status) {
  svd_each(selected(sel), device_, a, u, sigma, vt, status);
}
void DenseSolverAten::svd(Block<const double> a, Block<double> u, double* sigma, Block<double> vt, Selection sel,
                          int* status) {
  svd_each(selected(sel), device_, a, u, sigma, vt, status);
}

}  // namespace laser
