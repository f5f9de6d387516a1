// ATen through the dispatcher: the few functions the CPU backend borrows. Stable ABI only.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <type_traits>
#include <utility>

#include "core/linalg.hpp"

namespace laser::aten {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
constexpr ScalarType scalar_type = std::is_same_v<std::remove_const_t<T>, double>     ? ScalarType::Double
                                   : std::is_same_v<std::remove_const_t<T>, BFloat16> ? ScalarType::BFloat16
                                                                                      : ScalarType::Float;

// A tensor that borrows a block's memory: (rows, cols) for one matrix, else (count, rows, cols).
template <typename T>
Tensor view(Block<T> x, const torch::stable::Device& device) {
  void* data = const_cast<std::remove_const_t<T>*>(x.data);
  if (x.count == 1) {
    return torch::stable::from_blob(data, {x.rows, x.cols}, {x.row_stride, x.col_stride}, device, scalar_type<T>);
  }
  return torch::stable::from_blob(data, {x.count, x.rows, x.cols}, {x.stride, x.row_stride, x.col_stride}, device,
                                  scalar_type<T>);
}

template <typename T>
Tensor view(Block<T> x) {
  return view(x, torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

// Calls aten::<name>.<overload>; all arguments of the schema, in order, defaults included. Results
// are read off `stack`.
template <typename... Args>
std::array<StableIValue, sizeof...(Args)> call(const char* name, const char* overload, const Args&... args) {
  std::array<StableIValue, sizeof...(Args)> stack{torch::stable::detail::from(args)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return stack;
}

inline Tensor take(StableIValue& value) { return torch::stable::detail::to<Tensor>(value); }

// Copies a result of any strides into a block.
template <typename T>
void copy_into(const Tensor& from, Block<T> to) {
  Tensor target = view(to);
  torch::stable::copy_(target, from);
}

// The dense row-major block over a fresh tensor's memory; the tensor must outlive it.
template <typename T>
Block<T> block(Tensor& dense) {
  const int64_t d = dense.dim();
  return Block<T>::dense(dense.mutable_data_ptr<T>(), d == 3 ? dense.size(0) : 1, dense.size(d - 2), dense.size(d - 1));
}

}  // namespace laser::aten
