"""The route SPECTRAL by itself, on matrices whose exact spectra are known: excess, bound, products, and where it gave up.

    python bench/spectral.py [--layers 0,2,15,27] [--sides 256 512 1024 1536] [--tols 1e-3 1e-5] [--out FILE]

One line for each matrix, rank, tol and arithmetic. "bf16" simulates what a GPU multiplies, operands rounded to bfloat16 or
to two slices of it and sums in float32; "fp32" rounds nothing. Where the route cannot certify, dispatch.escalate says
what comes next, as in every public call, and the line names it.

  excess     ||A - A_r|| / tail - 1 of what came out in the end, norms in float64; tail from float64 LAPACK
  products   n^3 multiply-adds of the route, over n^3
  rounded    where the excess is above tol: that of the exact A_r, rounded to the weight's dtype
  found - r  columns that the projector held beyond those it was asked for, r - d: the error of the search for mu

Exit code 1 if an excess exceeds its bound or tol (beyond the contract's floor, 32 eps ||A||), if a search that the route
went on with was off by more than d = max(8, 2 % of n), or if a matrix came out uncertified.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections import Counter
from pathlib import Path

import smollm2
import torch
from accuracy import layer_list

from laser_kernels import dispatch, ops, testing
from laser_kernels.bench.rows import append, row
from laser_kernels.status import Status

RANKS = [0.10, 0.25, 0.50, 0.80, 0.90]
MAX_ITER = 64


def family(name: str, n: int) -> torch.Tensor:
    """Synthetic (n, n) float32 matrices; power_law and clustered have their spectra by construction."""
    index = torch.arange(1, n + 1).double()
    spectra = {
        "power-law": index**-0.7,
        "clustered": torch.tensor([4.0, 2.0, 1.0, 0.5]).repeat_interleave(-(-n // 4))[:n].double(),
        "kappa-1e6": torch.logspace(0, -6, n, dtype=torch.float64),
    }
    if name in spectra:
        return testing.with_spectrum(n, n, spectra[name], seed=n).float()
    return testing.llm_like(n, n, seed=n) if name == "llm-like" else testing.gaussian(n, n, seed=n).float()


FAMILIES = ("gaussian", "llm-like", "power-law", "clustered", "kappa-1e6")


def attempt(a: torch.Tensor, rank: int, path: dispatch.Route, tol: float) -> tuple[torch.Tensor, dict]:
    """The op itself, on one matrix."""
    out = torch.empty_like(a)[None]
    arguments = (path.name, path.block, path.gram, path.wide, path.half, tol, MAX_ITER, 0, [0])
    row = ops.backend(a.device).low_rank(a[None], out, rank, *arguments)[0].tolist()
    return out[0], dict(zip(ops.CERTIFICATE, row, strict=True))


def rounded_excess(a: torch.Tensor, rank: int, tail: float) -> float:
    """Of the best approximation, once it is in a's dtype."""
    u, sigma, vh = torch.linalg.svd(a.double(), full_matrices=False)
    best = (u[:, :rank] * sigma[:rank]) @ vh[:rank]
    return smollm2.distance(a, best.to(a.dtype)) / tail - 1


def measure(a: torch.Tensor, sigma: torch.Tensor, rank: int, tol: float, half: bool) -> dict:
    """One line: the route's own attempt, and what came out in the end."""
    problem = dispatch.Problem(*a.shape, rank, "float32", tol)
    path = dispatch.choose(problem, "spectral")._replace(half=half)
    result, first = attempt(a, rank, path, tol)
    row, routes = first, [path.name]
    while Status(int(row["status"])) != Status.OK:
        onward = dispatch.escalate(problem, path, Status(int(row["status"])))
        if onward is None:
            break
        path = onward
        routes.append(path.name + ("64" if path.wide else ""))
        result, row = attempt(a, rank, path, tol)
    best, norm = smollm2.tail(sigma, rank), sigma.norm().item()
    residual = smollm2.distance(a, result)
    excess = residual / best - 1 if best > 0 else math.inf
    n = min(a.shape)
    window = max(8, round(0.02 * n))
    return {
        "n": n,
        "rank": rank,
        "tol": tol,
        "arithmetic": "bf16" if half else "fp32",
        "routes": routes,
        "status": Status(int(row["status"])).name,
        "first": Status(int(first["status"])).name,
        "excess": excess,
        "rounded": rounded_excess(a, rank, best) if tol < excess < math.inf else None,
        "over_floor": (residual - (1 + row["bound"]) * best) / norm,  # of ||A||
        "bound": row["bound"],
        "products": first["iterations"],
        "search_error": int(first["projected"]) - (rank - window) if first["projected"] else None,
        "window": window,
    }


