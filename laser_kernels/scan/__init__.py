"""Spectra of all matrices of a checkpoint: `laser-kernels scan`, and `scan` for programs."""

from laser_kernels.scan.rows import Row, scan

__all__ = ["Row", "scan"]
