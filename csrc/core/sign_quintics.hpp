// Odd quintics whose composition approximates sign(x) on a union of two intervals: the Polar Express.
// Ref: Amsel, Persson, Musco, Gower (arXiv 2505.16932), theorem 3.1: composing each step's best quintic is best.
#pragma once
#include <vector>

namespace laser {

// x -> a x + b x^3 + c x^5
struct Quintic {
  double a, b, c;
};

// The one closest to 1 on [low, high], 0 < low < high: it errs by the same amount, with alternating signs, at low, two
// points between, and high (Remez).
Quintic closest_quintic(double low, double high);

// Quintics, to be applied one after another, after which every x of [low, 1] is within `error` of 1.
std::vector<Quintic> sign_quintics(double low, double error);

}  // namespace laser
