"""`laser-kernels bench`: arguments in, rows out. 0 fine, 1 a wrong answer of ours or a regression."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from laser_kernels import arguments
from laser_kernels.packages import require

if TYPE_CHECKING:
    from laser_kernels.bench.peers import Peer
    from laser_kernels.bench.rows import Row
    from laser_kernels.bench.suites import Suite


HELP = "time truncated SVDs against other libraries, the error beside every time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--suite", help="a named list of problems (smoke)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--peers", help="comma list, all (default) or none")
    parser.add_argument("--routes", help="of ours: comma list of auto, randomized, spectral, gram_eigh, full_svd")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append rows to this JSON lines file")
    parser.add_argument("--html", type=Path, metavar="FILE", help="a page with the pictures, and PNGs beside it")
    parser.add_argument("--repeats", type=int, help="interleaved rounds")
    parser.add_argument("--limit", type=float, help="seconds that one call may take")
    parser.add_argument("--budget", type=float, help="seconds after which no further problem is begun")
    own = parser.add_argument_group("a problem of your own")
    own.add_argument("--shape", help="4096x11008")
    own.add_argument("--checkpoint", metavar="DIR", help="the shapes and real weights of a Hugging Face folder")
    own.add_argument("--targets", default="all", help="of the checkpoint, as for reduce (all)")
    own.add_argument(
        "--rank", type=arguments.parse_rank, default=0.1, help="a count (64) or a fraction of the short side (0.1)"
    )
    own.add_argument("--dtype", default="fp32", help="fp32, fp64, bf16 or fp16")
    own.add_argument("--batch", type=int, default=1)
    own.add_argument("--tol", type=float, default=1e-3, help="accepted excess (1e-3)")
    own.add_argument("--op", default="low_rank", help="low_rank (default) or truncated_svd")
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("OLD", "NEW"), help="show regressions; measures nothing"
    )


def _suite(args: argparse.Namespace) -> Suite:
    from laser_kernels.bench import suites

    asked = [name for name in ("suite", "shape", "checkpoint") if getattr(args, name)]
    if len(asked) > 1:
        raise ValueError(
            f"give one of --suite, --shape and --checkpoint; got {', '.join('--' + name for name in asked)}"
        )
    if args.shape:
        one = suites.problem(args.shape, rank=args.rank, dtype=args.dtype, batch=args.batch, tol=args.tol, op=args.op)
        suite = suites.Suite("", "", (one,))
    elif args.checkpoint:
        found = suites.from_checkpoint(args.checkpoint, args.targets, [args.rank], tol=args.tol, op=args.op)
        suite = suites.Suite("", "", tuple(found))
    else:
        suite = suites.load(args.suite or "smoke")
    changed = {name: getattr(args, name) for name in ("repeats", "limit") if getattr(args, name) is not None}
    if any(value <= 0 for value in changed.values()):
        raise ValueError(f"repeats and limit must be positive; got {changed}")
    return replace(suite, options=replace(suite.options, **changed))


def methods(asked: str | None, suite: Suite, routes: str | None, device: str) -> tuple[list[Peer], list[str]]:
    """(ours and the usable peers, lines about those that are missing)."""
    from laser_kernels.bench.peers import ours, peers
    from laser_kernels.dispatch import ROUTES

    chosen = [part.strip() for part in routes.split(",")] if routes else list(suite.routes)
    if unknown := [name for name in chosen if name not in ("auto", *ROUTES)]:
        raise ValueError(f"no route {', '.join(unknown)}; known: auto, {', '.join(ROUTES)}")
    known = peers()
    names = list(known) if suite.peers is None else list(suite.peers)
    if asked is not None and asked != "all":
        names = [] if asked == "none" else [part.strip() for part in asked.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no peer {', '.join(map(repr, unknown))}; known: {', '.join(known)}")
    reasons = {name: known[name].missing(device) for name in names}
    missing = [f"{name}: {why}" for name, why in reasons.items() if why]
    return [ours(route) for route in chosen] + [known[name] for name, why in reasons.items() if not why], missing


def _device(name: str) -> str:
    import torch

    there = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if name not in there:
        raise ValueError(f"no device {name!r} here; known: {', '.join(there)}")
    return name


def _writable(file: Path | None) -> None:
    """Found out before the run, not after."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a"):
            pass


def _summary(rows: list[Row]) -> list[str]:
    """Lines about all rows together: totals of a model, exponents of growth."""
    from laser_kernels.bench.growth import curves
    from laser_kernels.bench.totals import totals

    lines = [f"  {t.matrices} matrices, rank {t.rank}: {t.seconds:10.1f} s  {t.method}" for t in totals(rows)]
    lines = ["the whole model at these rates:", *lines] if lines else []
    grown = [f"  {c.along}^{c.exponent:.2f}  {c.method}  ({c.fixed})" for c in curves(rows)]
    return lines + (["growth of time:", *grown] if grown else [])


def run(args: argparse.Namespace) -> int:
    """
    Raises:
        ValueError, OSError: what was asked for is not there, or an output cannot be written.
    """
    from laser_kernels.bench.compare import compare
    from laser_kernels.bench.rows import append, read

    if args.compare:
        report, worse = compare(*map(read, args.compare))
        print("\n".join([*report, *(f"REGRESSION {line}" for line in worse)]))
        return 1 if worse else 0
    device = _device(args.device)
    suite = _suite(args)
    chosen, missing = methods(args.peers, suite, args.routes, device)
    _writable(args.out)
    if args.html:
        require("matplotlib", "--html", "bench")
        _writable(args.html)

    import torch

    from laser_kernels.bench import precision
    from laser_kernels.bench.protocol import Bench
    from laser_kernels.bench.rates import Rates
    from laser_kernels.bench.team import Team

    def say(line: str) -> None:
        print(line, flush=True)

    rates = Rates(torch.device(device))
    print(f"{device}, {torch.get_num_threads()} threads; copy {rates.copy / 1e9:.1f} GB/s, float32 product "
          f"{rates.product('float32') / 1e9:.0f} GFLOP/s")  # fmt: skip
    for line in missing:
        print(f"missing: {line}")
    made: list[Row] = []
    stop = math.inf if args.budget is None else time.monotonic() + args.budget
    with Team(device) as team:
        bench = Bench(team, chosen, rates, suite, say)
        for problem in suite.problems:
            if time.monotonic() > stop:
                say(f"left out, {args.budget:g} s are over: {problem}")
                continue
            if suite.measures == "products":
                rows = precision.run(problem, suite.name, device, say)
            else:
                rows = bench.run(problem)
            append(args.out, rows)
            made += rows
    print("\n".join(_summary(made)))
    if args.html:
        from laser_kernels.bench import page

        title = f"laser_kernels: {suite.name or 'own problem'} on {device}"
        print("\n".join(map(str, page.write(args.html, made, title))))
    return 1 if any(row["peer"] is None and row["status"] != "ok" for row in made) else 0
