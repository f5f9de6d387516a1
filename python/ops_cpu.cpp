// Schemas of all ops, once, and their CPU kernels. Stable ABI only: no ATen, no c10, no Python.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "aten.hpp"
#include "core/truncated_svd.hpp"
#include "linalg_aten.hpp"
#include "parallel.hpp"
#include "rank_reduce_cpu.hpp"
#include "rank_reduce_ops.hpp"
#include "tensor_checks.hpp"

namespace laser::ops {
namespace {

namespace stable = torch::stable;

// Enough for any block, where an implementation counts passes.
constexpr int kPasses = 8;

Tensor prepare(const Tensor& weight) {
  const Weight w = check_weight("prepare", "weight", weight);
  Tensor out = empty(weight, {w.count, 2}, ScalarType::Double);
  double* to = out.mutable_data_ptr<double>();
  parallel_each(w.count, [&](int64_t b) {
    const Prepared p = prepare_cpu(w, b, true);
    to[2 * b] = std::ldexp(std::sqrt(p.stats.norm2), p.exponent);
    to[2 * b + 1] = p.stats.top;
  });
  return out;
}

Tensor sketch(const Tensor& weight, int64_t block, int64_t seed, std::vector<int64_t> keys) {
  const Weight w = check_weight("sketch", "weight", weight);
  STD_TORCH_CHECK(int64_t(keys.size()) == w.count, "[laser_kernels::sketch] keys must hold one integer per matrix");
  Tensor out = empty(weight, {w.count, std::min(w.rows, w.cols), block}, ScalarType::Float);
  LinalgAten<float>().sketch(aten::block<float>(out), uint64_t(seed), keys.data());
  return out;
}

Tensor gram(const Tensor& weight) {
  check_dense("gram", "weight", weight);
  const bool wide = weight.size(1) < weight.size(2);
  const int64_t n = std::min(weight.size(1), weight.size(2));
  Tensor out = empty(weight, {weight.size(0), n, n}, weight.scalar_type());
  with_element_type(weight, [&](auto zero) {
    using T = decltype(zero);
    const Block<const T> a =
        Block<const T>::dense(weight.const_data_ptr<T>(), weight.size(0), weight.size(1), weight.size(2));
    const Block<const T> tall = wide ? a.transposed() : a;
    LinalgAten<T>().gram(tall, aten::block<T>(out));
  });
  return out;
}

Tensor orthonormalize(const Tensor& x) {
  check_dense("orthonormalize", "x", x);
  STD_TORCH_CHECK(x.size(1) >= x.size(2), "[laser_kernels::orthonormalize] x must have rows >= columns; got ",
                  shape_text(x));
  Tensor out = stable::clone(x);
  const int64_t count = x.size(0), l = x.size(2);
  Tensor gram = empty(x, {count, l, l}, x.scalar_type()), factor = empty(x, {count, l, l}, x.scalar_type());
  with_element_type(x, [&](auto zero) {
    using T = decltype(zero);
    LinalgAten<T>().orthonormalize(aten::block<T>(out), aten::block<T>(gram), aten::block<T>(factor), kPasses);
  });
  return out;
}

std::tuple<Tensor, Tensor> small_eigh(const Tensor& h) {
  check_dense("small_eigh", "h", h);
  STD_TORCH_CHECK(h.size(1) == h.size(2), "[laser_kernels::small_eigh] h must be square; got ", shape_text(h));
  Tensor theta = empty(h, {h.size(0), h.size(1)}, ScalarType::Double);
  Tensor w = empty(h, {h.size(0), h.size(1), h.size(1)}, h.scalar_type());
  with_element_type(h, [&](auto zero) {
    using T = decltype(zero);
    Tensor source = h;
    const Block<const T> block = aten::block<T>(source);
    LinalgAten<T>().small_eigh(block, aten::block<T>(w), theta.mutable_data_ptr<double>());
  });
  return {theta, w};
}

Tensor count_eigenvalues(const Tensor& h, std::vector<double> above) {
  check_levels(h, above);
  const int64_t count = h.size(0), n = h.size(1);
  Tensor out = empty(h, {count, 2}, ScalarType::Double);
  with_element_type(h, [&](auto zero) {
    using T = decltype(zero);
    const ScratchSize size = count_eigenvalues_scratch<T>(count, n);
    Tensor elements = empty(h, {size.elements}, h.scalar_type()),
           doubles = empty(h, {size.doubles}, ScalarType::Double);
    Tensor source = h;
    const Block<const T> block = aten::block<T>(source);
    LinalgAten<T> la(block);
    const std::vector<EigenvalueCount> found = laser::count_eigenvalues<T>(
        la, block, above.data(), {elements.mutable_data_ptr<T>(), doubles.mutable_data_ptr<double>()});
    for (int64_t b = 0; b < count; ++b) {
      out.mutable_data_ptr<double>()[2 * b] = found[b].above;
      out.mutable_data_ptr<double>()[2 * b + 1] = found[b].unresolved;
    }
  });
  return out;
}

Tensor reconstruct(const Tensor& left, const Tensor& right, const Tensor& weight, Tensor out) {
  const auto both = check_in_and_out("reconstruct", weight, out);
  const Weight &w = both.in, &to = both.out;
  check_factors(left, right, weight);
  Tensor residual = empty(weight, {w.count, 2}, ScalarType::Double);
  double* norms = residual.mutable_data_ptr<double>();
  with_element_type(left, [&](auto zero) {
    using T = decltype(zero);
    Tensor l = left, r = right;
    const Block<const T> lefts = aten::block<T>(l), rights = aten::block<T>(r);
    for (int64_t b = 0; b < w.count; ++b) {
      const cpu::Residual m = reconstruct_cpu<T>(lefts.matrix(b), rights.matrix(b), 0, w, b, to);
      norms[2 * b] = std::sqrt(m.unrounded);
      norms[2 * b + 1] = std::sqrt(m.rounded);
    }
  });
  return residual;
}

void reduce(const Tensor&, const Weight& w, const Request& request, const Weight* dense, const Factors* factors,
            Certificate* certificates) {
  rank_reduce_cpu(w, request, dense, factors, certificates);
}

}  // namespace
}  // namespace laser::ops

