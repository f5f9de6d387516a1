"""patch(tool): who sees ours, for how long, and what is left behind. The real tools: tests/tools."""

import sys
import threading
import types

import pytest
import torch

import laser_kernels.compat
from laser_kernels import testing
from laser_kernels.compat import accuracy, cut, mergekit, patch, patching, peft, pytorch
from laser_kernels.compat.seams import close_seam, open_seam

TORCHS, TORCHS_SVD, OURS = torch.svd_lowrank, torch.linalg.svd, pytorch.svd_lowrank


@pytest.fixture
def module(monkeypatch):
    """An empty module that is imported under the name of toolbox."""
    module = types.ModuleType("toolbox")
    monkeypatch.setitem(sys.modules, "toolbox", module)
    return module


@pytest.fixture
def tols(monkeypatch):
    """The tol of every decomposition that a patched function asks of the backend."""
    seen = []

    def watched(*args, tol, **kwargs):
        seen.append(tol)
        return laser_kernels.truncated_svd(*args, tol=tol, **kwargs)

    monkeypatch.setattr(cut, "truncated_svd", watched)
    monkeypatch.setattr(pytorch, "truncated_svd", watched)
    return seen


def is_patched():
    """Whether torch.svd_lowrank repeats itself, as ours does and torch's does not."""
    a = testing.llm_like(30, 20)
    return torch.equal(torch.svd_lowrank(a, 3)[0], torch.svd_lowrank(a, 3)[0])


def test_torch_is_patched_inside_only():
    assert not is_patched()
    with patch("torch") as names:
        assert names == ("torch.svd_lowrank",) and is_patched()
        assert torch.svd_lowrank.__doc__ == TORCHS.__doc__
    assert torch.svd_lowrank is TORCHS


def test_exception_restores():
    with pytest.raises(KeyError), patch("torch"):
        raise KeyError
    assert torch.svd_lowrank is TORCHS and accuracy.accepted() == accuracy.DEFAULT_TOL


def test_patches_nest(tols):
    a = testing.llm_like(30, 20)
    with patch("torch", tol=1e-4):
        with patch("torch", tol=1e-6):
            torch.svd_lowrank(a, 3)
        torch.svd_lowrank(a, 3)
        with pytest.raises(KeyError), patch("torch"):
            raise KeyError
        torch.svd_lowrank(a, 3)
    assert torch.svd_lowrank is TORCHS and tols == [1e-6, 1e-4, 1e-4]


def test_decorates():
    assert patch("torch")(is_patched)() and not is_patched()


def test_names_of_other_modules_follow(module):
    module.svd_lowrank = TORCHS  # from torch import svd_lowrank
    with patch("torch"):
        assert module.svd_lowrank is torch.svd_lowrank is not TORCHS
        late = types.ModuleType("imported_inside")
        sys.modules["imported_inside"] = late
        late.svd_lowrank = torch.svd_lowrank
    del sys.modules["imported_inside"]
    assert module.svd_lowrank is TORCHS and late.svd_lowrank is TORCHS


def test_the_drop_ins_own_names_stay(module):
    module.svd_lowrank = OURS  # from laser_kernels.compat import svd_lowrank
    with patch("torch"):
        assert module.svd_lowrank is OURS
    assert module.svd_lowrank is OURS and laser_kernels.compat.svd_lowrank is OURS


def test_threads_whose_patches_overlap():
    """The first to open closes first: the second keeps what it asked for, and the last one restores."""
    opened, closed = threading.Event(), threading.Event()
    found = []

    def second():
        with patch("torch", tol=1e-5):
            opened.set()
            assert closed.wait(30)
            found.append((is_patched(), accuracy.accepted()))

    thread = threading.Thread(target=second)
    with patch("torch", tol=1e-2):
        thread.start()
        assert opened.wait(30)
    closed.set()
    thread.join()
    assert found == [(True, 1e-5)] and torch.svd_lowrank is TORCHS and accuracy.accepted() == 1e-3


def test_refuses(monkeypatch):
    for wrong, message in ((("tensorflow", 1e-3), "knows torch, peft, mergekit"), (("torch", -1), "tol must be")):
        with pytest.raises(ValueError, match=message), patch(wrong[0], tol=wrong[1]):
            pass
    monkeypatch.setattr(torch, "svd_lowrank", lambda *args: None)
    with pytest.raises(RuntimeError, match=r"torch\.svd_lowrank has been replaced"), patch("torch"):
        pass
    assert accuracy.accepted() == accuracy.DEFAULT_TOL


@pytest.mark.parametrize("tool, package", [("peft", "peft"), ("mergekit", "mergekit"), ("sklearn", "scikit-learn")])
def test_missing_package_is_named_with_its_extra(tool, package, monkeypatch):
    patching._seams.cache_clear()
    monkeypatch.setitem(sys.modules, tool, None)
    expected = rf"patch\(\"{tool}\"\) needs {package}, which is not installed: pip install 'laser-kernels\[tools\]'"
    with pytest.raises(ModuleNotFoundError, match=expected), patch(tool):
        pass
    assert torch.svd_lowrank is TORCHS


