"""Drop-ins: signatures and returns of the originals, accuracy against float64 and against the originals."""

import inspect

import numpy as np
import pytest
import torch

from laser_kernels import testing
from laser_kernels.compat import do_low_rank, randomized_svd, svd_lowrank
from laser_kernels.compat.accuracy import accepted


def product(U, S, V):
    return (U.double() * S.double().unsqueeze(-2)) @ V.double().mT


# ---- LASER ----


def test_do_low_rank_has_lasers_signature():
    assert str(inspect.signature(do_low_rank)).startswith(
        "(weight: 'Tensor', k: 'float', debug: 'bool' = False, niter: "
    )


@pytest.mark.parametrize("side, rank", [(500, 4), (400, 3), (768, 7)])  # 500 and 400: one short
def test_do_low_rank_takes_lasers_rank(side, rank):
    reduced = do_low_rank(testing.gaussian(side, side + 5, 0).float(), (10 - 9.9) * 0.1)
    assert torch.linalg.matrix_rank(reduced, rtol=1e-4) == rank


@pytest.mark.parametrize("niter", [2, 20])
def test_do_low_rank_is_near_the_optimum_in_the_weights_dtype(smollm2, niter):
    for weight in smollm2.values():
        reduced = do_low_rank(weight, 0.1, niter=niter)
        rank = int(min(weight.shape) * 0.1)
        rounding = torch.finfo(torch.bfloat16).eps * testing.norm(reduced.detach())
        assert type(reduced) is torch.nn.Parameter and reduced.dtype == weight.dtype
        assert (
            testing.residual(weight, reduced.detach())
            <= testing.residual_bound(weight, rank, accepted(niter)) + rounding
        )


def test_do_low_rank_at_the_ends(capsys):
    weight = testing.gaussian(40, 30, 1).float()
    assert torch.equal(do_low_rank(weight, 0.0), torch.zeros(40, 30))
    assert torch.equal(do_low_rank(weight, 0.02), torch.zeros(40, 30))  # rank int(0.6)
    torch.testing.assert_close(do_low_rank(weight, 1.0).detach(), weight, rtol=0, atol=1e-5)
    with pytest.warns(UserWarning, match="rank 36 of a"):
        torch.testing.assert_close(do_low_rank(weight, 1.2).detach(), weight, rtol=0, atol=1e-5)
    assert capsys.readouterr().out == ""
    do_low_rank(weight, 0.5, debug=True)
    assert "rank 15 of 30" in capsys.readouterr().out


def test_do_low_rank_refuses():
    with pytest.raises(ValueError, match=r"2-D; got shape \(2, 3, 4\)"):
        do_low_rank(torch.zeros(2, 3, 4), 0.5)
    for k in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="k must be a fraction"):
            do_low_rank(torch.eye(4), k)


# ---- torch.svd_lowrank ----


def test_svd_lowrank_has_torchs_parameters():
    ours, torchs = (inspect.signature(f).parameters.values() for f in (svd_lowrank, torch.svd_lowrank))
    assert [(p.name, p.default, p.kind) for p in ours] == [(p.name, p.default, p.kind) for p in torchs]


@pytest.mark.parametrize("niter", [0, 2, 7, 16])
@pytest.mark.parametrize("family", ["spiked", "gaussian", "power_law", "condition_1e3", "clustered", "exact_rank"])
def test_svd_lowrank_is_at_least_as_close_as_torchs(family, niter):
    a = testing.FAMILIES[family](90, 130, 12).float()
    torch.manual_seed(0)
    torchs = testing.residual(a, product(*torch.svd_lowrank(a, 12, niter)))
    U, S, V = svd_lowrank(a, 12, niter)
    assert U.shape == (90, 12) and S.shape == (12,) and V.shape == (130, 12)
    left = testing.residual(a, product(U, S, V))
    floor = testing.FLOOR * testing.eps(torch.float32) * testing.norm(a)
    assert left <= testing.residual_bound(a, 12, accepted(niter))
    assert left <= torchs + accepted(niter) * testing.optimal_residual(a, 12) + floor
    if family in ("spiked", "gaussian", "clustered"):  # slow decay, as weights have it
        assert left < torchs
    for q in (U, V):
        assert (q.mT @ q - torch.eye(12)).abs().max() <= testing.orthonormality_bound(q.dtype, 12)


