"""Where a checkpoint's weights are reduced: the devices a name stands for, and a worker's way onto its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Workers per GPU, each with its own stream: while one computes, another's weights travel.
WORKERS_PER_GPU = 2


def resolve_devices(names: str) -> tuple[str, ...]:
    """The devices of a comma-separated list; "auto": every GPU that torch sees, else the CPU.

    Raises:
        ValueError: not a device, not there, named twice, or the CPU beside a GPU.
    """
    import torch

    if names == "auto":
        return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count())) or ("cpu",)
    devices = tuple(name.strip() for name in names.split(","))
    for name in devices:
        try:
            device = torch.device(name)
        except RuntimeError:
            device = None
        if device is None or device.type not in ("cpu", "cuda"):
            raise ValueError(f"device {names!r}: must be auto, cpu, cuda, cuda:N or a list like cuda:0,cuda:1")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {names!r}: torch sees no CUDA device here; use cpu")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device {names!r}: torch sees {torch.cuda.device_count()} CUDA devices here")
    if len(set(devices)) < len(devices) or (len(devices) > 1 and any(":" not in name for name in devices)):
        raise ValueError(f"device {names!r}: name different GPUs, each with its number, like cuda:0,cuda:1")
    return devices


def workers(devices: tuple[str, ...]) -> tuple[str, ...]:
    """The device of each worker. GPUs take turns, so that each has its share from the first group on."""
    return devices if devices == ("cpu",) else devices * WORKERS_PER_GPU


class Place:
    """One worker's way onto its device and back: a stream of its own and pinned memory on a GPU, nothing on the CPU."""

    def __init__(self, device: str):
        import torch

        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._pinned = torch.empty(0, dtype=torch.uint8)  # a batch on its way there, and on its way back

    @contextmanager
    def current(self) -> Iterator[None]:
        """Work of this thread goes to the worker's stream."""
        import torch

        if self._stream is None:
            yield
        else:
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                yield

    def bring(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` itself on the CPU; else a copy on the device, in `current`, whose work must be done before the next."""
        return tensor if self._stream is None else self._pin(tensor).copy_(tensor).to(self._device, non_blocking=True)

    def take_back(self, work: torch.Tensor, tensor: torch.Tensor) -> None:
        """tensor <- work, which `bring` made of it."""
        if self._stream is not None:
            pinned = self._pin(tensor).copy_(work, non_blocking=True)
            self._stream.synchronize()
            tensor.copy_(pinned)

    def _pin(self, like: torch.Tensor) -> torch.Tensor:
        """Pinned memory of the shape and dtype of `like`; what it held is lost."""
        import torch

        if like.nbytes > self._pinned.nbytes:
            self._pinned = torch.empty(0, dtype=torch.uint8)  # given back first, to torch, which keeps it pinned
            self._pinned = torch.empty(like.nbytes, dtype=torch.uint8, pin_memory=True)
        return self._pinned[: like.nbytes].view(like.dtype).view(like.shape)