STABLE_TORCH_LIBRARY(laser_kernels, m) {
  m.def("prepare(Tensor weight) -> Tensor");
  m.def("sketch(Tensor weight, int block, int seed, int[] keys) -> Tensor");
  m.def("gram(Tensor weight) -> Tensor");
  m.def("orthonormalize(Tensor x) -> Tensor");
  m.def("small_eigh(Tensor h) -> (Tensor, Tensor)");
  m.def("count_eigenvalues(Tensor h, float[] above) -> Tensor");
  m.def("reconstruct(Tensor left, Tensor right, Tensor weight, Tensor(a!) out) -> Tensor");
  m.def(
      "low_rank(Tensor weight, Tensor(a!) out, int[1] ranks, str route, int block, bool gram, bool wide, bool half, "
      "float? tol, int max_iter, int seed, int[] keys) -> Tensor");
  m.def(
      "low_rank_at(Tensor weight, Tensor(a!) out, int rank, int locked, float[] sigma, bool half, int max_iter, int "
      "seed, int[] keys) -> Tensor");
  m.def(
      "truncated_svd(Tensor weight, int[1] ranks, str route, int block, bool gram, bool wide, bool half, float? tol, "
      "int max_iter, int seed, int[] keys) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(laser_kernels, CPU, m) {
  m.impl("prepare", TORCH_BOX(&laser::ops::prepare));
  m.impl("sketch", TORCH_BOX(&laser::ops::sketch));
  m.impl("gram", TORCH_BOX(&laser::ops::gram));
  m.impl("orthonormalize", TORCH_BOX(&laser::ops::orthonormalize));
  m.impl("small_eigh", TORCH_BOX(&laser::ops::small_eigh));
  m.impl("count_eigenvalues", TORCH_BOX(&laser::ops::count_eigenvalues));
  m.impl("reconstruct", TORCH_BOX(&laser::ops::reconstruct));
  m.impl("low_rank", TORCH_BOX(&laser::ops::low_rank<laser::ops::reduce>));
  m.impl("low_rank_at", TORCH_BOX(&laser::ops::low_rank_at<laser::ops::reduce>));
  m.impl("truncated_svd", TORCH_BOX(&laser::ops::truncated_svd<laser::ops::reduce>));
}
