// Counts of eigenvalues from Chebyshev moments: the kernel polynomial method.
// Ref: Weisse, Wellein, Alvermann, Fehske: The kernel polynomial method (Rev. Mod. Phys. 2006), section II.
#pragma once
#include <vector>

namespace laser {

// The t above which `count` eigenvalues of T lie, all of which are in [-1, 1]: moments[k] = trace(T_k(T)), k = 0, 1,
// ...; counts are smoothed by the Jackson kernel over about pi / moments.size() around t.
double level_of(const std::vector<double>& moments, double count);

// The sum of (1 + x) / (1 - x) over the eigenvalues x of T below t: what they are of mu, where T is the Cayley
// transform at mu. Too large where the kernel smears what lies near -1.
double sum_below(const std::vector<double>& moments, double t);

}  // namespace laser
