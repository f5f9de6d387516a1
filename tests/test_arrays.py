"""Arrays of other libraries through DLPack; CuPy's by a stand-in, where there is no GPU."""

import contextlib
import sys
import types

import pytest
import torch

import laser_kernels as lk
from laser_kernels import arrays
from laser_kernels.testing import llm_like

A = llm_like(30, 20)


class Device(contextlib.nullcontext):
    id = 1


class Foreign:
    """An array-API array that is neither torch's nor NumPy's."""

    def __init__(self, tensor):
        self.tensor = tensor
        self.device = Device()

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__()

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()

    def __getitem__(self, where):
        return Foreign(self.tensor[where])

    def __array_namespace__(self):
        return types.SimpleNamespace(from_dlpack=lambda x: Foreign(torch.from_dlpack(x)))


def test_the_same_kind_of_array_comes_back():
    x, info = lk.low_rank(Foreign(A), 4, return_info=True)
    assert isinstance(x, Foreign) and torch.equal(x.tensor, lk.low_rank(A, 4)) and info.rank == 4
    assert all(isinstance(t, Foreign) for t in lk.truncated_svd(Foreign(A), 4))
    assert isinstance(lk.svdvals(Foreign(A)), Foreign)
    assert isinstance(lk.factorize(Foreign(A), 4).reconstruct(2), Foreign)
    assert all(isinstance(t, Foreign) for t in lk.low_rank([Foreign(A), Foreign(A.clone())], 4))


def test_out_may_be_foreign():
    out = Foreign(torch.empty_like(A))
    assert lk.low_rank(Foreign(A), 4, out=out) is out
    assert torch.equal(out.tensor, lk.low_rank(A, 4))


def test_no_array_is_refused():
    with pytest.raises(TypeError, match="must be a torch tensor, a NumPy array, an array with DLPack"):
        lk.low_rank(object(), 4)


def test_a_list_has_arrays_of_one_library():
    with pytest.raises(TypeError, match=r"one library.* numpy and torch"):
        lk.low_rank([A.numpy(), A.bfloat16()], 4)


def test_cupys_current_stream_is_used(monkeypatch):
    entered = []
    stream = types.SimpleNamespace(ptr=4711)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: ("default", device))
    monkeypatch.setitem(
        sys.modules, "cupy", types.SimpleNamespace(cuda=types.SimpleNamespace(get_current_stream=lambda: stream))
    )
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda ptr, device: (ptr, device))

    @contextlib.contextmanager
    def on(stream):
        entered.append(stream)
        yield

    monkeypatch.setattr(torch.cuda, "stream", on)
    array = type("ndarray", (Foreign,), {"__module__": "cupy"})(A)
    lk.low_rank(array, 4)
    lk.low_rank([array], 4)
    assert entered == [(4711, "cuda:1")] * 2
    stream.ptr = 0
    lk.low_rank(array, 4)
    assert entered.pop() == ("default", "cuda:1")
    lk.low_rank(A, 4)
    assert len(entered) == 2 and isinstance(arrays._stream_of(A), contextlib.nullcontext)
