"""What `make demo` runs once the model is there: reduce a real checkpoint and look at the result.

    python bench/demo.py [--model .cache/smollm2-135m]

1. prints the plan, 2. reduces all 210 attention and MLP matrices of SmolLM2-135M to a tenth of
their rank, 3. verifies the written checkpoint, 4. compares a sample of 14 matrices (every kind, of
layers 2 and 27) with exact float64 singular values and with LASER's own call,
torch.svd_lowrank(W, q=r, niter=2), 5. draws the spectra and the excesses.

excess = ||W - W_r|| / (smallest possible) - 1. It is measured in float64 on the fp32 result of
`lk.low_rank(W.float(), r)`, and also on the bf16 tensor in the written checkpoint, whose single
rounding to bf16 adds its own error.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import smollm2
import torch

import laser_kernels as lk
from laser_kernels import cli
from laser_kernels.bench.peers import laser
from laser_kernels.bench.timing import timed
from laser_kernels.checkpoint.report import Row

RANK = 0.1
SAMPLE = smollm2.names([2, 27])
PICTURE = smollm2.CACHE / "demo.png"
PLAN = {"rules": [{"targets": ["all"], "layers": "all", "rank": RANK}]}
PLAN_LINES = 12
LASER = "LASER's svd_lowrank(q=r, niter=2)"


def shown(path: os.PathLike[str]) -> str:
    return os.path.relpath(path)


def print_plan(source: Path) -> None:
    """The first lines and the totals of what `laser-kernels plan` prints."""
    arguments = ["plan", str(source), "--targets", "all", "--rank", str(RANK)]
    print(f"$ laser-kernels plan {shown(source)} --targets all --rank {RANK}")
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        code = cli.main(arguments)
    lines = text.getvalue().rstrip().splitlines()
    if len(lines) > 2 * PLAN_LINES:
        skipped = f"... {len(lines) - PLAN_LINES - 4} more lines ..."
        lines = [*lines[:PLAN_LINES], skipped, *lines[-4:]]
    print("\n".join(lines))
    if code:
        raise SystemExit(f"plan: exit code {code}")


def compare(source: Path, destination: Path) -> dict[str, dict[str, Any]]:
    """Excesses and times of the sample: exact optimum, ours, LASER's."""
    torch.manual_seed(0)
    weights, stored = smollm2.load(SAMPLE, source), smollm2.load(SAMPLE, destination)
    exact = smollm2.spectra(weights)
    lk.low_rank(weights[SAMPLE[0]].float(), RANK)  # first call: libraries load
    laser(weights[SAMPLE[0]], 1)
    out = {}
    for name, weight in weights.items():
        single = weight.float()
        seconds, (low, info) = timed(lambda w=single: lk.low_rank(w, RANK, return_info=True))
        laser_seconds, peer = timed(lambda w=weight, r=info.rank: laser(w, r))
        best = smollm2.tail(exact[name], info.rank)
        out[name] = {
            "sigma": exact[name],
            "excess": smollm2.distance(weight, low) / best - 1,
            "bound": info.excess_bound,
            "stored": smollm2.distance(weight, stored[name]) / best - 1,
            "laser": smollm2.distance(weight, peer) / best - 1,
            "seconds": seconds,
            "laser seconds": laser_seconds,
        }
    return out


def print_table(rows: Sequence[Row], sample: dict[str, dict[str, Any]]) -> None:
    """One line per kind: the whole run on the left, the sample of two layers on the right."""
    kinds = defaultdict(list)
    for row in rows:
        kinds[smollm2.kind_of(row.name)].append(row)
    width = 49
    print(
        f"{'all 30 layers, as written (bf16)':<{width}} | layers 2 and 27, worst of the two; "
        "excess over the exact optimum"
    )
    print(
        f"{'kind':<9}{'count':>6}  {'shape':<10}{'rank':>5}  {'route':<12}{'s':>5} | "
        f"{'ours':>8} {'<= bound':>8} {'in bf16':>8} {'ms':>5} | {'LASER':>7} {'ms':>5}"
    )
    for kind in smollm2.KINDS:
        members = kinds[kind]
        routes = Counter(row.route for row in members)
        route = "+".join(name for name, _ in routes.most_common())
        shape = "x".join(map(str, members[0].shape))
        seconds = sum(row.seconds for row in members)
        two = [facts for name, facts in sample.items() if smollm2.kind_of(name) == kind]
        worst = {key: max(facts[key] for facts in two) for key in ("excess", "bound", "stored")}
        print(
            f"{kind:<9}{len(members):>6}  {shape:<10}{members[0].rank:>5}  {route:<12}"
            f"{seconds:>5.2f} | {worst['excess']:>8.1e} {worst['bound']:>8.1e} "
            f"{worst['stored']:>8.1e} {1e3 * sum(f['seconds'] for f in two) / 2:>5.1f} | "
            f"{max(f['laser'] for f in two):>7.1e} "
            f"{1e3 * sum(f['laser seconds'] for f in two) / 2:>5.1f}"
        )
    ours = statistics.median(facts["excess"] for facts in sample.values())
    peer = statistics.median(facts["laser"] for facts in sample.values())
    print(f"median excess: ours {ours:.1e}, LASER's {peer:.1e}")


