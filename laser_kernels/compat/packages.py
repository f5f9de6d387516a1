"""Optional packages: imported where they are needed, and named where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, wanted_by: str, package: str | None = None) -> ModuleType:
    """The imported `module`.

    Raises:
        ModuleNotFoundError: it is not installed; says which package and which extra bring it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise  # it is there, but lacks something of its own
        raise ModuleNotFoundError(
            f"[laser_kernels::compat] {wanted_by} needs {package or module}, which is not installed: "
            "pip install 'laser-kernels[tools]'",
            name=error.name,
        ) from None
