#include "rank_reduce_cpu.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>

#include "aten.hpp"
#include "core/truncated_svd.hpp"
#include "cpu/memory.hpp"
#include "linalg_aten.hpp"
#include "parallel.hpp"

namespace laser {
namespace {

using aten::call;
using aten::take;
using cpu::Memory;

// Rows a thread reads or writes at a time: about 64 k elements stay in a core's L2 cache.
constexpr int64_t kTileElements = 1 << 16;

// Matrices up to this short side are worked on one per thread; larger ones one after another, with
// threads inside the products (DEVNOTES.md, "CPU schedule").
constexpr int64_t kOnePerThread = 1024;

// Matrices this small go through the driver together, so that the cost of a call is shared.
constexpr int64_t kGroupElements = 1 << 15;

int64_t tile_rows(int64_t cols) { return std::max<int64_t>(1, kTileElements / cols); }

// The group's weights in the working type, row-major in their own orientation, rows one behind the other; a view where
// nothing must change. (oneDNN would copy other rows in every product.)
template <typename T>
Block<const T> load_group(const Weight& w, int64_t first, int64_t count, const int* exponent, Memory<T>& copy) {
  const bool same_type = w.dtype == (std::is_same_v<T, double> ? Dtype::kFloat64 : Dtype::kFloat32);
  if (same_type && w.row_stride == w.cols && std::all_of(exponent, exponent + count, [](int e) { return e == 0; })) {
    const T* data = static_cast<const T*>(w.data) + first * w.stride;
    return {data, count, w.rows, w.cols, w.stride, w.row_stride, 1};
  }
  copy = Memory<T>(count * w.rows * w.cols);
  const int64_t rows = tile_rows(w.cols), tiles = (w.rows + rows - 1) / rows;
  parallel_each(count * tiles, [&](int64_t i) {
    const int64_t b = i / tiles, from = i % tiles * rows, to = std::min(from + rows, w.rows);
    cpu::load(w, first + b, from, to, exponent[b], copy.get() + (b * w.rows + from) * w.cols);
  });
  return Block<T>::dense(copy.get(), count, w.rows, w.cols);
}

// The group's weights rounded to bfloat16, in their own orientation; a view where they are that already.
Block<const BFloat16> round_group(const Weight& w, int64_t first, Block<const float> loaded, bool scaled,
                                  Memory<BFloat16>& copy) {
  if (w.dtype == Dtype::kBFloat16 && !scaled) {
    const BFloat16* data = static_cast<const BFloat16*>(w.data) + first * w.stride;
    return {data, loaded.count, w.rows, w.cols, w.stride, w.row_stride, 1};
  }
  copy = Memory<BFloat16>(loaded.count * w.rows * w.cols);
  const Block<BFloat16> rounded = Block<BFloat16>::dense(copy.get(), loaded.count, w.rows, w.cols);
  aten::Tensor target = aten::view(rounded);
  torch::stable::copy_(target, aten::view(loaded));
  return rounded;
}

// FULL_SVD of each matrix: LAPACK's gesdd. left = U_r diag(sigma), right = V_r.
template <typename T>
void full_svd(const SvdProblem& p, Block<const T> weight, const SvdResult<T>& out) {
  const int64_t n = p.cols, r = p.rank;
  for (int64_t b = 0; b < p.count; ++b) {
    auto stack = call("aten::linalg_svd", "", aten::view(weight.matrix(b)), false, std::optional<std::string>{});
    aten::Tensor u = torch::stable::contiguous(take(stack[0]));
    aten::Tensor s = take(stack[1]);
    aten::Tensor vh = torch::stable::contiguous(take(stack[2]));
    const Block<T> left = aten::block<T>(u), right = aten::block<T>(vh).transposed();
    const T* sigma = s.template const_data_ptr<T>();
    for (int64_t j = 0; j < r; ++j) {
      for (int64_t i = 0; i < left.rows; ++i) {
        out.left.at(b, i, j) = left.at(0, i, j) * sigma[j];
      }
      for (int64_t i = 0; i < n; ++i) {
        out.right.at(b, i, j) = right.at(0, i, j);
      }
    }
    out.progress[b] = judge_full_svd(sigma, n, p.rank_of(b), p.norm2[b], p.tolerance);
  }
}

// Largest |entry| of each column of u positive; u and v change sign together. Both (rows, r).
template <typename T>
void fix_signs(Block<T> u, Block<T> v) {
  std::vector<T> extreme(u.cols, T(0));
  for (int64_t i = 0; i < u.rows; ++i) {
    for (int64_t j = 0; j < u.cols; ++j) {
      const T x = u.at(0, i, j);
      extreme[j] = std::abs(x) > std::abs(extreme[j]) ? x : extreme[j];
    }
  }
  for (const Block<T>& x : {u, v}) {
    for (int64_t i = 0; i < x.rows; ++i) {
      for (int64_t j = 0; j < x.cols; ++j) {
        x.at(0, i, j) = extreme[j] < 0 ? -x.at(0, i, j) : x.at(0, i, j);
      }
    }
  }
}

// The factors of matrix `b` of the call in the weight's orientation. T: working type, F: type of the outputs, which
// have room for the rank `most`.
template <typename T, typename F>
void write_factors(Block<T> u, const double* sigma, Block<T> v, int exponent, const Factors& out, int64_t most,
                   int64_t b) {
  const int64_t m = u.rows, n = v.rows, r = u.cols;
  fix_signs(u, v);
  F* to_u = static_cast<F*>(out.u) + b * m * most;
  F* to_s = static_cast<F*>(out.s) + b * most;
  F* to_vh = static_cast<F*>(out.vh) + b * most * n;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < r; ++j) {
      to_u[i * most + j] = F(u.at(0, i, j));
    }
  }
  for (int64_t j = 0; j < r; ++j) {
    to_s[j] = F(std::ldexp(sigma[j], exponent));
    for (int64_t i = 0; i < n; ++i) {
      to_vh[j * n + i] = F(v.at(0, i, j));
    }
  }
}

