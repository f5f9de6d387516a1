// Checks the arguments that low_rank and truncated_svd share on every device.
#pragma once
#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "core/request.hpp"
#include "core/weight.hpp"
#include "tensor_checks.hpp"

namespace laser {

// ranks: one for all, or one per matrix; what this returns may keep it.
inline Request request(const char* op, const Weight& w, const std::vector<int64_t>& ranks, const std::string& route,
                       int64_t block, bool gram, bool wide, bool half, std::optional<double> tol, int64_t max_iter,
                       int64_t seed, const std::vector<int64_t>& keys) {
  const int64_t side = std::min(w.rows, w.cols);
  STD_TORCH_CHECK(ranks.size() == 1 || (!ranks.empty() && int64_t(ranks.size()) == w.count), "[laser_kernels::", op,
                  "] ranks must hold one integer, or one per matrix (", w.count, "); got ", ranks.size());
  for (int64_t rank : ranks) {
    STD_TORCH_CHECK(rank >= 1 && rank <= side, "[laser_kernels::", op, "] rank must be in 1..min(m, n) = ", side,
                    "; got ", rank);
  }
  const auto [least, most] = std::minmax_element(ranks.begin(), ranks.end());
  const int64_t rank = *most;
  STD_TORCH_CHECK(block >= rank && block <= side, "[laser_kernels::", op, "] block must be in rank..min(m, n); got ",
                  block);
  STD_TORCH_CHECK(max_iter >= 1, "[laser_kernels::", op, "] max_iter must be at least 1; got ", max_iter);
  STD_TORCH_CHECK(int64_t(keys.size()) == w.count, "[laser_kernels::", op, "] keys must hold one integer per matrix (",
                  w.count, "); got ", keys.size());
  RouteKind kind = RouteKind::kRandomized;
  if (route == "spectral") {
    kind = RouteKind::kSpectral;
  } else if (route == "gram_eigh") {
    kind = RouteKind::kGramEigh;
  } else if (route == "full_svd") {
    kind = RouteKind::kFullSvd;
  } else {
    STD_TORCH_CHECK(route == "randomized", "[laser_kernels::", op,
                    "] route must be randomized, spectral, gram_eigh or full_svd; got ", route);
  }
  STD_TORCH_CHECK(!half || ((kind == RouteKind::kRandomized || kind == RouteKind::kSpectral) && !wide),
                  "[laser_kernels::", op, "] half goes with the routes randomized and spectral, and float32");
  Request r{kind, rank, block, gram, wide, half, tol.value_or(-1.0), max_iter, uint64_t(seed), &keys};
  r.ranks = *least < rank ? &ranks : nullptr;
  return r;
}

// The cuts of low_rank_at: two singular values per matrix.
inline std::vector<Cut> check_cuts(const Weight& w, int64_t rank, int64_t locked, const std::vector<double>& sigma) {
  STD_TORCH_CHECK(locked >= 1 && locked < rank,
                  "[laser_kernels::low_rank_at] locked must be in 1..rank - 1 = ", rank - 1, "; got ", locked);
  STD_TORCH_CHECK(int64_t(sigma.size()) == 2 * w.count, "[laser_kernels::low_rank_at] sigma must hold two numbers per ",
                  "matrix (", 2 * w.count, "); got ", sigma.size());
  std::vector<Cut> cuts;
  for (int64_t b = 0; b < w.count; ++b) {
    const double level = sigma[2 * b], edge = sigma[2 * b + 1];
    STD_TORCH_CHECK(level > edge && edge * edge > 0 && std::isfinite(level * level),
                    "[laser_kernels::low_rank_at] sigma of matrix ", b, " must be positive and fall; got ", level, ", ",
                    edge);
    cuts.push_back({level * level, edge * edge});
  }
  return cuts;
}

inline Request request_at(const Weight& w, int64_t rank, int64_t locked, const std::vector<Cut>& cuts, bool half,
                          int64_t max_iter, int64_t seed, const std::vector<int64_t>& keys) {
  const bool wide = w.dtype == Dtype::kFloat64;
  Request r = request("low_rank_at", w, {rank}, "spectral", rank, true, wide, half, {}, max_iter, seed, keys);
  r.cuts = &cuts;
  r.locked = locked;
  return r;
}

}  // namespace laser