def draw(sample: dict[str, dict[str, Any]]) -> None:
    """Left: the spectra. Right: the excess by kind, ours with its bound, and LASER's."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5.2), layout="constrained")
    colours = dict(zip(smollm2.KINDS, plt.get_cmap("tab10").colors, strict=False))
    for name, facts in sample.items():
        kind, sigma = smollm2.kind_of(name), facts["sigma"]
        early = ".2." in name
        left.plot(
            torch.arange(1, len(sigma) + 1) / len(sigma),
            sigma / sigma[0],
            color=colours[kind],
            linestyle="-" if early else "--",
            label=kind if early else None,
        )
    left.axvline(RANK, color="0.5", linewidth=1)
    left.text(RANK + 0.01, 1.15e-3, f"rank kept: {RANK:.0%}", color="0.35")
    left.set(yscale="log", ylim=(1e-3, 1.1), xlim=(0, 1), xlabel="i / min(m, n)")
    left.set(ylabel="sigma_i / sigma_1", title="Spectra (solid: layer 2, dashed: layer 27)")
    left.legend(loc="lower left", bbox_to_anchor=(0.14, 0.06), ncols=2)
    marks = {
        "laser": (LASER, "s", "tab:red"),
        "bound": ("ours: info.excess_bound", "_", "black"),
        "excess": ("ours: lk.low_rank, tol=1e-3", "o", "tab:blue"),
    }
    for key, (label, marker, colour) in marks.items():
        for index, kind in enumerate(smollm2.KINDS):
            two = [facts[key] for name, facts in sample.items() if smollm2.kind_of(name) == kind]
            places = [index - 0.12, index + 0.12]
            heights = [max(height, 1e-9) for height in two]  # exact to rounding: drawn at 1e-9
            right.scatter(
                places,
                heights,
                marker=marker,
                color=colour,
                s=140 if marker == "_" else 45,
                label=label if index == 0 else None,
            )
    right.axhline(1e-3, color="0.5", linewidth=1, linestyle=":")
    right.set_xticks(range(len(smollm2.KINDS)), smollm2.KINDS, rotation=20)
    right.set(yscale="log", ylabel="excess over the optimal residual")
    right.set(title=f"Error above the best rank-{RANK:.0%} approximation")
    low, high = right.get_ylim()
    right.set_ylim(low, high * 12)
    right.legend(loc="upper center", ncols=1, fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.25)
    figure.savefig(PICTURE, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=smollm2.SOURCE, help="made by demo_model.py")
    source = parser.parse_args().model.absolute()
    destination = source.with_name(f"{source.name}-laser")
    start = time.perf_counter()
    print(f"{torch.get_num_threads()} threads\n")
    print_plan(source)
    shutil.rmtree(destination, ignore_errors=True)
    print(f"\n$ laser-kernels reduce {shown(source)} {shown(destination)} ...")
    seconds, report = timed(lambda: lk.reduce_checkpoint(source, destination, PLAN))
    statuses = dict(Counter(row.status for row in report.rows))
    print(f"{len(report.rows)} matrices reduced in {seconds:.1f} s, reading and writing included")
    print(f"status: {statuses}")
    seconds, verdict = timed(lambda: lk.verify(source, destination))
    state = "as reported" if verdict.ok else "; ".join(verdict.differences[:5])
    print(f"verified in {seconds:.1f} s: {state}; {verdict.untouched} untouched tensors\n")
    sample = compare(source, destination)
    print_table(report.rows, sample)
    draw(sample)
    print(f"\npicture: {shown(PICTURE)}; all of it took {time.perf_counter() - start:.0f} s")
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
