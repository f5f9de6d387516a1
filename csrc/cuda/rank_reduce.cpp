#include "cuda/rank_reduce.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "core/truncated_svd.hpp"
#include "cuda/certify.hpp"
#include "cuda/columns.hpp"
#include "cuda/dense_solvers.hpp"
#include "cuda/linalg_cuda.hpp"
#include "cuda/prepare.hpp"
#include "cuda/reconstruct.hpp"
#include "cuda/small_eigh.hpp"
#include "cuda/squares.hpp"

namespace laser {
namespace {

// Multiplications between two Rayleigh-Ritz steps, at least: those wait for an eigensolver and for the host, and cost
// more than the products that they might save.
constexpr int64_t kLookEvery = 4;

// Tensor cores cut off what does not fit their float32 sums. One cut per so many terms is counted as a rounding error
// in one direction (DEVNOTES.md, "Tensor cores").
constexpr double kTermsPerRounding = 112;

// Everything a group of matrices needs to know; matrix 0 of the group is `first` of the call.
struct Call {
  const CudaContext& context;
  const Weight& weight;
  const Request& request;
  const Weight* dense;
  const Factors* factors;
  Certificate* certificates;
  const Prepared* prepared;            // device
  const std::vector<Prepared>& known;  // the same on the host, empty where the host must not wait
  bool scaled;                         // some exponent is, or may be, not zero
  bool wide_shape() const { return weight.rows < weight.cols; }
  int64_t tall() const { return std::max(weight.rows, weight.cols); }
  int64_t side() const { return std::min(weight.rows, weight.cols); }
};

template <typename T>
Block<T> oriented(const Call& call, Block<T> x) {
  return call.wide_shape() ? x.transposed() : x;
}

template <typename T>
SvdProblem problem_of(const Call& call, int64_t first, int64_t count, const double* norm2,
                      const int64_t* ranks = nullptr) {
  const Request& r = call.request;
  const double eps = std::numeric_limits<T>::epsilon();
  const double sums = std::is_same_v<T, float> ? std::max(1.0, double(call.tall()) / kTermsPerRounding) : 1.0;
  return {count,
          call.tall(),
          call.side(),
          norm2,
          r.rank,
          r.block,
          r.gram,
          r.half,
          kLookEvery,
          r.max_iter,
          {r.tol, eps, certificate::kNoise * eps * sums, kFloor * input_eps(call.weight.dtype)},
          r.seed,
          r.keys->data() + first,
          ranks,
          r.cuts ? r.cuts->data() + first : nullptr,
          r.locked};
}

// Slices that the weights are given in; a dense solver takes them whole.
template <typename T>
int slices_of(const Call& call) {
  const bool sliced = std::is_same_v<T, float> && call.request.route != RouteKind::kFullSvd;
  return sliced ? weight_slices(call.weight.dtype, call.side()) : 0;
}

// Whether the driver multiplies weights rounded to bfloat16.
bool multiplies_rounded(const Request& r) { return r.half && r.route == RouteKind::kRandomized && !r.gram; }

// Whether every matrix begins where cuBLAS may read it. Of those that it is given by address it cannot find that out,
// and asks for 16 bytes where a product's inner dimension is a multiple of 8, for 4 where it is even
// ("cublasGemmBatchedEx").
bool is_aligned(const Weight& w) {
  const int64_t boundary = w.rows % 8 == 0 || w.cols % 8 == 0 ? 16 : 4;
  const int64_t step = w.count > 1 ? w.stride * int64_t(size_of(w.dtype)) : 0;
  return int64_t(reinterpret_cast<uintptr_t>(w.data) % 16) % boundary == 0 && step % boundary == 0;
}

// The weights of a group as products want them, with the memory of what had to be copied.
template <typename T>
struct Loaded {
  Operand<T> operand{};
  DeviceArray<T> copy;
  DeviceArray<BFloat16> rounded;

