"""What a call reports about one matrix."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Info:
    """The certificate of one rank reduction. Norms are Frobenius.

    Attributes:
        rank: number of singular triples kept.
        residual: ||A - A_r|| of the dense tensor that was returned, measured in float64, rounding to its dtype included;
            of factors, from the energy that they hold: sqrt(||A||^2 - sum S^2), less exact where that is small.
        relative_residual: residual / ||A|| (0 for a zero matrix).
        excess_bound: estimated upper bound b with residual <= (1 + b) * optimal residual + c * eps * ||A|| for the
            unrounded result. How it is made: DEVNOTES.md, "Certificate".
        rounding: residual minus the residual before the result was rounded to the weight's dtype.
        iterations: multiplications by A^T A; spectral: products of n x n matrices, n = min(rows, cols); 0 for the exact
            routes.
        route: what ran: "randomized", "spectral", "gram_eigh" or "full_svd".
        status: "ok"; "escalated" when an earlier route's certificate failed; "uncertified" when tol was None.
        seconds: wall time of the call's work, divided by the number of matrices worked on together.
    """

    rank: int
    residual: float
    relative_residual: float
    excess_bound: float
    rounding: float
    iterations: int
    route: str
    status: str
    seconds: float