def failures(line: dict) -> list[str]:
    floor = testing.FLOOR * testing.eps(torch.float32)
    said = []
    if line["status"] != "OK":
        said.append("uncertified")
    if line["bound"] > line["tol"] or line["over_floor"] > floor:
        said.append("excess over its bound")
    if line["search_error"] is not None and abs(line["search_error"]) > line["window"]:
        said.append("search off")
    return said


def summary(lines: list[dict]) -> dict:
    """Of one family, tolerance and arithmetic. Products and search errors: of what the route finished by itself."""
    own = [x for x in lines if len(x["routes"]) == 1]
    products = sorted(x["products"] for x in own)
    return {
        "cases": len(lines),
        "by spectral alone": len(own),
        "median products": products[len(products) // 2] if own else None,
        "most products": max(products, default=None),
        "worst excess": max(x["excess"] for x in lines),
        "worst search error / window": max((abs(x["search_error"]) / x["window"] for x in own), default=None),
        "gave up": dict(Counter(x["first"].lower() for x in lines if len(x["routes"]) > 1)),
        "failures": sum(bool(failures(x)) for x in lines),
    }


def cases(layers: list[int], sides: list[int]):
    """(family, name, matrix, exact singular values)."""
    matrices = smollm2.load(smollm2.names(layers))
    spectra = smollm2.spectra(matrices)
    for name, matrix in matrices.items():
        yield "SmolLM2", name.removeprefix("model.layers.").removesuffix(".weight"), matrix.float(), spectra[name]
    for side in sides:
        for name in FAMILIES:
            matrix = family(name, side)
            yield name, f"{name} {side}", matrix, torch.linalg.svdvals(matrix.double())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=layer_list, default=[0, 2, 15, 27])
    parser.add_argument("--sides", type=int, nargs="*", default=[256, 512, 1024, 1536])
    parser.add_argument("--ranks", type=float, nargs="*", default=RANKS)
    parser.add_argument("--tols", type=float, nargs="*", default=[1e-3, 1e-5])
    parser.add_argument("--out", type=Path, help="append a row for each family to this JSON lines file")
    args = parser.parse_args()
    lines, bad = [], 0
    print(
        f"{'matrix':24} {'n':>5} {'rank':>5} {'tol':>6} {'':5} {'products':>8} {'found-r':>7} {'bound':>8} {'excess':>9}"
    )
    for kind, name, matrix, sigma in cases(args.layers, args.sides):
        for share in args.ranks:
            for tol in args.tols:
                for half in (True, False):
                    line = {"family": kind, **measure(matrix, sigma, round(share * min(matrix.shape)), tol, half)}
                    said = failures(line)
                    bad += bool(said)
                    lines.append(line)
                    error = "-" if line["search_error"] is None else line["search_error"]
                    onward = " > ".join(line["routes"][1:])
                    rounded = "" if line["rounded"] is None else f"rounded {line['rounded']:.1e}"
                    print(
                        f"{name:24} {line['n']:5} {line['rank']:5} {tol:6.0e} {line['arithmetic']:5} "
                        f"{line['products']:8.0f} {error:>7} {line['bound']:8.1e} {line['excess']:9.1e} "
                        f"{line['first'].lower() + ' > ' + onward if onward else ''} {', '.join(said)} {rounded}",
                        flush=True,
                    )
    rows = []
    for tol, arithmetic, kind in itertools.product(args.tols, ("bf16", "fp32"), ("SmolLM2", *FAMILIES)):
        some = [x for x in lines if (x["tol"], x["arithmetic"], x["family"]) == (tol, arithmetic, kind)]
        if some:
            details = summary(some)
            print(f"tol {tol:g} {arithmetic} {kind}: {details}")
            rows.append(
                row(
                    op="low_rank spectral",
                    route="spectral",
                    shape=kind,
                    dtype="float32",
                    excess=details["worst excess"],
                    iterations=details["median products"],
                    status="FAILED" if details["failures"] else "ok",
                )
                | {"tol": tol, "arithmetic": arithmetic, "details": details}
            )
    print(f"{bad} of {len(lines)} lines fail")
    append(args.out, rows)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
