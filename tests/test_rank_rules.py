"""Rank rules as formulas of a spectrum: our own by what they promise, other tools' against their own few lines."""

from __future__ import annotations

import math
import pickle

import pytest
import torch

import laser_kernels as lk
from laser_kernels import ranks
from laser_kernels.ranks import (
    Asvd,
    Energy,
    Fixed,
    Fraction,
    Frobenius,
    Knee,
    Kohya,
    Laser,
    LyCORIS,
    MarchenkoPastur,
    Mergekit,
    Nuclear,
    ParamBudget,
    Peft,
    Ratio,
    Threshold,
)

SHAPE = (90, 60)


def spectra():
    """Random ones and the edges: few values, all equal, tiny, one, steep, with zeros."""
    g = torch.Generator(device="cpu").manual_seed(3)
    for _ in range(20):
        yield torch.rand(60, generator=g, dtype=torch.float64, device="cpu").sort(descending=True).values
    yield torch.cat([torch.linspace(3, 1, 7), torch.zeros(53)]).double()  # deficient
    yield torch.ones(60, dtype=torch.float64)
    yield torch.full((60,), 1e-7, dtype=torch.float64)  # sigma_1 below kohya's zero
    yield torch.zeros(60, dtype=torch.float64)
    yield torch.arange(1, 61, dtype=torch.float64) ** -1.5
    yield torch.logspace(0, -6, 60, dtype=torch.float64)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999, 1.0])
def test_own_rules_are_the_least_rank_that_keeps_enough(share):
    for s in spectra():
        total = s.square().sum()
        k = Energy(share).count(s)
        assert 1 <= k <= 60 and s[:k].square().sum() >= share * total * (1 - 1e-14)
        assert k == 1 or s[: k - 1].square().sum() < share * total * (1 + 1e-14)
        k = Nuclear(share).count(s)
        assert s[:k].sum() >= share * s.sum() * (1 - 1e-14) and (
            k == 1 or s[: k - 1].sum() < share * s.sum() * (1 + 1e-14)
        )
        residual = math.sqrt(1 - share)
        k = Frobenius(residual).count(s)
        assert s[k:].square().sum().sqrt() <= residual * total.sqrt() * (1 + 1e-14)
        assert k == 1 or s[k - 1 :].square().sum().sqrt() > residual * total.sqrt() * (1 - 1e-14)
        assert Threshold(share).count(s) == sum(x > share for x in s.tolist())
        if share < 1:
            assert Ratio(share).count(s) == sum(x > share * s[0].item() for x in s.tolist())


def test_a_small_residual_is_not_rounded_away():
    s = torch.tensor([1.0, 1e-9, 1e-12], dtype=torch.float64)
    assert [Frobenius(e).count(s) for e in (1e-8, 1e-10, 1e-13, 0.0)] == [1, 2, 3, 3]


def test_the_knee_is_where_the_curve_bends():
    steep, flat = torch.linspace(10, 1, 8), torch.linspace(1, 0.9, 93)[1:]
    s = torch.cat([steep, flat])
    assert Knee().count(s) == 7  # s[7] = 1 is the corner
    assert Knee().count(torch.ones(9)) == 9 and Knee().count(torch.linspace(2, 1, 9)) == 9  # none
    assert Knee().count(torch.tensor([3.0])) == 1


def test_shapes_alone():
    assert Fixed(7).count(torch.ones(60)) == 7 and Fixed(100).of_shape(30, 20) == 100
    assert Fraction(0.7).of_shape(10, 40) == 7  # binary floating point says 6
    assert Fraction(0.25).count(torch.ones(60)) == 15
    for m, n, keep in ((11008, 4096, 0.2), (300, 300, 1.0), (5, 7, 0.9)):
        k = ParamBudget(keep).of_shape(m, n)
        assert k * (m + n) <= keep * m * n < (k + 1) * (m + n)
    assert ParamBudget(0.2, align=64).of_shape(11008, 4096) == 576 == ParamBudget(0.2).of_shape(11008, 4096) // 64 * 64
    assert ParamBudget(0.1, align=64).of_shape(300, 300) == 15  # aligning would leave nothing
    # ecosystem.md: ranks to hit, and those that LASER's arithmetic misses by one
    assert [Laser(rate).of_shape(4096, 16384) for rate in (9.9, 9.5, 9.0, 8.0, 6.0, 2.0)] == [
        40,
        204,
        409,
        819,
        1638,
        3276,
    ]
    assert [Laser(9.9).of_shape(side, side) for side in (500, 768, 1000, 1600, 2000, 4000)] == [4, 7, 9, 15, 19, 39]
    assert Laser(10).of_shape(9, 9) == 0 and Laser(0).of_shape(9, 12) == 9


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.77, 1.0])
@pytest.mark.parametrize("align", [1, 8, 128])
def test_asvd(ratio, align):
    for m, n in ((4096, 4096), (11008, 4096), (17, 30)):
        rank = int(m * n * ratio) // (m + n)
        assert Asvd(ratio, align).of_shape(m, n) == int(math.ceil(rank / align) * align)


