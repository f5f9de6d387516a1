// Checks the arguments that low_rank and truncated_svd share on every device.
#pragma once
#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "core/request.hpp"
#include "core/weight.hpp"
#include "tensor_checks.hpp"

namespace laser {

inline Request request(const char* op, const Weight& w, int64_t rank, const std::string& route, int64_t block,
                       bool gram, bool wide, bool half, std::optional<double> tol, int64_t max_iter, int64_t seed,
                       const std::vector<int64_t>& keys) {
  const int64_t side = std::min(w.rows, w.cols);
  STD_TORCH_CHECK(rank >= 1 && rank <= side, "[laser_kernels::", op, "] rank must be in 1..min(m, n) = ", side,
                  "; got ", rank);
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
  return {kind, rank, block, gram, wide, half, tol.value_or(-1.0), max_iter, uint64_t(seed), &keys};
}

}  // namespace laser