  Loaded(const Call& call, int64_t first, int64_t count) {
    const Weight& w = call.weight;
    const int64_t elements = count * w.rows * w.cols;
    const bool same = w.dtype == (std::is_same_v<T, double> ? Dtype::kFloat64 : Dtype::kFloat32);
    operand.count = slices_of<T>(call);
    if (operand.count == 1 && !call.scaled && is_aligned(w)) {
      const BFloat16* data = static_cast<const BFloat16*>(w.data) + first * w.stride;
      operand.slices.first = oriented<const BFloat16>(call, {data, count, w.rows, w.cols, w.stride, w.row_stride, 1});
      return;
    }
    const bool multiplied = std::is_same_v<T, float> && multiplies_rounded(call.request);
    if (const int slices = std::max(operand.count, int(multiplied))) {
      rounded = DeviceArray<BFloat16>(call.context, slices * elements);
      const Block<BFloat16> to = Block<BFloat16>::dense(rounded.get(), count, w.rows, w.cols);
      check(load_slices(w, first, call.prepared, to, slices, elements, call.context.stream), "load", count, w.rows,
            w.cols);
      operand.slices = {oriented<const BFloat16>(call, to), elements};
    }
    if (operand.count > 0) {
      return;
    }
    if (same && !call.scaled) {
      const T* data = static_cast<const T*>(w.data) + first * w.stride;
      operand.weight = oriented<const T>(call, {data, count, w.rows, w.cols, w.stride, w.row_stride, 1});
      return;
    }
    copy = DeviceArray<T>(call.context, elements);
    const Block<T> to = Block<T>::dense(copy.get(), count, w.rows, w.cols);
    check(load(w, first, call.prepared, to, call.context.stream), "load", count, w.rows, w.cols);
    operand.weight = oriented<const T>(call, to);
  }
};

// FULL_SVD by the context's solver: left = U_r diag(sigma), right = V_r.
template <typename T>
void full_svd(const Call& call, const SvdProblem& p, LinalgCuda<T>& la, const Operand<T>& operand, int64_t first,
              const SvdResult<T>& out) {
  const CudaContext& context = call.context;
  const int64_t m = p.rows, n = p.cols, r = p.rank;
  DeviceArray<T> vectors(context, p.count * (m + n) * n), values(context, p.count * n);
  DeviceArray<double> sigma(context, p.count * n);
  const Block<T> u = Block<T>::dense(vectors.get(), p.count, m, n);
  const Block<T> vt = Block<T>::dense(vectors.get() + p.count * m * n, p.count, n, n);
  const Selection all{nullptr, int(p.count)};
  std::vector<int64_t> every(p.count), zeros, others;
  std::vector<int> unsolved(p.count, 0);
  for (int64_t b = 0; b < p.count; ++b) {
    every[b] = b;
    (call.known[first + b].norm2 == 0 ? zeros : others).push_back(b);
  }
  if (!zeros.empty()) {  // cuSOLVER has answered NaN to these: 0 diag(0) I instead
    la.select(zeros);
    check(cudaMemsetAsync(values.get(), 0, size_t(values.size()) * sizeof(T), context.stream), "full_svd", p.count, m,
          n);
    check(zero(u, la.batch().selection, context.stream), "full_svd", p.count, m, n);
    check(zero(vt, la.batch().selection, context.stream), "full_svd", p.count, n, n);
    check(affine<T>(vt, 1, 1, vt, la.batch().selection, context.stream), "full_svd", p.count, n, n);
  }
  if (!others.empty()) {
    la.select(others);
    context.solver->svd(operand.weight, u, values.get(), vt, la.batch().selection, unsolved.data());
  }
  la.select(every);
  const Block<const T> row = Block<T>::dense(values.get(), p.count, 1, n);
  check(widen_row(row, sigma.get(), all, context.stream), "full_svd", p.count, m, n);
  // Columns beyond r are not read, but sigma's rows are n long: scale in place, then take what is wanted.
  check(scale_columns<T, T>(u, sigma.get(), u, all, context.stream), "full_svd", p.count, m, n);
  la.copy(u.first_columns(r), out.left);
  la.copy(vt.transposed().first_columns(r), out.right);

  std::vector<T> host(p.count * n);
  std::vector<Progress> progress(p.count);
  check(cudaMemcpyAsync(host.data(), values.get(), host.size() * sizeof(T), cudaMemcpyDeviceToHost, context.stream),
        "full_svd", p.count, m, n);
  check(cudaStreamSynchronize(context.stream), "full_svd", p.count, m, n);
  for (int64_t b = 0; b < p.count; ++b) {
    if (unsolved[b]) {
      progress[b].status = Status::kPrecision;
    } else {
      progress[b] =
          judge_full_svd(&host[b * n], n, call.request.rank_of(first + b), call.known[first + b].norm2, p.tolerance);
    }
  }
  check(cudaMemcpyAsync(out.progress, progress.data(), progress.size() * sizeof(Progress), cudaMemcpyHostToDevice,
                        context.stream),
        "full_svd", p.count, m, n);
  check(cudaStreamSynchronize(context.stream), "full_svd", p.count, m, n);  // progress is about to go
}

// The factors of the selected matrices, all of rank r, in the weight's orientation, F = float or double.
template <typename T, typename F>
void write_factors(const Call& call, LinalgCuda<T>& la, const SvdResult<T>& result, int64_t r, const int* exponent,
                   int64_t first, int64_t count) {
  const CudaContext& context = call.context;
  const int64_t m = call.weight.rows, n = call.weight.cols, most = call.request.rank;
  DeviceArray<double> sigma(context, count * r), sign(context, count * r);
  DeviceArray<T> scratch(context, factors_scratch(count, call.tall(), r).elements);
  const Block<T> left = result.left.first_columns(r), right = result.right.first_columns(r);
  factors<T>(la, left, right, sigma.get(), {scratch.get(), nullptr});
  const Selection& sel = la.batch().selection;
  const Block<F> to_u = Block<F>::dense(static_cast<F*>(call.factors->u) + first * m * most, count, m, most);
  const Block<F> to_vh = Block<F>::dense(static_cast<F*>(call.factors->vh) + first * most * n, count, most, n);
  F* to_s = static_cast<F*>(call.factors->s) + first * most;
  const Block<const T> from_u = call.wide_shape() ? right : left, from_v = call.wide_shape() ? left : right;
  check(column_signs(from_u, sign.get(), sel, context.stream), "factors", count, m, r);
  check(scale_columns(from_u, sign.get(), to_u.first_columns(r), sel, context.stream), "factors", count, m, r);
  check(scale_columns(from_v, sign.get(), to_vh.transposed().first_columns(r), sel, context.stream), "factors", count,
        n, r);
  check(singular_values(sigma.get(), r, exponent, to_s, most, sel, context.stream), "factors", count, r, 1);
  const double status = int(Status::kPrecision);
  for (int64_t b : la.unsolved()) {
    la.send(&status, &call.certificates[first + b].status, sizeof(status));
  }
}

template <typename T>
void write_dense(const Call& call, LinalgCuda<T>& la, const SvdResult<T>& result, const int64_t* ranks,
                 const int* exponent, double noise, int64_t first, int64_t count) {
  const CudaContext& context = call.context;
  if (ranks) {  // 0 times what is no number would be none either
    la.truncate(result.left, ranks);
    la.truncate(result.right, ranks);
  }
  const auto part = [&](const Weight& w) {
    Weight some = w;
    some.data = static_cast<const char*>(w.data) + first * w.stride * size_of(w.dtype);
    some.count = count;
    return some;
  };
  const Weight weight = part(call.weight), out = part(*call.dense);
  const DeviceArray<double> residual2(context, 2 * count);
  const DeviceArray<char> scratch(context, reconstruct_scratch<T>(weight, call.request.rank));
  const Block<const T> left = call.wide_shape() ? result.right : result.left;
  const Block<const T> right = call.wide_shape() ? result.left : result.right;
  const Selection& sel = la.batch().selection;
  check(reconstruct<T>(left, right, exponent, weight, out, sel, residual2.get(), scratch.get(), context.stream),
        "reconstruct", count, weight.rows, weight.cols);
  const double slack = slack_of(call.request, input_eps(weight.dtype), weight.rows, weight.cols);
  check(measured(residual2.get(), exponent, noise, slack, call.dense->data == call.weight.data,
                 call.certificates + first, sel, context.stream),
        "certify", count, weight.rows, weight.cols);
}

template <typename T>
void reduce_group(const Call& call, int64_t first, int64_t count) {
  const CudaContext& context = call.context;
  const Request& request = call.request;
  const int64_t m = call.tall(), n = call.side(), r = request.rank;
  DeviceArray<double> norm2(context, count);
  DeviceArray<int> exponent(context, count);
  check(unpack(call.prepared + first, count, norm2.get(), exponent.get(), context.stream), "prepare", count, m, n);
  const DeviceArray<int64_t> own(context, request.ranks ? count : 0);
  if (request.ranks) {
    check(cudaMemcpyAsync(own.get(), request.ranks->data() + first, size_t(count) * sizeof(int64_t),
                          cudaMemcpyHostToDevice, context.stream),
          "prepare", count, m, n);
  }
  const int64_t* const ranks = request.ranks ? own.get() : nullptr;
  const SvdProblem problem = problem_of<T>(call, first, count, norm2.get(), ranks);
  const Loaded<T> loaded(call, first, count);
  DeviceArray<T> results(context, count * (m + n) * r);
  DeviceArray<Progress> progress(context, count);
  const SvdResult<T> result{Block<T>::dense(results.get(), count, m, r),
                            Block<T>::dense(results.get() + count * m * r, count, n, r), progress.get()};
  {
    LinalgCuda<T> la(context, count, loaded.operand);
    const auto with_scratch = [&](ScratchSize size, const auto& route) {
      const DeviceArray<T> elements(context, size.elements);
      const DeviceArray<double> doubles(context, size.doubles);
      route(la, problem, Scratch<T>{elements.get(), doubles.get()}, result);
    };
    if (request.route == RouteKind::kFullSvd) {
      full_svd(call, problem, la, loaded.operand, first, result);
    } else if (request.route == RouteKind::kGramEigh) {
      with_scratch(gram_eigh_scratch(problem), gram_eigh<T>);
    } else if (request.route == RouteKind::kSpectral) {
      with_scratch(spectral_scratch<T>(problem), spectral<T>);
    } else {
      with_scratch(randomized_scratch<T>(problem), randomized<T>);
    }
  }
  check(certify(progress.get(), call.prepared + first, count, m, n, input_eps(call.weight.dtype), request.tol,
                request.locked, call.certificates + first, context.stream),
        "certify", count, m, n);

  LinalgCuda<T> la(context, count);
  std::vector<int64_t> good;
  if (!call.known.empty()) {
    std::vector<Progress> found(count);
    la.read(progress.get(), found);
    for (int64_t b = 0; b < count; ++b) {
      if (found[b].status == Status::kOk || found[b].status == Status::kUncertified) {
        good.push_back(b);
      }
    }
    if (good.empty()) {
      return;
    }
    la.select(good);
  }
  if (call.dense) {
    write_dense(call, la, result, ranks, exponent.get(), problem.tolerance.noise, first, count);
    return;
  }
  std::map<int64_t, std::vector<int64_t>> by_rank;
  for (int64_t b : good) {
    by_rank[request.rank_of(first + b)].push_back(b);
  }
  for (const auto& [rank, some] : by_rank) {
    la.select(some);
    const auto write = call.weight.dtype == Dtype::kFloat64 ? write_factors<T, double> : write_factors<T, float>;
    write(call, la, result, rank, exponent.get(), first, count);
  }
}

// Eigenproblems up to this size are our kernel's, which needs no host and has an answer to everything.
int64_t own_limit(const CudaContext& context, const Request& request) {
  return request.wide ? jacobi_limit<double>(context.shared_limit) : jacobi_limit<float>(context.shared_limit);
}

// Whether nothing is looked at before it is written: that a CUDA graph may hold.
bool is_blind(const CudaContext& context, const Request& request, const Factors* factors) {
  const bool loop = request.route == RouteKind::kRandomized && request.block <= own_limit(context, request);
  return request.tol < 0 && (loop || request.cuts) && !factors && !request.ranks;
}

// Where cuts are given nothing may wait for the device, so every eigenproblem must fit our kernel.
void check_top_up(const Call& call) {
  const int64_t limit = own_limit(call.context, call.request);
  const int64_t block = top_up_block(problem_of<float>(call, 0, 1, nullptr));
  if (block > limit) {
    throw std::invalid_argument(
        "[laser_kernels::low_rank_at] rank - locked = " + std::to_string(call.request.rank - call.request.locked) +
        " needs eigenproblems of " + std::to_string(block) + ", more than this device's " + std::to_string(limit) +
        ": choose locked nearer to rank");
  }
}

// Scratch of one matrix, roughly: what decides how many go together.
template <typename T>
int64_t bytes_of_one(const Call& call) {
  const int64_t m = call.tall(), n = call.side(), r = call.request.rank, l = call.request.block;
  const SvdProblem one = problem_of<T>(call, 0, 1, nullptr);
  const int slices = slices_of<T>(call);
  const bool copied = call.scaled || slices != 1 || !is_aligned(call.weight);
  const int64_t copies = slices > 0 ? 2 * slices : 2 + int64_t(sizeof(T));
  int64_t bytes = (copied ? copies * m * n : 0) + 3 * (m + n) * r * int64_t(sizeof(T));
  ScratchSize scratch = {(m + n) * n, 2 * n};
  if (call.request.route == RouteKind::kRandomized) {
    scratch = randomized_scratch<T>(one);
  } else if (call.request.route == RouteKind::kGramEigh) {
    scratch = gram_eigh_scratch(one);
    scratch.elements *= 2;  // the eigensolver's own
  } else if (call.request.route == RouteKind::kSpectral) {
    scratch = spectral_scratch<T>(one);
    bytes += linalg_cuda_square_bytes<T>(n);
  }
  const int64_t square = call.request.route == RouteKind::kRandomized && call.request.gram ? n : 0;
  bytes += scratch.elements * int64_t(sizeof(T)) + scratch.doubles * 8 + linalg_cuda_bytes<T>(m, l, square);
  return bytes;
}

template <typename T>
void reduce_in_groups(const Call& call) {
  int64_t size = std::max<int64_t>(call.context.memory_limit / bytes_of_one<T>(call), 1);
  for (int64_t first = 0; first < call.weight.count;) {
    const int64_t count = std::min(size, call.weight.count - first);
    try {
      reduce_group<T>(call, first, count);
      first += count;
    } catch (const OutOfMemory&) {
      if (count == 1) {
        throw;
      }
      size = count / 2;
    }
  }
}

}  // namespace

void rank_reduce_cuda(const CudaContext& context, const Weight& w, const Request& request, const Weight* dense,
                      const Factors* factors, Certificate* certificates) {
  const ExactMath exact(context);
  DeviceArray<Prepared> prepared(context, w.count);
  DeviceArray<double> partial(context, prepare_partials(w.rows, w.count));
  const int safe = request.cuts ? kUnscaled : request.wide ? kSafeWide : kSafe;
  check(prepare(w, safe, prepared.get(), partial.get(), context.stream), "prepare", w.count, w.rows, w.cols);
  std::vector<Prepared> known;
  bool scaled = !request.cuts;
  if (!is_blind(context, request, factors)) {
    known.resize(w.count);
    check(cudaMemcpyAsync(known.data(), prepared.get(), known.size() * sizeof(Prepared), cudaMemcpyDeviceToHost,
                          context.stream),
          "prepare", w.count, w.rows, w.cols);
    check(cudaStreamSynchronize(context.stream), "prepare", w.count, w.rows, w.cols);
    if (std::any_of(known.begin(), known.end(), [](const Prepared& p) { return !std::isfinite(p.top); })) {
      check(certify(nullptr, prepared.get(), w.count, w.rows, w.cols, 0, 0, 0, certificates, context.stream), "certify",
            w.count, w.rows, w.cols);
      return;
    }
    scaled = std::any_of(known.begin(), known.end(), [](const Prepared& p) { return p.exponent != 0; });
  }
  const Call call{context, w, request, dense, factors, certificates, prepared.get(), known, scaled};
  if (request.cuts) {
    check_top_up(call);
  }
  request.wide ? reduce_in_groups<double>(call) : reduce_in_groups<float>(call);
}

}  // namespace laser
