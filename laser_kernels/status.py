"""How a route ended, per matrix."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """Column 0 of a certificate; the same numbers as csrc/core/certificate.hpp."""

    OK = 0
    UNCERTIFIED = 1
    NOT_CONVERGED = 2
    PRECISION = 3
    NON_FINITE = 4
    SPOILED = 6