template <typename T>
void reduce_group(const Weight& w, const Request& request, int64_t first, int64_t count, const Prepared* prepared,
                  const Weight* dense, const Factors* out_factors, Certificate* certificates) {
  std::vector<int> exponent(count);
  std::vector<double> norm2(count);
  std::vector<Progress> progress(count);
  for (int64_t b = 0; b < count; ++b) {
    exponent[b] = prepared[b].exponent;
    norm2[b] = prepared[b].stats.norm2;
  }
  Memory<T> copy(0);
  const Block<const T> loaded = load_group<T>(w, first, count, exponent.data(), copy);
  const bool wide = w.rows < w.cols;  // the core sees m >= n; undone where left and right are written
  const Block<const T> a = wide ? loaded.transposed() : loaded;
  const bool scaled = std::any_of(exponent.begin(), exponent.end(), [](int e) { return e != 0; });
  Memory<BFloat16> rounded(0);
  Block<const BFloat16> half{};
  if constexpr (std::is_same_v<T, float>) {
    if (request.half && request.route == RouteKind::kRandomized && !request.gram) {
      half = round_group(w, first, loaded, scaled, rounded);
      half = wide ? half.transposed() : half;
    }
  }

  std::vector<Cut> cuts;
  for (int64_t b = 0; request.cuts && b < count; ++b) {
    const Cut& cut = (*request.cuts)[first + b];
    cuts.push_back({std::ldexp(cut.level, -2 * exponent[b]), std::ldexp(cut.edge, -2 * exponent[b])});
  }
  const double eps = std::numeric_limits<T>::epsilon();
  const double unit_eps = input_eps(w.dtype);
  const SvdProblem problem{count,
                           a.rows,
                           a.cols,
                           norm2.data(),
                           request.rank,
                           request.block,
                           request.gram,
                           request.half,
                           1,  // a look costs less than the multiplications it may save
                           request.max_iter,
                           {request.tol, eps, certificate::kNoise * eps, kFloor * unit_eps},
                           request.seed,
                           request.keys->data() + first,
                           request.ranks ? request.ranks->data() + first : nullptr,
                           request.cuts ? cuts.data() : nullptr,
                           request.locked};
  const int64_t r = request.rank, m = a.rows, n = a.cols;
  Memory<T> results(count * (m + n) * r);
  const SvdResult<T> result{Block<T>::dense(results.get(), count, m, r),
                            Block<T>::dense(results.get() + count * m * r, count, n, r), progress.data()};
  LinalgAten<T> la(a, half);
  const auto with_scratch = [&](ScratchSize size, const auto& f) {
    Memory<T> elements(size.elements);
    Memory<double> doubles(size.doubles);
    f(Scratch<T>{elements.get(), doubles.get()});
  };
  if (request.route == RouteKind::kFullSvd) {
    full_svd(problem, a, result);
  } else if (request.route == RouteKind::kGramEigh) {
    with_scratch(gram_eigh_scratch(problem), [&](const Scratch<T>& s) { gram_eigh(la, problem, s, result); });
  } else if (request.route == RouteKind::kSpectral) {
    with_scratch(spectral_scratch<T>(problem), [&](const Scratch<T>& s) { spectral(la, problem, s, result); });
  } else {
    with_scratch(randomized_scratch<T>(problem), [&](const Scratch<T>& s) { randomized(la, problem, s, result); });
  }

  for (int64_t b = 0; b < count; ++b) {
    Certificate& c = certificates[b];
    c = certificate_of(progress[b], norm2[b], exponent[b], m, n, unit_eps, request.tol, request.locked);
    if (progress[b].status != Status::kOk && progress[b].status != Status::kUncertified) {
      continue;
    }
    const int64_t own = request.rank_of(first + b);
    const Block<T> left = result.left.matrix(b).first_columns(own), right = result.right.matrix(b).first_columns(own);
    if (dense) {
      const cpu::Residual residual =
          reconstruct_cpu<T>(wide ? right : left, wide ? left : right, exponent[b], w, first + b, *dense);
      measured(c, residual.unrounded, residual.rounded, exponent[b], problem.tolerance.noise,
               slack_of(request, unit_eps, m, n), dense->data == w.data);
      continue;
    }
    std::vector<double> sigma(own);
    LinalgAten<T> alone;
    with_scratch(factors_scratch(1, m, own),
                 [&](const Scratch<T>& s) { factors(alone, left, right, sigma.data(), s); });
    const Block<T>&u = wide ? right : left, &v = wide ? left : right;
    if (w.dtype == Dtype::kFloat64) {
      write_factors<T, double>(u, sigma.data(), v, exponent[b], *out_factors, r, first + b);
    } else {
      write_factors<T, float>(u, sigma.data(), v, exponent[b], *out_factors, r, first + b);
    }
  }
}

}  // namespace

