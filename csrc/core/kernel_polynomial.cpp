#include "core/kernel_polynomial.hpp"

#include <algorithm>
#include <cmath>

namespace laser {
namespace {

constexpr double kPi = 3.14159265358979323846;

// Halvings of [-1, 1] by which a level is found.
constexpr int kHalvings = 50;

// Cells of equal angle in which eigenvalues are counted, two per width of the kernel at least.
constexpr int kCells = 256;

// The density sum_k g_k (2 - delta_k0) moments_k T_k(t) / (pi sqrt(1 - t^2)) integrates from t to 1 in closed form with
// t = cos(theta), since the integral of cos(k theta) is sin(k theta) / k: a sine series in theta, and these are its
// coefficients, but for moments_0 theta.
std::vector<double> series_of(const std::vector<double>& moments) {
  const double order = double(moments.size()) + 1, step = kPi / order;
  std::vector<double> series(moments.size(), 0.0);
  for (size_t k = 1; k < moments.size(); ++k) {
    const double jackson =
        ((order - double(k)) * std::cos(double(k) * step) + std::sin(double(k) * step) / std::tan(step)) / order;
    series[k] = 2 * jackson * moments[k] / double(k);
  }
  return series;
}

// How many eigenvalues lie above cos(theta). By Clenshaw's recurrence: b_k = series_k + 2 cos(theta) b_k+1 - b_k+2, the
// sum is b_1 sin(theta).
double count_above(const std::vector<double>& moments, const std::vector<double>& series, double theta) {
  const double twice = 2 * std::cos(theta);
  double now = 0, before = 0;
  for (size_t k = series.size(); k-- > 1;) {
    const double next = series[k] + twice * now - before;
    before = now;
    now = next;
  }
  return (moments[0] * theta + now * std::sin(theta)) / kPi;
}

double angle_of(double t) { return std::acos(std::clamp(t, -1.0, 1.0)); }

}  // namespace

double level_of(const std::vector<double>& moments, double count) {
  const std::vector<double> series = series_of(moments);
  double low = -1, high = 1;
  for (int i = 0; i < kHalvings; ++i) {
    const double t = (low + high) / 2;
    (count_above(moments, series, angle_of(t)) > count ? low : high) = t;
  }
  return (low + high) / 2;
}

double sum_below(const std::vector<double>& moments, double t) {
  const std::vector<double> series = series_of(moments);
  const double first = angle_of(t), width = (kPi - first) / kCells;
  double sum = 0, above = count_above(moments, series, first);
  for (int cell = 1; cell <= kCells; ++cell) {
    const double theta = first + cell * width, next = count_above(moments, series, theta);
    const double tangent = std::tan((theta - width / 2) / 2);  // (1 + cos) / (1 - cos) = 1 / tan^2 of the half
    sum += std::max(next - above, 0.0) / (tangent * tangent);
    above = next;
  }
  return sum;
}

}  // namespace laser
