#include "core/sign_quintics.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

namespace laser {
namespace {

// Exchanges of Remez' algorithm; it converges quadratically.
constexpr int kExchanges = 40;

// All steps but the last are applied to x / kDamping, so that values which rounding to bfloat16 has put above 1 do not
// meet the part of the quintic that leads away (Polar Express, section 4.4).
constexpr double kDamping = 1.01;

// No schedule needs more: each quintic multiplies small values by 8, then cubes their distance from 1.
constexpr int kMost = 20;

using System = std::array<std::array<double, 5>, 4>;  // four equations, the right-hand side last

std::array<double, 4> solve(System s) {
  for (int i = 0; i < 4; ++i) {
    int pivot = i;
    for (int k = i + 1; k < 4; ++k) {
      pivot = std::abs(s[k][i]) > std::abs(s[pivot][i]) ? k : pivot;
    }
    std::swap(s[i], s[pivot]);
    for (int k = 0; k < 4; ++k) {
      const double factor = k == i ? 0 : s[k][i] / s[i][i];
      for (int j = i; j < 5; ++j) {
        s[k][j] -= factor * s[i][j];
      }
    }
  }
  return {s[0][4] / s[0][0], s[1][4] / s[1][1], s[2][4] / s[2][2], s[3][4] / s[3][3]};
}

}  // namespace

Quintic closest_quintic(double low, double high) {
  const double l = low / high;  // scaled to [l, 1]
  Quintic p{15.0 / 8, -10.0 / 8, 3.0 / 8};
  double q = (3 * l + 1) / 4, r = (l + 3) / 4;
  for (int i = 0; i < kExchanges && l < 1 - 1e-4; ++i) {  // at 1 the best one is the Taylor polynomial above
    System s;
    const std::array<double, 4> points{l, q, r, 1.0};
    for (int k = 0; k < 4; ++k) {
      const double x = points[k], x2 = x * x;
      s[k] = {x, x * x2, x * x2 * x2, k % 2 ? -1.0 : 1.0, 1.0};
    }
    const auto [a, b, c, error] = solve(s);
    p = {a, b, c};
    const double root = std::sqrt(std::max(9 * b * b - 20 * a * c, 0.0));  // extrema: a + 3 b x^2 + 5 c x^4 = 0
    q = std::sqrt(std::abs((-3 * b - root) / (10 * c)));
    r = std::sqrt(std::abs((-3 * b + root) / (10 * c)));
    if (q > r) {
      std::swap(q, r);
    }
  }
  return {p.a / high, p.b / std::pow(high, 3), p.c / std::pow(high, 5)};
}

std::vector<Quintic> sign_quintics(double low, double error) {
  std::vector<Quintic> steps;
  double high = 1;
  while (int(steps.size()) < kMost) {
    const Quintic p = closest_quintic(low, high);
    const auto value = [&](double x) { return x * (p.a + x * x * (p.b + x * x * p.c)); };
    const double most = 1 - value(low);  // the error at low, and elsewhere at most
    if (most <= error) {
      steps.push_back(p);
      return steps;
    }
    steps.push_back({p.a / kDamping, p.b / std::pow(kDamping, 3), p.c / std::pow(kDamping, 5)});
    low = std::min(value(low / kDamping), 1 - most);
    high = 1 + most;
  }
  return steps;
}

}  // namespace laser