Prepared prepare_cpu(const Weight& w, int64_t b, bool wide) {
  const int64_t rows = tile_rows(w.cols), tiles = (w.rows + rows - 1) / rows;
  std::vector<cpu::Stats> part(tiles);
  const auto pass = [&](int exponent) {
    parallel_each(
        tiles, [&](int64_t i) { part[i] = cpu::prepare(w, b, i * rows, std::min((i + 1) * rows, w.rows), exponent); });
    cpu::Stats total;  // tiles in order: the same bits at any thread count
    for (const cpu::Stats& s : part) {
      total.add(s);
    }
    return total;
  };
  Prepared p{pass(0), 0};
  p.exponent = scale_exponent(p.stats.top, wide ? kSafeWide : kSafe);
  if (p.exponent != 0) {
    p.stats = pass(p.exponent);
  }
  return p;
}

template <typename T>
cpu::Residual reconstruct_cpu(Block<const T> left, Block<const T> right, int exponent, const Weight& w, int64_t b,
                              const Weight& out) {
  const int64_t rows = tile_rows(w.cols), tiles = (w.rows + rows - 1) / rows;
  std::vector<cpu::Residual> part(tiles);
  parallel_each(tiles, [&](int64_t i) {
    const int64_t first = i * rows, n = std::min(rows, w.rows - first);
    Memory<T> scratch(n * w.cols);
    const Block<T> tile = Block<T>::dense(scratch.get(), 1, n, w.cols);
    const Block<const T> some{
        left.data + first * left.row_stride, 1, n, left.cols, 0, left.row_stride, left.col_stride};
    LinalgAten<T>().multiply(some, right.transposed(), tile);
    part[i] = cpu::store<T>(tile, exponent, w, b, first, out);
  });
  cpu::Residual total;
  for (const cpu::Residual& p : part) {
    total.unrounded += p.unrounded;
    total.rounded += p.rounded;
  }
  return total;
}

template cpu::Residual reconstruct_cpu(Block<const float>, Block<const float>, int, const Weight&, int64_t,
                                       const Weight&);
template cpu::Residual reconstruct_cpu(Block<const double>, Block<const double>, int, const Weight&, int64_t,
                                       const Weight&);

void rank_reduce_cpu(const Weight& w, const Request& request, const Weight* dense, const Factors* out_factors,
                     Certificate* certificates) {
  std::vector<Prepared> prepared(w.count);
  parallel_each(w.count, [&](int64_t b) {
    prepared[b] = prepare_cpu(w, b, request.wide);
    const bool finite = std::isfinite(prepared[b].stats.top);
    certificates[b] = {};
    certificates[b].status = double(finite ? Status::kOk : Status::kNonFinite);
  });
  if (std::any_of(prepared.begin(), prepared.end(), [](const Prepared& p) { return !std::isfinite(p.stats.top); })) {
    return;
  }
  const int64_t per_group = std::clamp<int64_t>(kGroupElements / (w.rows * w.cols), 1, 16);
  const int64_t groups = (w.count + per_group - 1) / per_group;
  const auto group = [&](int64_t i) {
    const int64_t first = i * per_group, count = std::min(per_group, w.count - first);
    const auto run = request.wide ? reduce_group<double> : reduce_group<float>;
    run(w, request, first, count, &prepared[first], dense, out_factors, certificates + first);
  };
  if (std::min(w.rows, w.cols) <= kOnePerThread) {
    parallel_each(groups, group);
  } else {
    for (int64_t i = 0; i < groups; ++i) {
      group(i);
    }
  }
}

}  // namespace laser