def test_unknown_version_is_refused(monkeypatch):
    patching._seams.cache_clear()
    monkeypatch.setitem(sys.modules, "mergekit", types.ModuleType("mergekit"))
    for site in mergekit.SITES:
        monkeypatch.setitem(sys.modules, site.module, types.ModuleType(site.module))
    with pytest.raises(ImportError, match="this version of mergekit has none"), patch("mergekit"):
        pass
    patching._seams.cache_clear()


def test_tools_nest_in_one_another(monkeypatch, tols):
    """They share seams: torch.svd_lowrank, and torch.linalg.svd between PEFT and mergekit."""
    patching._seams.cache_clear()
    monkeypatch.setitem(sys.modules, "mergekit", types.ModuleType("mergekit"))
    monkeypatch.setitem(sys.modules, "peft", types.ModuleType("peft"))
    for tool, sites in (("mergekit", mergekit.SITES), ("peft", peft.SITES[:1])):
        module = types.ModuleType(sites[0].module)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        owner, method = sites[0].name.split(".")
        setattr(module, owner, type(owner, (), {method: lambda self: None}))
        assert tool in module.__name__
    with patch("torch"), patch("peft") as of_peft, patch("mergekit") as of_mergekit, patch("peft"):
        assert is_patched() and torch.linalg.svd is not TORCHS_SVD
        assert of_peft[:2] == of_mergekit[:2] == ("torch.svd_lowrank", "torch.linalg.svd")
    assert torch.svd_lowrank is TORCHS and torch.linalg.svd is TORCHS_SVD
    patching._seams.cache_clear()


# ---- a full SVD of which the caller uses the leading triples ----


class Layer:
    rank = 5

    def initialise(self, weight):
        U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
        return U[:, : self.rank], S[: self.rank], Vh[: self.rank]


def leading(weight, rank=5, driver=None):
    U, S, Vh = torch.linalg.svd(weight, driver=driver)
    return U[:, :rank], S[:rank], Vh[:rank]


@pytest.fixture
def cutting(module):
    """Inside: toolbox's functions with seams at Layer.initialise and leading. A site that it lacks is left out."""
    module.Layer, module.leading, leading.__module__ = Layer, leading, "toolbox"
    seams = cut.seams_of(
        [
            cut.Site("toolbox", "Layer.initialise", lambda call: call["self"].rank),
            cut.Site("toolbox", "leading", lambda call: call["rank"]),
            cut.Site("toolbox", "Layer.gone", lambda call: 1),
            cut.Site("toolbox.gone", "leading", lambda call: 1),
        ]
    )
    assert [s.name for s in seams] == ["torch.linalg.svd", "toolbox.Layer.initialise", "toolbox.leading"]
    for seam in seams:
        open_seam(seam)
    yield module
    for seam in seams:
        close_seam(seam)


def test_sites_compute_only_what_they_use(cutting, tols):
    a = testing.llm_like(60, 40)
    for run in (cutting.Layer().initialise, cutting.leading, lambda w: cutting.leading(weight=w, rank=5)):
        U, S, Vh = run(a)
        left = testing.residual(a, (U.double() * S.double()) @ Vh.double())
        assert left <= testing.residual_bound(a, 5, 1e-3)
    assert tols == [1e-3] * 3
    assert torch.linalg.svd(a).S.shape == (40,) and tols == [1e-3] * 3  # outside of the sites: everything


def test_sites_keep_torchs_svd_where_they_must(cutting, tols):
    a = testing.llm_like(60, 40)
    for rank in (40, 41, 0, None):  # all, more, none, or not known beforehand
        assert cutting.leading(a, rank)[1].shape == torch.linalg.svdvals(a)[:rank].shape
    with pytest.raises(RuntimeError, match="not implemented for 'BFloat16'"):
        cutting.leading(a.bfloat16())
    with pytest.raises(RuntimeError, match="driver"):
        cutting.leading(a, driver="gesvd")
    assert cutting.leading(torch.stack([a, a]), 5)[1].shape == (2, 40)
    assert tols == []
    with pytest.raises(torch.linalg.LinAlgError, match="non-finite"):
        cutting.leading(torch.full((6, 7), float("nan")))


def test_site_results_carry_no_graph(cutting, tols):
    U, S, Vh = cutting.Layer().initialise(testing.llm_like(60, 40).requires_grad_())
    assert not any(x.requires_grad for x in (U, S, Vh)) and tols == [1e-3]
    assert torch.is_grad_enabled()


def test_cut_seams_close():
    assert torch.linalg.svd is TORCHS_SVD and Layer.initialise.__qualname__ == "Layer.initialise"
    assert not hasattr(Layer.initialise, "__wrapped__")