def test_svd_lowrank_of_batches_and_differences():
    a = torch.stack([testing.llm_like(40, 60, seed) for seed in range(6)]).reshape(2, 3, 40, 60)
    mean = a.mean(-2, keepdim=True)
    U, S, V = svd_lowrank(a, q=5, M=mean)
    assert U.shape == (2, 3, 40, 5) and S.shape == (2, 3, 5) and V.shape == (2, 3, 60, 5)
    for i in range(2):
        for j in range(3):
            difference = a[i, j].double() - mean[i, j].double()
            left = testing.residual(difference, product(U[i, j], S[i, j], V[i, j]))
            assert left <= testing.residual_bound(difference.float(), 5, 1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_svd_lowrank_of_other_floats(dtype):
    a = testing.llm_like(50, 30).to(dtype)
    U, S, V = svd_lowrank(a, 4)
    assert {x.dtype for x in (U, S, V)} == {torch.float64 if dtype == torch.float64 else torch.float32}
    assert testing.residual(a, product(U, S, V)) <= testing.residual_bound(a, 4, 1e-3)


def test_svd_lowrank_leaves_torchs_random_state_alone_and_repeats_itself():
    a, state = testing.llm_like(50, 30), torch.get_rng_state()
    first = svd_lowrank(a)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert all(torch.equal(x, y) for x, y in zip(first, svd_lowrank(a), strict=True))


@pytest.mark.parametrize("q", [30, 31, 100])
def test_svd_lowrank_gives_as_many_triples_as_torch(q):
    a = testing.llm_like(50, 30)
    assert [x.shape for x in svd_lowrank(a, q)] == [x.shape for x in torch.svd_lowrank(a, q)]


class Tagged(torch.Tensor):
    pass


TORCHS_OWN = {
    "gradients": lambda a: (a.requires_grad_(),),
    "gradients of M": lambda a: (a, 3, 2, torch.ones(30, requires_grad=True)),
    "complex": lambda a: (a.to(torch.complex64),),
    "sparse": lambda a: (a.to_sparse(),),
    "subclass": lambda a: (a.as_subclass(Tagged),),
    "empty": lambda a: (a[:0],),
    "rank 0": lambda a: (a, 0),
    "no matrix": lambda a: (a[:, 0],),
    "integers": lambda a: (a.int(),),
    "another dtype of M": lambda a: (a, 3, 2, torch.ones(30, dtype=torch.float64)),
    "negative rank": lambda a: (a, -1),
    "float rank": lambda a: (a, 3.0),
    "nan": lambda a: (a.fill_(float("nan")),),
}


@pytest.mark.parametrize("what", TORCHS_OWN)
def test_svd_lowrank_leaves_to_torch(what):
    """The same numbers from the same random state, or the same error."""

    def outcome(function):
        torch.manual_seed(3)
        try:
            return function(*TORCHS_OWN[what](testing.llm_like(50, 30)))
        except Exception as error:
            return error

    theirs, ours = outcome(torch.svd_lowrank), outcome(svd_lowrank)
    if isinstance(theirs, Exception):
        assert type(ours) is type(theirs) and str(ours) == str(theirs)
        return
    for x, y in zip(ours, theirs, strict=True):
        assert torch.equal(x, y) and type(x) is type(y) and x.requires_grad == y.requires_grad
    assert what not in ("gradients", "gradients of M") or ours[1].requires_grad


def test_svd_lowrank_takes_over_where_gradients_are_off():
    a = testing.llm_like(50, 30).requires_grad_()
    with torch.no_grad():
        assert torch.equal(svd_lowrank(a)[0], svd_lowrank(a.detach())[0])


# ---- scikit-learn ----


@pytest.fixture
def extmath():
    return pytest.importorskip("sklearn.utils.extmath", reason="scikit-learn is a peer of the bench extra")


def test_randomized_svd_has_sklearns_parameters(extmath):
    ours, theirs = (inspect.signature(f).parameters.values() for f in (randomized_svd, extmath.randomized_svd))
    assert [(p.name, p.default, p.kind) for p in ours] == [(p.name, p.default, p.kind) for p in theirs]


LITERAL = [
    {"n_iter": 0},
    {"n_iter": 3, "flip_sign": True},
    {"n_oversamples": 4},
    {"power_iteration_normalizer": "QR"},
    {"power_iteration_normalizer": "LU", "transpose": True},
    {"power_iteration_normalizer": "none", "n_iter": 2, "transpose": False},
    {"n_iter": 1, "n_oversamples": 100},
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("given", LITERAL, ids=str)
def test_randomized_svd_is_literal_where_told_how(extmath, given, dtype):
    a = testing.with_spectrum(60, 80, 0.8 ** torch.arange(60)).numpy().astype(dtype)
    ours = randomized_svd(a, 6, random_state=7, **given)
    theirs = extmath.randomized_svd(a, 6, random_state=7, **given)
    for x, y in zip(ours, theirs, strict=True):
        assert x.dtype == y.dtype == dtype
        np.testing.assert_allclose(x, y, atol=200 * np.finfo(dtype).eps)


@pytest.mark.parametrize("n_iter, normalizer", [(2, "none"), (3, "LU")])
def test_randomized_svd_normalizes_as_sklearn_does_on_its_own(extmath, n_iter, normalizer):
    a = testing.gaussian(60, 80, 0).float().numpy()
    ours = randomized_svd(a, 6, n_iter=n_iter, random_state=7)
    named = randomized_svd(a, 6, n_iter=n_iter, random_state=7, power_iteration_normalizer=normalizer)
    assert all(np.array_equal(x, y) for x, y in zip(ours, named, strict=True))


@pytest.mark.parametrize("family", ["spiked", "gaussian", "power_law", "condition_1e3", "clustered"])
def test_randomized_svd_is_near_the_optimum_and_nearer_than_sklearns(extmath, family):
    a = testing.FAMILIES[family](90, 130, 12)
    u, s, vh = randomized_svd(a.numpy(), 12, random_state=0)
    theirs = extmath.randomized_svd(a.numpy(), 12, random_state=0)
    optimum = testing.optimal_residual(a, 12)
    left, own = (testing.residual(a, torch.from_numpy((p * q) @ r)) for p, q, r in ((u, s, vh), theirs))
    assert left <= (1 + 1e-5) * optimum and left <= own + 1e-5 * optimum
    np.testing.assert_allclose(u.T @ u, np.eye(12), atol=1e-12)
    assert (np.take_along_axis(u, np.abs(u).argmax(0)[None], 0) > 0).all() and (np.diff(s) <= 0).all()


def test_randomized_svd_takes_what_sklearn_takes(extmath):
    sparse = pytest.importorskip("scipy.sparse", reason="scipy comes with scikit-learn")
    a = np.rint(testing.gaussian(20, 12, 0).numpy() * 3)
    exact = np.linalg.svd(a)[1][:3]
    for given in (a, a.tolist(), a.astype(np.int32), a.astype(np.float16), np.asfortranarray(a)[::-1]):
        u, s, vh = randomized_svd(given, 3, random_state=0)
        assert {x.dtype for x in (u, s, vh)} == {np.dtype(np.float64)}
        np.testing.assert_allclose(s, exact, rtol=1e-5)
    assert randomized_svd(a.astype(np.float32), 3)[0].dtype == np.float32
    assert [x.shape for x in randomized_svd(a, 30)] == [(20, 12), (12,), (12, 12)]
    ours, theirs = (f(sparse.csr_array(a), 3, random_state=1) for f in (randomized_svd, extmath.randomized_svd))
    assert all(np.array_equal(x, y) for x, y in zip(ours, theirs, strict=True))
    for wrong in (np.full((3, 3), np.nan), np.zeros(3), a + 1j):
        with pytest.raises(ValueError) as error:
            extmath.randomized_svd(wrong, 1)
        with pytest.raises(ValueError, match=str(error.value)[:20]):
            randomized_svd(wrong, 1)


def test_randomized_svd_draws_from_the_random_state(extmath):
    a, state = testing.gaussian(300, 250, 0).numpy(), np.random.RandomState(0)
    first, second = randomized_svd(a, 5, random_state=state), randomized_svd(a, 5, random_state=state)
    assert np.abs(first[0] - second[0]).max() > 0  # tol is not 0: another sketch, other roundings
    np.testing.assert_array_equal(randomized_svd(a, 5, random_state=0)[0], first[0])


@pytest.mark.parametrize("option", [{"power_iteration_normalizer": "qr"}, {"svd_lapack_driver": "gesvdj"}], ids=str)
def test_randomized_svd_refuses_unknown_options(extmath, option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} must be"):
        randomized_svd(np.eye(4), 2, **option)
