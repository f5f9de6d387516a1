"""Pictures of rows, with matplotlib: trade-off, throughput by shape, growth, share of the bound."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from laser_kernels.bench.growth import curves
from laser_kernels.bench.peers import OURS, peers
from laser_kernels.bench.problem import OPS, Problem
from laser_kernels.bench.rows import Row, method

WIDTH, HEIGHT = 5.0, 3.8  # inches: a phone shows 360 points of width, and the text stays readable
BAR = 0.62  # inches per problem
LEAST = 1e-9  # an excess below it is drawn there: rounding decides
MOST = 12  # trade-off pictures
LASER = "LASER's svd_lowrank"
# Okabe and Ito's palette, told apart by colour-blind readers too; ours is black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#777777")
MARKS = "osD^vPX*"


@dataclass(frozen=True)
class Picture:
    """A figure, what it is called in file names, and what it shows."""

    name: str
    title: str
    caption: str
    figure: Figure


def _style(name: str) -> dict[str, Any]:
    """The same colour and mark for a method in every picture."""
    if name == OURS:
        return {"color": "black", "marker": "o", "linewidth": 2.2, "markersize": 7, "zorder": 5}
    order = [*peers(), *(f"{OURS} [{route}]" for route in ("randomized", "spectral", "gram_eigh", "full_svd"))]
    place = order.index(name) if name in order else len(order)
    colour, mark = COLOURS[place % len(COLOURS)], MARKS[(place + place // len(COLOURS)) % len(MARKS)]
    return {"color": colour, "marker": mark, "linewidth": 1.2, "markersize": 5}


def _axes(height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)


def _good(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["seconds"] and row["op"] in OPS and row.get("details")]


def _problem(row: Row) -> str:
    batch = f"{row['batch']} x " if row["batch"] > 1 else ""
    m, n = row["shape"]
    extra = "" if row["op"] == "low_rank" else f", {row['op']}"
    return f"{batch}{m}x{n}, rank {row['rank']}, {row['dtype']}, {row['details']['source']}{extra}"


def trade_off(rows: Iterable[Row]) -> list[Picture]:
    """Time per matrix against measured excess; problems with several accepted excesses give curves."""
    problems: dict[str, list[Row]] = {}
    for row in _good(rows):
        if row["excess"] is not None:
            # a loop over part of a batch is the same problem
            m, n = row["shape"]
            name = f"{m}x{n}, rank {row['rank']}, {row['dtype']}, {row['details']['source']}, {row['op']}"
            problems.setdefault(name, []).append(row)
    ordered = sorted(problems.items(), key=lambda item: -len({row["tol"] for row in item[1]}))
    made: list[Picture] = []
    for number, (name, found) in enumerate(ordered[:MOST]):
        figure, axes = _axes()
        lines: dict[str, dict[float, float]] = {}
        for row in found:
            lines.setdefault(method(row), {})[max(row["excess"], LEAST)] = row["seconds"] / row["batch"]
        for label, points in lines.items():
            xs, ys = zip(*sorted(points.items()), strict=True)
            axes.plot(xs, ys, label=label, **_style(label))
        axes.set(xscale="log", yscale="log", xlabel="excess over the optimum", ylabel="seconds per matrix", title=name)
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.3)
        _legend(figure)
        made.append(
            Picture(
                f"trade-off-{number + 1}",
                f"Time against accuracy: {name}",
                "Lower and further left is better. A peer's points are the fastest settings that reach the asked excess.",
                figure,
            )
        )
    return made


def _bars(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows per problem at its accepted excess."""
    problems: dict[str, list[Row]] = {}
    batch = 1
    for row in _good(rows):
        batch = row["batch"] if row["peer"] is None else batch  # a peer that loops ran a part of ours
        problems.setdefault(f"{_problem(row | {'batch': batch})}\nexcess <= {row['tol']:g}", []).append(row)
    return problems


