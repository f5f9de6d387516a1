// CUDA kernels of the ops whose schemas are in ops_cpu.cpp. Stable ABI only; no kernel code in here.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "core/truncated_svd.hpp"
#include "cuda/certify.hpp"
#include "cuda/linalg_cuda.hpp"
#include "cuda/prepare.hpp"
#include "cuda/rank_reduce.hpp"
#include "cuda/reconstruct.hpp"
#include "lent_cuda.hpp"
#include "rank_reduce_ops.hpp"
#include "tensor_checks.hpp"

namespace laser::ops {
namespace {

namespace stable = torch::stable;

// Enough for any block.
constexpr int kPasses = 8;

template <typename T>
Block<T> dense(Tensor& t) {
  return Block<T>::dense(static_cast<T*>(t.mutable_data_ptr()), t.size(0), t.size(1), t.size(2));
}
template <typename T>
Block<const T> dense_input(const Tensor& t) {
  return Block<const T>::dense(static_cast<const T*>(t.const_data_ptr()), t.size(0), t.size(1), t.size(2));
}

Tensor prepare(const Tensor& weight) {
  const Weight w = check_weight("prepare", "weight", weight);
  const LentCuda lent(weight);
  Tensor out = empty(weight, {w.count, 2}, ScalarType::Double);
  const CudaContext& c = lent.context;
  const DeviceArray<Prepared> prepared(c, w.count);
  const DeviceArray<double> partial(c, prepare_partials(w.rows, w.count));
  check(laser::prepare(w, kSafeWide, prepared.get(), partial.get(), c.stream), "prepare", w.count, w.rows, w.cols);
  check(norms(prepared.get(), w.count, out.mutable_data_ptr<double>(), c.stream), "prepare", w.count, w.rows, w.cols);
  return out;
}

Tensor sketch(const Tensor& weight, int64_t block, int64_t seed, std::vector<int64_t> keys) {
  const Weight w = check_weight("sketch", "weight", weight);
  STD_TORCH_CHECK(int64_t(keys.size()) == w.count, "[laser_kernels::sketch] keys must hold one integer per matrix");
  const LentCuda lent(weight);
  Tensor out = empty(weight, {w.count, std::min(w.rows, w.cols), block}, ScalarType::Float);
  LinalgCuda<float>(lent.context, w.count).sketch(dense<float>(out), uint64_t(seed), keys.data());
  return out;
}

Tensor gram(const Tensor& weight) {
  check_dense("gram", "weight", weight);
  const LentCuda lent(weight);
  const bool wide = weight.size(1) < weight.size(2);
  const int64_t n = std::min(weight.size(1), weight.size(2));
  Tensor out = empty(weight, {weight.size(0), n, n}, weight.scalar_type());
  with_element_type(weight, [&](auto zero) {
    using T = decltype(zero);
    const ExactMath exact(lent.context);
    const Block<const T> a = dense_input<T>(weight);
    LinalgCuda<T>(lent.context, a.count).gram(wide ? a.transposed() : a, dense<T>(out));
  });
  return out;
}

Tensor orthonormalize(const Tensor& x) {
  check_dense("orthonormalize", "x", x);
  STD_TORCH_CHECK(x.size(1) >= x.size(2), "[laser_kernels::orthonormalize] x must have rows >= columns; got ",
                  shape_text(x));
  const LentCuda lent(x);
  Tensor out = stable::clone(x);
  const int64_t count = x.size(0), l = x.size(2);
  Tensor gram = empty(x, {count, l, l}, x.scalar_type()), factor = empty(x, {count, l, l}, x.scalar_type());
  with_element_type(x, [&](auto zero) {
    using T = decltype(zero);
    const ExactMath exact(lent.context);
    LinalgCuda<T>(lent.context, count).orthonormalize(dense<T>(out), dense<T>(gram), dense<T>(factor), kPasses);
  });
  return out;
}

std::tuple<Tensor, Tensor> small_eigh(const Tensor& h) {
  check_dense("small_eigh", "h", h);
  STD_TORCH_CHECK(h.size(1) == h.size(2), "[laser_kernels::small_eigh] h must be square; got ", shape_text(h));
  const LentCuda lent(h);
  Tensor theta = empty(h, {h.size(0), h.size(1)}, ScalarType::Double);
  Tensor w = empty(h, {h.size(0), h.size(1), h.size(1)}, h.scalar_type());
  with_element_type(h, [&](auto zero) {
    using T = decltype(zero);
    LinalgCuda<T>(lent.context, h.size(0)).small_eigh(dense_input<T>(h), dense<T>(w), theta.mutable_data_ptr<double>());
  });
  return {theta, w};
}

Tensor count_eigenvalues(const Tensor& h, std::vector<double> above) {
  check_levels(h, above);
  const LentCuda lent(h);
  const int64_t count = h.size(0), n = h.size(1);
  Tensor out = empty(h, {count, 2}, ScalarType::Double);
  with_element_type(h, [&](auto zero) {
    using T = decltype(zero);
    const ExactMath exact(lent.context);
    const ScratchSize size = count_eigenvalues_scratch<T>(count, n);
    const DeviceArray<T> elements(lent.context, size.elements);
    const DeviceArray<double> doubles(lent.context, size.doubles);
    LinalgCuda<T> la(lent.context, count);
    const std::vector<EigenvalueCount> found =
        laser::count_eigenvalues<T>(la, dense_input<T>(h), above.data(), {elements.get(), doubles.get()});
    static_assert(sizeof(EigenvalueCount) == 2 * sizeof(double));
    la.send(found.data(), out.mutable_data_ptr<double>(), found.size() * sizeof(EigenvalueCount));
  });
  return out;
}

Tensor reconstruct(const Tensor& left, const Tensor& right, const Tensor& weight, Tensor out) {
  const auto both = check_in_and_out("reconstruct", weight, out);
  const Weight &w = both.in, &to = both.out;
  check_factors(left, right, weight);
  const LentCuda lent(weight);
  const CudaContext& c = lent.context;
  Tensor residual = empty(weight, {w.count, 2}, ScalarType::Double);
  double* norms = residual.mutable_data_ptr<double>();
  with_element_type(left, [&](auto zero) {
    using T = decltype(zero);
    const DeviceArray<char> scratch(c, reconstruct_scratch<T>(w, left.size(2)));
    const Selection all{nullptr, int(w.count)};
    check(laser::reconstruct<T>(dense_input<T>(left), dense_input<T>(right), nullptr, w, to, all, norms, scratch.get(),
                                c.stream),
          "reconstruct", w.count, w.rows, w.cols);
    check(square_roots(norms, 2 * w.count, c.stream), "reconstruct", w.count, w.rows, w.cols);
  });
  return residual;
}

void reduce(const Tensor& weight, const Weight& w, const Request& request, const Weight* dense, const Factors* factors,
            Certificate* certificates) {
  const LentCuda lent(weight);
  rank_reduce_cuda(lent.context, w, request, dense, factors, certificates);
}

}  // namespace
}  // namespace laser::ops

STABLE_TORCH_LIBRARY_IMPL(laser_kernels, CUDA, m) {
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