def kohya(s, method, param, limit, plus_one):
    """resize_lora.py's index functions and rank_resize, transcribed."""
    last = len(s) - 1
    if method == "sv_ratio":
        index = int(torch.sum(s > s[0] / param)) - (0 if plus_one else 1)
    else:
        squares = s**2 if method == "sv_fro" else s
        running = torch.cumsum(squares, 0) / float(torch.sum(squares))
        index = int(torch.searchsorted(running, param**2 if method == "sv_fro" else param)) + (1 if plus_one else 0)
    index = max(1 if plus_one else 0, min(index, last))
    new = index + 1
    if s[0] <= 1e-6:
        return 1
    return limit if limit is not None and new > limit else new


@pytest.mark.parametrize("plus_one", [False, True], ids=["corrected", "plus one"])
@pytest.mark.parametrize("limit", [None, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kohya(dtype, limit, plus_one):
    for s in spectra():
        s = s.to(dtype)
        for method, params in (
            ("sv_ratio", (1.0, 2.0, 1e4)),
            ("sv_fro", (0.3, 0.9, 1.0)),
            ("sv_cumulative", (0.3, 0.9, 1.0)),
        ):
            for param in params:
                rule = Kohya(method, param, limit, plus_one)
                assert rule.count(s) == kohya(s, method, param, limit, plus_one), (rule, s)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_peft_and_mergekit(dtype):
    for s in spectra():
        s = s.to(dtype)
        for tau in (0.2, 0.5, 0.95, 1.0):
            cs = torch.cumsum(s**2, dim=0)
            assert Peft(tau).count(s) == torch.searchsorted(cs, tau * cs[-1]).item() + 1
        for most, eps in ((8, 0.0), (8, 0.5), (64, 1e-3), (100, 0.0)):
            kept = s[s > eps] if eps > 0 else s
            assert Mergekit(most, eps).count(s) == min(most, len(kept))


def lycoris(s, mode, param, shape):
    """extract_linear's rank, transcribed; None where it keeps the dense matrix."""
    rank = {
        "fixed": lambda: param,
        "threshold": lambda: int(torch.sum(s > param)),
        "ratio": lambda: int(torch.sum(s > torch.max(s) * param)),
        "quantile": lambda: int(torch.sum(torch.cumsum(s, dim=0) < param * torch.sum(s))),
    }[mode]()
    rank = min(shape[0], shape[1], max(1, rank))
    return None if rank >= shape[0] / 2 else rank


@pytest.mark.parametrize("shape", [(90, 60), (60, 90), (60, 60)], ids=str)
def test_lycoris(shape):
    dense = 0
    for s in spectra():
        for mode, params in {
            "fixed": (1, 29, 30, 45, 400),
            "threshold": (0.0, 0.5),
            "ratio": (0.5, 0.01),
            "quantile": (0.3, 0.9),
        }.items():
            for param in params:
                expected = lycoris(s, mode, param, shape)
                dense += expected is None
                assert LyCORIS(mode, param).count(s, shape) == (min(shape) if expected is None else expected)
    assert dense > 10


def test_laserrmt():
    for s in spectra():
        for n, m in ((90, 60), (60, 240), (60, 60)):
            sigma = (torch.quantile(s, 0.75) - torch.quantile(s, 0.25)) / 1.349
            beta = n / m if n < m else m / n
            threshold = sigma * math.sqrt((1 + math.sqrt(beta)) ** 2)
            assert MarchenkoPastur(kind="laserrmt").count(s, (n, m)) == (s > threshold).sum()


ALL = [
    (Fixed(64), "fixed:rank=64", [64, "64", "fixed:64", {"fixed": 64}]),
    (Fraction(0.1), "fraction:share=0.1", [0.1, "0.1", "1e-1", {"fraction": "1e-1"}]),
    (Energy(0.9), "energy:share=0.9", ["energy:0.9", " Energy : 0.9 ", {"energy": 0.9}, {"energy": {"share": 0.9}}]),
    (Frobenius(1e-3), "frobenius:residual=0.001", ["frobenius:1e-3", {"frobenius": "1e-3"}]),
    (Nuclear(0.5), "nuclear:share=0.5", ["nuclear:0.5"]),
    (Ratio(0.05), "ratio:share=0.05", ["ratio:share=0.05"]),
    (Threshold(2.0), "threshold:sigma=2.0", ["threshold:2.0"]),
    (Knee(), "knee", ["knee", {"knee": None}, {"knee": {}}]),
    (MarchenkoPastur(), "marchenko_pastur:kind=edge", ["marchenko-pastur", {"marchenko_pastur": [None, "edge"]}]),
    (MarchenkoPastur(kind="laserrmt"), "marchenko_pastur:kind=laserrmt", ["marchenko_pastur:none,laserrmt"]),
    (ParamBudget(0.5, 8), "param_budget:keep=0.5,align=8", ["param_budget:0.5,align=8", {"param_budget": [0.5, 8]}]),
    (Laser(9.9), "laser:rate=9.9", ["laser:9.9"]),
    (Asvd(0.5, 64), "asvd:ratio=0.5,rank_align=64", ["asvd:0.5,64"]),
    (Peft(0.95), "peft:tau=0.95", ["peft:0.95"]),
    (Mergekit(64, 1e-3), "mergekit:max_rank=64,eps=0.001", [{"mergekit": {"max_rank": 64, "eps": "1e-3"}}]),
    (Kohya("sv_fro", 0.9, plus_one=True), "kohya:method=sv_fro,param=0.9,plus_one=True", ["kohya:sv_fro,0.9,plus_one=true"]),
    (LyCORIS("ratio", 0.5), "lycoris:mode=ratio,param=0.5", ["lycoris:ratio,0.5"]),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "text", "others"), ALL, ids=[text for _, text, _ in ALL])
def test_rules_are_values_that_text_can_name(rule, text, others):
    assert rule.spec == text
    for one in [text, rule, *others]:
        assert ranks.from_spec(one) == rule
    assert eval(repr(rule), vars(ranks)) == rule and hash(rule) == hash(ranks.from_spec(text))
    assert pickle.loads(pickle.dumps(rule)) == rule
    with pytest.raises(AttributeError):
        rule.name_of_nothing = 3


def test_every_rule_is_listed_above():
    assert {type(rule).name for rule, _, _ in ALL} == set(ranks.RULES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("energi:0.9", "unknown rank rule 'energi' (did you mean 'energy'?): known rules are fixed, fraction, energy"),
        ("energy", "the rank rule energy takes share; got nothing"),
        ("energy:0.9,4", "takes share; got 0.9, 4"),
        ("mergekit:max_rang=3", "takes max_rank, eps; got max_rang=3"),
        ("energy:1.5", "Energy takes a share in (0, 1] of ||A||_F^2; got 1.5"),
        ("energy:x", "got 'x'"),
        ("frobenius:1", "residual >= 0 and < 1"),
        ("threshold:-1", "Threshold takes a singular value >= 0; got -1"),
        ("fixed:0", "Fixed takes an int >= 1"),
        ("laser:11", "rate in 0..10"),
        ("kohya:sv_frob,0.9", "for method one of sv_ratio, sv_fro, sv_cumulative; got 'sv_frob'"),
        ("kohya:sv_ratio,0.5", "ratio >= 1"),
        ("kohya:sv_fro,0.5,plus_one=2", "True or False"),
        ("lycoris:quantile,2", "a share in 0..1 as param of quantile"),
        ("marchenko_pastur:std=1,kind=laserrmt", "std only for kind 'edge'"),
        ("param_budget:0.5,align=0", "a multiple >= 1"),
        ({"energy": 0.9, "fixed": 3}, "a rank rule is a number, text like energy:0.9, or a mapping"),
        (True, "got True"),
        (None, "got None"),
    ],
    ids=str,
)
def test_bad_rules_say_what_is_known(text, words):
    with pytest.raises(ValueError) as caught:
        ranks.from_spec(text)
    assert str(caught.value).startswith("[laser_kernels] ") and words in str(caught.value)


def test_shape_rules_stand_where_only_a_shape_is_known():
    a = torch.randn(40, 30)
    assert lk.choose((40, 30), Laser(9)) == lk.choose((40, 30), 3)
    with pytest.raises(TypeError, match="finds a rank from a matrix's singular values, and only a shape is known"):
        lk.choose((40, 30), Energy(0.5))
    with pytest.warns(UserWarning, match=r"Laser\(rate=10\) gives rank 0 for a \(40, 30\) matrix: 1 is taken"):
        assert lk.low_rank(a, Laser(10), return_info=True)[1].rank == 1
    whole = lk.factorize(a)
    s = torch.linalg.svdvals(a.double())
    assert len(whole.at(Energy(0.5)).S) == Energy(0.5).count(s) == Energy(0.5).of(a)
    with pytest.raises(TypeError, match="only a shape"):
        lk.factorize(a, 5).at(Energy(0.5))
    assert lk.factorize(a, Ratio(0.5)).rank == Ratio(0.5).count(s)
