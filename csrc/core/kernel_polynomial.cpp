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

}  // namespace

// The density sum_k g_k (2 - delta_k0) moments_k T_k(t) / (pi sqrt(1 - t^2)) integrates from t to 1 in closed form with
// t = cos(theta): integral of cos(k theta) = sin(k theta) / k.
double count_above(const std::vector<double>& moments, double t) {
  const double theta = std::acos(std::clamp(t, -1.0, 1.0));
  const double order = double(moments.size()) + 1, step = kPi / order;
  double sum = moments[0] * theta;
  for (size_t k = 1; k < moments.size(); ++k) {
    const double jackson =
        ((order - double(k)) * std::cos(double(k) * step) + std::sin(double(k) * step) / std::tan(step)) / order;
    sum += 2 * jackson * moments[k] * std::sin(double(k) * theta) / double(k);
  }
  return sum / kPi;
}

double level_of(const std::vector<double>& moments, double count) {
  double low = -1, high = 1;
  for (int i = 0; i < kHalvings; ++i) {
    const double t = (low + high) / 2;
    (count_above(moments, t) > count ? low : high) = t;
  }
  return (low + high) / 2;
}

double sum_below(const std::vector<double>& moments, double t) {
  const double first = std::acos(std::clamp(t, -1.0, 1.0)), width = (kPi - first) / kCells;
  double sum = 0, above = count_above(moments, t);
  for (int cell = 1; cell <= kCells; ++cell) {
    const double theta = first + cell * width, next = count_above(moments, std::cos(theta));
    const double tangent = std::tan((theta - width / 2) / 2);  // (1 + cos) / (1 - cos) = 1 / tan^2 of the half
    sum += std::max(next - above, 0.0) / (tangent * tangent);
    above = next;
  }
  return sum;
}

}  // namespace laser
