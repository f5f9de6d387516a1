// Words the errors of the op layer, and turns a tensor into the plain structs of csrc.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <string>
#include <vector>

#include "cpu/kernels.hpp"

namespace laser {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_text(const Tensor& t) {
  std::string text = "(";
  for (int64_t d = 0; d < t.dim(); ++d) {
    text += (d ? ", " : "") + std::to_string(t.size(d));
  }
  return text + ")";
}

// A (b, m, n) tensor with unit stride in its last dimension, in one of the four weight dtypes.
inline Weight check_weight(const char* op, const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 3, "[laser_kernels::", op, "] ", name, " must be (b, m, n); got ", shape_text(t),
                  ": add the batch dimension");
  STD_TORCH_CHECK(t.size(1) > 0 && t.size(2) > 0, "[laser_kernels::", op, "] ", name, " is empty: ", shape_text(t));
  STD_TORCH_CHECK(t.size(2) == 1 || t.stride(2) == 1, "[laser_kernels::", op, "] ", name,
                  " must have unit stride in its last dimension: call .contiguous()");
  Dtype dtype = Dtype::kFloat32;
  switch (t.scalar_type()) {
    case ScalarType::Float:
      break;
    case ScalarType::Double:
      dtype = Dtype::kFloat64;
      break;
    case ScalarType::BFloat16:
      dtype = Dtype::kBFloat16;
      break;
    case ScalarType::Half:
      dtype = Dtype::kFloat16;
      break;
    default:
      STD_TORCH_CHECK(false, "[laser_kernels::", op, "] ", name, " must be float32, float64, bfloat16 or float16");
  }
  return {t.const_data_ptr(), dtype, t.size(0), t.size(1), t.size(2), t.stride(0), t.stride(1)};
}

// A dense (b, rows, cols) tensor of float or double.
inline void check_dense(const char* op, const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 3 && t.is_contiguous(), "[laser_kernels::", op, "] ", name,
                  " must be a contiguous (b, rows, cols) tensor; got ", shape_text(t));
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double, "[laser_kernels::", op,
                  "] ", name, " must be float32 or float64");
}

// A batch of square matrices, and a level for each.
inline void check_levels(const Tensor& h, const std::vector<double>& above) {
  check_dense("count_eigenvalues", "h", h);
  STD_TORCH_CHECK(h.size(0) > 0 && h.size(1) > 0 && h.size(1) == h.size(2),
                  "[laser_kernels::count_eigenvalues] h must be square and not empty; got ", shape_text(h));
  STD_TORCH_CHECK(int64_t(above.size()) == h.size(0),
                  "[laser_kernels::count_eigenvalues] above must hold one number per matrix (", h.size(0), "); got ",
                  above.size());
}

// `weight`, and `out`, which can hold it reduced.
struct InAndOut {
  Weight in, out;
};

inline InAndOut check_in_and_out(const char* op, const Tensor& weight, const Tensor& out) {
  const InAndOut both{check_weight(op, "weight", weight), check_weight(op, "out", out)};
  STD_TORCH_CHECK(weight.size(0) == out.size(0) && weight.size(1) == out.size(1) && weight.size(2) == out.size(2) &&
                      weight.scalar_type() == out.scalar_type() && weight.device() == out.device(),
                  "[laser_kernels::", op, "] out must match weight in shape, dtype and device; got ", shape_text(out),
                  " for ", shape_text(weight));
  return both;
}

// The factors of reconstruct: left (b, m, r), right (b, n, r), dense and of one type, for weight (b, m, n).
inline void check_factors(const Tensor& left, const Tensor& right, const Tensor& weight) {
  check_dense("reconstruct", "left", left);
  check_dense("reconstruct", "right", right);
  STD_TORCH_CHECK(left.size(0) == weight.size(0) && left.size(1) == weight.size(1) && right.size(0) == weight.size(0) &&
                      right.size(1) == weight.size(2) && left.size(2) == right.size(2) &&
                      left.scalar_type() == right.scalar_type() && left.device() == weight.device() &&
                      right.device() == weight.device(),
                  "[laser_kernels::reconstruct] left must be (b, m, r) and right (b, n, r), of one dtype and on the "
                  "weight's device, for weight ",
                  shape_text(weight), "; got ", shape_text(left), " and ", shape_text(right));
}

}  // namespace laser