def throughput(rows: Iterable[Row]) -> list[Picture]:
    """6 m n r flops of the least work (4 m n r for factors), per second: ours, the best equal peer, LASER's own call."""
    problems = _bars(rows)
    if not problems:
        return []
    figure, axes = _axes(1.2 + BAR * len(problems))
    bars = {"ours": "black", "best peer that reaches the excess": COLOURS[0], "LASER's own call": COLOURS[4]}
    for place, found in enumerate(problems.values()):
        speed = {}
        for row in found:
            m, n = row["shape"]
            _, flops = Problem(m, n, row["rank"], row["op"], row["batch"], row["dtype"]).floor()
            speed[method(row)] = flops / row["seconds"] / 1e9
        equal = {method(row): speed[method(row)] for row in found if row["peer"] and row["details"].get("reaches")}
        best = max(equal, key=lambda name: equal[name]) if equal else None
        shown = (speed.get(OURS), equal[best] if best else None, speed.get(LASER))
        for offset, (value, colour) in enumerate(zip(shown, bars.values(), strict=True)):
            if value is None:
                continue
            y = place + 0.27 * (offset - 1)
            axes.barh(y, value, 0.25, color=colour, label=list(bars)[offset] if place == 0 else None)
            if offset == 1 and best:
                axes.annotate(f" {best}", (value, y), fontsize=6, va="center")
    axes.set_yticks(range(len(problems)), list(problems), fontsize=6)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_xlabel("GFLOP/s of the least work")
    axes.grid(axis="x", alpha=0.3)
    _legend(figure)
    caption = "The least work is three products with m n r multiply-adds. LASER's own call has no accuracy to reach."
    return [Picture("throughput", "Throughput by shape", caption, figure)]


def growth(rows: Iterable[Row]) -> list[Picture]:
    """Time per matrix against n or the rank, exponents in the legend."""
    found = curves(_good(rows))
    made: list[Picture] = []
    for along, fixed in dict.fromkeys((curve.along, curve.fixed) for curve in found):
        figure, axes = _axes()
        for curve in found:
            if (curve.along, curve.fixed) == (along, fixed):
                xs, ys = zip(*curve.points, strict=True)
                axes.plot(xs, ys, label=f"{curve.method}: {along}^{curve.exponent:.2f}", **_style(curve.method))
        axes.set(xscale="log", yscale="log", xlabel=along, ylabel="seconds per matrix", title=fixed)
        axes.title.set_fontsize(8)
        axes.grid(alpha=0.3)
        _legend(figure)
        caption = "Slopes are fitted to the upper half of the points."
        made.append(Picture(f"growth-{len(made) + 1}", f"Growth with {along}: {fixed}", caption, figure))
    return made


def bound(rows: Iterable[Row]) -> list[Picture]:
    """Share of what the machine's own product and copy rates allow."""
    problems = {name: [r for r in found if r["bound_share"]] for name, found in _bars(rows).items()}
    problems = {name: found for name, found in problems.items() if found}
    if not problems:
        return []
    figure, axes = _axes(1.6 + 0.75 * BAR * len(problems))
    seen: set[str] = set()
    for place, found in enumerate(problems.values()):
        for row in found:
            name = method(row)
            style = _style(name) | {"linestyle": "none"}
            axes.plot(100 * row["bound_share"], place, label=None if name in seen else name, **style)
            seen.add(name)
    axes.set_yticks(range(len(problems)), list(problems), fontsize=6)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="per cent of the bound")
    axes.grid(axis="x", alpha=0.3)
    _legend(figure)
    caption = "Bound: the least flops at the product rate, or bytes at the copy rate, both measured in the same run."
    return [Picture("bound", "Share of the bound", caption, figure)]


def pictures(rows: Iterable[Row]) -> list[Picture]:
    """All that the rows have data for."""
    rows = list(rows)
    return [*trade_off(rows), *throughput(rows), *growth(rows), *bound(rows)]
