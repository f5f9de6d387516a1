"""Optional packages: imported where they are needed, and named where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, wanted_by: str, extra: str, package: str | None = None) -> ModuleType:
    """The imported `module` of `package` (None: of that name), which our extra `extra` brings.

    Raises:
        ModuleNotFoundError: it is not installed; says who wanted it, which package, and which extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise  # it is there, but lacks something of its own
        raise ModuleNotFoundError(
            f"[laser_kernels] {wanted_by} needs {package or module}, which is not installed: "
            f"pip install 'laser-kernels[{extra}]'",
            name=error.name,
        ) from None
