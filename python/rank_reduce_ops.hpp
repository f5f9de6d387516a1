// The ops low_rank, low_rank_at and truncated_svd, but for the device: arguments are checked and outputs made here,
// `reduce` fills them.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "core/request.hpp"
#include "request.hpp"
#include "tensor_checks.hpp"

namespace laser::ops {

// Reduces `w`, the memory of `weight`, into `dense` or else `factors`; one certificate per matrix.
using Reduce = void (*)(const Tensor& weight, const Weight& w, const Request& request, const Weight* dense,
                        const Factors* factors, Certificate* certificates);

inline Tensor empty(const Tensor& like, std::vector<int64_t> sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

// f(T{}) for the element type of a tensor of float or double.
template <typename F>
auto with_element_type(const Tensor& t, const F& f) {
  return t.scalar_type() == ScalarType::Double ? f(double{}) : f(float{});
}

inline Tensor certificates_for(const Weight& w, const Tensor& weight) {
  return empty(weight, {w.count, kCertificateColumns}, ScalarType::Double);
}

inline Certificate* rows_of(Tensor& certificates) {
  return reinterpret_cast<Certificate*>(certificates.mutable_data_ptr<double>());
}

template <Reduce reduce>
Tensor low_rank(const Tensor& weight, Tensor out, std::vector<int64_t> ranks, std::string route, int64_t block,
                bool gram, bool wide, bool half, std::optional<double> tol, int64_t max_iter, int64_t seed,
                std::vector<int64_t> keys) {
  const auto [w, to] = check_in_and_out("low_rank", weight, out);
  const Request r = request("low_rank", w, ranks, route, block, gram, wide, half, tol, max_iter, seed, keys);
  Tensor certificates = certificates_for(w, weight);
  reduce(weight, w, r, &to, nullptr, rows_of(certificates));
  return certificates;
}

template <Reduce reduce>
Tensor low_rank_at(const Tensor& weight, Tensor out, int64_t rank, int64_t locked, std::vector<double> sigma, bool half,
                   int64_t max_iter, int64_t seed, std::vector<int64_t> keys) {
  const auto [w, to] = check_in_and_out("low_rank_at", weight, out);
  const std::vector<Cut> cuts = check_cuts(w, rank, locked, sigma);
  const Request r = request_at(w, rank, locked, cuts, half, max_iter, seed, keys);
  Tensor certificates = certificates_for(w, weight);
  reduce(weight, w, r, &to, nullptr, rows_of(certificates));
  return certificates;
}

template <Reduce reduce>
std::tuple<Tensor, Tensor, Tensor, Tensor> truncated_svd(const Tensor& weight, std::vector<int64_t> ranks,
                                                         std::string route, int64_t block, bool gram, bool wide,
                                                         bool half, std::optional<double> tol, int64_t max_iter,
                                                         int64_t seed, std::vector<int64_t> keys) {
  const Weight w = check_weight("truncated_svd", "weight", weight);
  const Request r = request("truncated_svd", w, ranks, route, block, gram, wide, half, tol, max_iter, seed, keys);
  const ScalarType dtype = w.dtype == Dtype::kFloat64 ? ScalarType::Double : ScalarType::Float;
  Tensor u = empty(weight, {w.count, w.rows, r.rank}, dtype);
  Tensor s = empty(weight, {w.count, r.rank}, dtype);
  Tensor vh = empty(weight, {w.count, r.rank, w.cols}, dtype);
  if (r.ranks) {
    for (Tensor* factor : {&u, &s, &vh}) {
      torch::stable::zero_(*factor);
    }
  }
  Tensor certificates = certificates_for(w, weight);
  const Factors factors{u.mutable_data_ptr(), s.mutable_data_ptr(), vh.mutable_data_ptr()};
  reduce(weight, w, r, nullptr, &factors, rows_of(certificates));
  return {u, s, vh, certificates};
}

}  // namespace laser::ops
